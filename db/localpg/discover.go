package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// binaries is a directory with postgres and initdb. No other program of PostgreSQL is
// needed, and the downloaded distributions have few others.
type binaries struct {
	dir     string
	version string // "15.20"
	major   int
}

func (b binaries) path(name string) string { return filepath.Join(b.dir, name) }

// find chooses the binaries, in this order: the directory of TES_PG_BIN, installed
// binaries, the cache, a download. Installed binaries come before newer downloaded ones,
// because the system keeps installed binaries up to date.
//
// dataMajor is the major version of the data directory, or 0. No other version can read
// the directory.
func (m *machine) find(ctx context.Context, cfg Config, acc account, data string, dataMajor int) (binaries, error) {
	wanted := dataMajor
	if wanted == 0 && cfg.Version != "" {
		wanted, _ = strconv.Atoi(cfg.Version)
	}

	if cfg.BinDir != "" {
		b, err := m.named(ctx, cfg.BinDir, acc)
		if err != nil {
			return binaries{}, err
		}

		// No fallback: the user has chosen the binaries.
		if dataMajor != 0 && b.major != dataMajor {
			return binaries{}, wrongMajor(data, dataMajor, []binaries{b}, nil)
		}

		return b, nil
	}

	s := &search{machine: m, wanted: wanted}
	if cfg.NoSystem {
		s.places = append(s.places, "nothing installed (TES_PG_SYSTEM=off)")
	} else if b, ok := s.installed(ctx, acc); ok {
		return b, nil
	}

	b, err := m.downloaded(ctx, cfg, acc, wanted)
	if err == nil {
		return b, nil
	}

	// The download fails too when ctx has ended; report the cause.
	if ctx.Err() != nil {
		return binaries{}, context.Cause(ctx)
	}
	if dataMajor != 0 {
		return binaries{}, wrongMajor(data, dataMajor, s.found, err)
	}

	return binaries{}, s.failure(err)
}

// named checks the directory of TES_PG_BIN. An error is final: a user who sets the variable
// does not want other binaries.
func (m *machine) named(ctx context.Context, dir string, acc account) (binaries, error) {
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return binaries{}, wrong("TES_PG_BIN", dir, "it must hold postgres and initdb: %w", err)
		}
	}

	if err := acc.reach(dir, "move the binaries to a place it can reach, or set TES_PG_USER"); err != nil {
		return binaries{}, wrong("TES_PG_BIN", dir, "%w", err)
	}

	b, err := probe(ctx, dir)
	if err != nil {
		return binaries{}, wrong("TES_PG_BIN", dir, "%w", err)
	}

	if b.major < minMajor {
		return binaries{}, wrong("TES_PG_BIN", dir, "it is PostgreSQL %s, and %d or newer is needed", b.version, minMajor)
	}

	return b, nil
}

// search collects the places searched so far, for the error message.
type search struct {
	*machine
	wanted int
	places []string   // "PATH", "/usr/lib/postgresql/*/bin (14.9)"
	found  []binaries // all binaries that run, suitable or not
}

// installed returns the newest suitable server on the machine.
func (s *search) installed(ctx context.Context, acc account) (best binaries, ok bool) {
	seen := make(map[string]bool)
	look := func(place string, dirs []string) {
		var notes []string
		for _, dir := range dirs {
			resolved, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
			if err != nil || seen[resolved] {
				continue
			}

			// Links may lead to one server by several paths; asking a server takes 10 to 25 ms.
			seen[resolved] = true
			note, b := s.consider(ctx, filepath.Dir(resolved), acc)
			if note != "" {
				notes = append(notes, note)
			} else if b.major > best.major {
				best, ok = b, true
			}
		}

		if len(notes) > 0 {
			place += " (" + strings.Join(notes, ", ") + ")"
		}

		s.places = append(s.places, place)
	}

	look("PATH", s.onPath())
	look("pg_config", s.fromConfig(ctx))

	for _, pattern := range s.globs {
		dirs, _ := filepath.Glob(pattern)
		look(pattern, dirs)
	}

	return best, ok
}

// consider returns the binaries in dir, and a note if the binaries are not suitable.
func (s *search) consider(ctx context.Context, dir string, acc account) (note string, _ binaries) {
	b, err := probe(ctx, dir)
	if err != nil {
		return err.Error(), b
	}

	s.found = append(s.found, b)

	// Client packages and some servers come without initdb.
	if _, err := os.Stat(b.path("initdb")); err != nil {
		return b.version + " without initdb", b
	}

	if b.major < minMajor || s.wanted != 0 && b.major != s.wanted {
		return b.version, b
	}

	if err := acc.reach(dir, "not usable"); err != nil {
		return b.version + ", " + err.Error(), b
	}

	return "", b
}

func (s *search) onPath() []string {
	path, err := s.lookPath("postgres")
	if err != nil {
		return nil
	}

	return []string{filepath.Dir(path)}
}

