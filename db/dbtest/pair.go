package dbtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db/localpg"
	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// Pair is a primary with a streaming standby: two servers of the test's own, on loopback,
// with the schema of tes in database tes.
type Pair struct {
	Primary, Standby *localpg.Cluster

	t      testing.TB
	killed bool // Kill has ended the primary
}

// standbyName is the standby's name for synchronous_standby_names.
const standbyName = "follower"

// NewPair starts both servers. If synchronous, a commit on the primary waits until the
// standby has written the commit to disk. Both servers end with the test.
func NewPair(t testing.TB, synchronous bool) *Pair {
	t.Helper()
	p := &Pair{t: t}
	settings := map[string]string{
		"fsync": "off", "max_connections": "100", "shared_buffers": "32MB", "dynamic_shared_memory_type": "mmap",
		"wal_keep_size": "64MB",
	}

	p.Primary = p.start("primary", settings)

	p.do(p.Primary, "ALTER SYSTEM SET synchronous_commit = 'on'")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	if err := migrations.Up(ctx, p.Primary.URL()); err != nil {
		t.Fatalf("dbtest: migrate the primary: %v", err)
	}

	conninfo := conninfoOf(t, p.Primary.URL())

	// A standby begins as a copy of the primary.
	p.backup(filepath.Join(p.base(), "standby"))
	settings["primary_conninfo"] = conninfo + " application_name=" + standbyName
	p.Standby = p.start("standby", settings)
	p.follows()

	// Only now: a commit would wait for a standby that does not exist yet.
	if synchronous {
		p.do(p.Primary, "ALTER SYSTEM SET synchronous_standby_names = '"+standbyName+"'")
		p.do(p.Primary, "SELECT pg_reload_conf()")
		p.until(p.Primary, "the standby to be synchronous", "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')")
	}

	return p
}

// base returns the parent directory of both servers, which PostgreSQL's account can search.
func (p *Pair) base() string {
	p.t.Helper()
	if p.Primary != nil {
		return filepath.Dir(p.Primary.Dir())
	}

	dir, err := os.MkdirTemp("", "tes-pair-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}

	if err != nil {
		p.t.Fatalf("dbtest: %v", err)
	}

	p.t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			p.t.Errorf("dbtest: %v", err)
		}
	})

	return dir
}

func (p *Pair) start(name string, settings map[string]string) *localpg.Cluster {
	p.t.Helper()
	cfg := privateConfig()
	cache := cfg.DataDir
	if cfg.Throwaway, cfg.Unsafe, cfg.Settings = false, false, settings; cfg.CacheDir == "" && cache != "" {
		cfg.CacheDir = filepath.Join(cache, "cache")
	}

	// Without a configured directory, downloads are shared with `tes dev`.
	if cfg.CacheDir == "" {
		if dir, err := localpg.DefaultBaseDir(); err == nil {
			cfg.CacheDir = filepath.Join(dir, "cache")
		}
	}

	cfg.DataDir = filepath.Join(p.base(), name)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()

	c, err := localpg.Start(ctx, cfg)
	if err != nil {
		p.t.Fatalf("dbtest: start the %s: %v", name, err)
	}

	p.t.Cleanup(func() { p.stop(name, c, cfg) })
	return c
}

// stop ends a server. A killed server is started once more, and then shut down: otherwise
// its shared memory would stay.
func (p *Pair) stop(name string, c *localpg.Cluster, cfg localpg.Config) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	err := c.Stop(ctx)
	if c == p.Primary && p.killed {
		// Starting fails until the last session of the killed server has ended.
		for {
			if c, err = localpg.Start(ctx, cfg); err == nil || ctx.Err() != nil {
				break
			}
		}

		if err == nil {
			err = c.Stop(ctx)
		}
	}

	if err != nil {
		p.t.Errorf("dbtest: stop the %s: %v", name, err)
	}
}

// conninfoOf converts a URL into the format of primary_conninfo.
func conninfoOf(t testing.TB, dsn string) string {
	t.Helper()
	parsed, err := url.Parse(dsn)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}

	password, _ := parsed.User.Password()
	return fmt.Sprintf("host=%s port=%s user=%s password=%s", parsed.Hostname(), parsed.Port(), parsed.User.Username(), password)
}

// backup copies the primary for a standby. pg_basebackup would do the same, but is missing in
// some installations.
func (p *Pair) backup(dir string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	err := func() error {
		conn, err := pgx.Connect(ctx, p.Primary.URL())
		if err != nil {
			return err
		}
		defer conn.Close(ctx)

		if _, err := conn.Exec(ctx, "SELECT pg_backup_start('standby', true)"); err != nil {
			return err
		}

		if err := copyTree(p.Primary.Dir(), dir); err != nil {
			return err
		}

		var label string
		if err := conn.QueryRow(ctx, "SELECT labelfile FROM pg_backup_stop(false)").Scan(&label); err != nil {
			return err
		}

		data := filepath.Join(dir, "pg")
		return errors.Join(
			writeLike(filepath.Join(data, "PG_VERSION"), filepath.Join(data, "backup_label"), label),
			writeLike(filepath.Join(data, "PG_VERSION"), filepath.Join(data, "standby.signal"), ""),
		)
	}()
	if err != nil {
		p.t.Fatalf("dbtest: copy the primary: %v", err)
	}
}

// notCopied are the files that belong to one running server.
var notCopied = []string{"pg/postmaster.pid", "pg/postmaster.opts", "lock", "cache", "postgres.log"}

// copyTree copies a base directory with modes and owners. Files that vanish during the copy
// are ignored: the write-ahead log of the backup restores them.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		name, relErr := filepath.Rel(from, path)

		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil || relErr != nil:
			return errors.Join(err, relErr)
		}

		for _, own := range notCopied {
			if name == own && d.IsDir() {
				return filepath.SkipDir
			} else if name == own {
				return nil
			}
		}

		return copyOne(path, filepath.Join(to, name))
	})
}

func copyOne(from, to string) error {
	info, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}

	if err != nil {
		return err
	}

	switch {
	case info.IsDir():
		err = os.MkdirAll(to, info.Mode().Perm())
	case info.Mode().IsRegular():
		var text []byte
		if text, err = os.ReadFile(from); errors.Is(err, fs.ErrNotExist) {
			return nil
		}

		if err == nil {
			err = os.WriteFile(to, text, info.Mode().Perm()) //nolint:gosec // below the test's own directory
		}
	default:
		// A socket.
		return nil
	}

	if err != nil {
		return err
	}

	return errors.Join(os.Chmod(to, info.Mode().Perm()), ownLike(info, to))
}

// ownLike gives path the owner of another file. Only root may, and only root must.
func ownLike(info fs.FileInfo, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}

	owner := info.Sys().(*syscall.Stat_t)
	return os.Lchown(path, int(owner.Uid), int(owner.Gid))
}

func writeLike(like, path, text string) error {
	info, err := os.Stat(like)
	if err != nil {
		return err
	}

	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}

	return ownLike(info, path)
}

// do executes a statement as superuser.
func (p *Pair) do(c *localpg.Cluster, statement string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	conn, err := pgx.Connect(ctx, c.URL())
	if err == nil {
		_, err = conn.Exec(ctx, statement)
		err = errors.Join(err, conn.Close(ctx))
	}

	if err != nil {
		p.t.Fatalf("dbtest: %s: %v", statement, err)
	}
}

// until waits for a query to return true.
func (p *Pair) until(c *localpg.Cluster, what, query string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()

	for {
		var met bool
		conn, err := pgx.Connect(ctx, c.URL())
		if err == nil {
			err = conn.QueryRow(ctx, query).Scan(&met)
			_ = conn.Close(ctx)
		}

		if met {
			return
		}

		select {
		case <-tick.C:
		case <-ctx.Done():
			p.t.Fatalf("dbtest: waited for %s: %v", what, err)
		}
	}
}

// follows waits until the standby has replayed everything that the primary has written.
func (p *Pair) follows() {
	p.t.Helper()
	p.until(p.Primary, "the standby to follow", "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn())")
}

// Kill ends the primary and its sessions as a power failure would.
func (p *Pair) Kill() {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(p.Primary.Dir(), "pg", "postmaster.pid"))
	if err != nil {
		p.t.Fatalf("dbtest: %v", err)
	}

	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err == nil {
		p.killed = true

		// The sessions notice, and end too.
		err = syscall.Kill(pid, syscall.SIGKILL)
	}

	if err != nil {
		p.t.Fatalf("dbtest: kill the primary: %v", err)
	}

	<-p.Primary.Done()
}

// Promote makes the standby a primary, and returns when the server accepts writes.
func (p *Pair) Promote() {
	p.t.Helper()
	p.do(p.Standby, "SELECT pg_promote(true, 30)")
}