func (s *search) fromConfig(ctx context.Context) []string {
	path, err := s.lookPath("pg_config")
	if err != nil {
		return nil
	}

	out, err := ask(ctx, path, "--bindir")
	if err != nil {
		return nil
	}

	return []string{out}
}

// failure returns the error for a machine without a suitable server.
func (s *search) failure(downloadErr error) error {
	what := "no PostgreSQL 15 or newer"
	if s.wanted != 0 {
		what = fmt.Sprintf("no PostgreSQL %d", s.wanted)
	}

	return fmt.Errorf("%s found. Looked in: %s; %w. "+
		"Either set TES_DATABASE_URL, or install it (apt-get install -y postgresql | dnf install postgresql-server | "+
		"brew install postgresql@18 | apk add postgresql18), or set TES_PG_BIN",
		what, strings.Join(s.places, ", "), downloadErr)
}

// wrongMajor returns the error for a data directory that no available binaries can read.
// The directory must not be touched: an older or newer server would damage the data.
func wrongMajor(data string, major int, found []binaries, downloadErr error) error {
	var have []string
	for _, b := range found {
		have = append(have, b.version+" in "+b.dir)
	}

	if len(have) == 0 {
		have = []string{"none"}
	}

	err := fmt.Errorf("%s was made by PostgreSQL %d, and no %d binaries are here (found %s). "+
		"Install %d, or move the directory away: tes dev --reset. Nothing was changed",
		data, major, major, strings.Join(have, ", "), major)
	if downloadErr != nil {
		err = fmt.Errorf("%w; %w", err, downloadErr)
	}

	return err
}

// downloaded returns binaries from the cache, and downloads them first if necessary.
func (m *machine) downloaded(ctx context.Context, cfg Config, acc account, major int) (binaries, error) {
	if major == 0 {
		major = defaultMajor
	}

	p, err := m.pinFor(major)
	if err != nil {
		return binaries{}, fmt.Errorf("the download failed: %w", err)
	}

	if cfg.CacheDir == "" {
		return binaries{}, errors.New("no download: there is no home directory to keep it in, set TES_DATA_DIR")
	}

	home := filepath.Join(cfg.CacheDir, p.dir())
	if _, err := os.Stat(home); err != nil {
		if cfg.NoDownload {
			return binaries{}, errors.New("the download is switched off (TES_PG_DOWNLOAD=off)")
		}

		if err := m.fetch(ctx, cfg, p); err != nil {
			return binaries{}, fmt.Errorf("the download failed: %w", err)
		}
	}

	dir := filepath.Join(home, "native", "bin")
	if err := acc.reach(dir, "set TES_DATA_DIR to a place it can reach, e.g. /var/lib/tes"); err != nil {
		return binaries{}, fmt.Errorf("the downloaded binaries cannot be used: %w", err)
	}

	b, err := probe(ctx, dir)
	if err != nil {
		return binaries{}, fmt.Errorf("the downloaded binaries do not run (remove %s to have them again): %w", home, err)
	}

	return b, nil
}

// probe asks a server for its version, which works as root too.
func probe(ctx context.Context, dir string) (binaries, error) {
	out, err := ask(ctx, filepath.Join(dir, "postgres"), "--version")
	if err != nil {
		return binaries{}, err
	}

	// postgres (PostgreSQL) 15.20 (Debian 15.20-1.pgdg12+1)
	_, rest, ok := strings.Cut(out, "(PostgreSQL) ")
	version, _, _ := strings.Cut(rest, " ")

	// "19beta1" is 19.
	digits := strings.FieldsFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if !ok || len(digits) == 0 {
		return binaries{}, fmt.Errorf("%s/postgres is no PostgreSQL: it says %q", dir, out)
	}

	major, err := strconv.Atoi(digits[0])
	if err != nil {
		return binaries{}, fmt.Errorf("%s/postgres: version %q: %w", dir, version, err)
	}

	return binaries{dir: dir, version: version, major: major}, nil
}

func ask(ctx context.Context, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()

	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	cmd.Env = childEnv(filepath.Dir(path))

	// In its own group: a Ctrl-C would end the child first, and the binaries would seem broken.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		awaitOwnSignal(ctx, err)
		return "", fmt.Errorf("%s %s: %w: %s", path, strings.Join(args, " "), err, text)
	}

	return text, nil
}

// awaitOwnSignal waits up to a second for ctx to end if a child was interrupted: a Ctrl-C
// that arrived before the child had its own group was meant for this program, which
// notices the signal a little later.
func awaitOwnSignal(ctx context.Context, err error) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return
	}

	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGINT {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// childEnv is the whole environment of a child. With a LANG that the machine does not
// have, initdb fails; without LC_ALL, postgres on macOS may die with "became multithreaded
// during startup".
func childEnv(bin string) []string {
	return []string{"LC_ALL=C", "TZ=UTC", "PATH=" + bin + ":/usr/bin:/bin"}
}
