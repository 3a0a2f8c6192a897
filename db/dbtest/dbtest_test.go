package dbtest

import (
	"bufio"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/sql/migrations"
)

func TestMain(m *testing.M) { Main(m) }

func count(t *testing.T, pool *pgxpool.Pool, table string) int {
	t.Helper()
	var n int
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&n))
	return n
}

func databaseOf(pool *pgxpool.Pool) string { return pool.Config().ConnConfig.Database }

const addJob = "INSERT INTO river_job (args, kind, max_attempts) VALUES ('{}', 'test', 3)"

// Whoever comes, and in whatever order, finds the database empty and alone.
func TestGetIsEmptyAndAlone(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	inUse := make(map[string]bool)
	for i := range 12 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			pool := Get(t)
			name := databaseOf(pool)
			mu.Lock()
			require.False(t, inUse[name])
			inUse[name] = true
			mu.Unlock()
			t.Cleanup(func() { // before the database goes back
				mu.Lock()
				defer mu.Unlock()
				inUse[name] = false
			})

			require.Zero(t, count(t, pool, "river_job"))
			require.Zero(t, count(t, pool, "task"))
			require.Positive(t, count(t, pool, "task_move"))
			_, err := pool.Exec(t.Context(), addJob)
			require.NoError(t, err)
		})
	}
}

func TestURLLeadsToTheSameDatabase(t *testing.T) {
	t.Parallel()
	for _, get := range []func(testing.TB) *pgxpool.Pool{Get, New} {
		pool := get(t)
		_, err := pool.Exec(t.Context(), addJob)
		require.NoError(t, err)
		conn, err := pgx.Connect(t.Context(), URL(pool))
		require.NoError(t, err)
		var n int
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM river_job").Scan(&n))
		require.Equal(t, 1, n)
		require.NoError(t, conn.Close(t.Context()))
	}
}

func TestNewIsNotUsedAgain(t *testing.T) {
	t.Parallel()
	var name string
	t.Run("first", func(t *testing.T) {
		pool := New(t)
		name = databaseOf(pool)
		_, err := pool.Exec(t.Context(), "CREATE TABLE more (id int)")
		require.NoError(t, err)
	})
	s := running(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.idle {
		require.NotEqual(t, name, d.name)
	}
}

// used is a database that somebody has had; it does not go back by itself.
func used(t *testing.T, statements ...string) *database {
	t.Helper()
	s := running(t)
	d, err := s.create(t.Context())
	require.NoError(t, err)
	pool := d.open(t.Context(), t)
	for _, statement := range statements {
		_, err := pool.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	require.True(t, d.close(t, pool))
	return d
}

func contents(t *testing.T, d *database) map[string]string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.server.dsn(d.name))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), tablesSQL, []string{})
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Greater(t, len(tables), 10)
	all := make(map[string]string)
	for _, table := range tables {
		var text string
		require.NoError(t, conn.QueryRow(t.Context(),
			"SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM "+table+" t").Scan(&text))
		all[table] = text
	}
	return all
}

func TestResetMakesTheDatabaseWhatItWas(t *testing.T) {
	t.Parallel()
	want := contents(t, used(t))
	require.NotEmpty(t, want["public.task_move"])
	require.NotEmpty(t, want["public.river_queue"])
	require.NotEmpty(t, want["public.goose_db_version"])

	d := used(t,
		addJob,
		"UPDATE river_queue SET paused_at = now()",
		"INSERT INTO river_queue (name, created_at, updated_at) VALUES ('more', now(), now())",
		"DELETE FROM task_move WHERE was = 'PENDING'",
	)
	require.NotEqual(t, want, contents(t, d))
	require.NoError(t, d.reset(t.Context()))
	require.Equal(t, want, contents(t, d))
	require.NoError(t, d.reset(t.Context()), "and once more, with nothing to do")
	require.Equal(t, want, contents(t, d))
}

func TestResetRefusesAnotherSchema(t *testing.T) {
	t.Parallel()
	for _, ddl := range []string{
		"CREATE TABLE more (id int)",
		"DROP TABLE task_move",
		"ALTER TABLE task ADD COLUMN more int",
		"ALTER TABLE task DISABLE TRIGGER task_guard_update",
		"CREATE INDEX more ON task (version)",
		"ALTER TABLE river_job ADD CONSTRAINT more CHECK (id > 0)",
		"ALTER TABLE river_job ALTER COLUMN kind DROP NOT NULL",
		"CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
		"CREATE OR REPLACE FUNCTION task_guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
	} {
		t.Run(ddl, func(t *testing.T) {
			t.Parallel()
			require.Error(t, used(t, ddl).reset(t.Context()))
		})
	}
}

func TestResetRefusesATableThatHasGrown(t *testing.T) {
	t.Parallel()
	d := used(t, fmt.Sprintf(
		"INSERT INTO river_job (args, kind, max_attempts) SELECT '{}', repeat('k', 100), 3 FROM generate_series(1, %d)", maxSize/150))
	require.ErrorContains(t, d.reset(t.Context()), "grown to")
}

// witness is a test that may fail without us failing.
type witness struct {
	testing.TB
	mu     sync.Mutex
	errors []string
	logs   []string
}

func (w *witness) Helper() {}

func (w *witness) Errorf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errors = append(w.errors, fmt.Sprintf(format, args...))
}

func (w *witness) Logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs = append(w.logs, fmt.Sprintf(format, args...))
}

func (w *witness) Failed() bool { return len(w.errors) > 0 }

func TestSessionsLeftOverFailTheirTest(t *testing.T) {
	t.Parallel()
	s := running(t)
	d, err := s.create(t.Context())
	require.NoError(t, err)
	d.farewell = 100 * time.Millisecond
	pool := d.open(t.Context(), t)
	left, err := pgx.Connect(t.Context(), URL(pool))
	require.NoError(t, err)
	defer left.Close(context.Background())
	_, err = left.Exec(t.Context(), "SELECT 'somebody forgot me'")
	require.NoError(t, err)

	w := &witness{TB: t}
	require.False(t, d.close(w, pool))
	require.Len(t, w.errors, 1)
	require.Contains(t, w.errors[0], "the test has ended and these sessions of it have not: ")
	require.Contains(t, w.errors[0], "idle: SELECT 'somebody forgot me'")
	_, err = left.Exec(t.Context(), "SELECT 1")
	require.Error(t, err, "it was ended")
}

func TestConnectionsNotReleasedFailTheirTest(t *testing.T) {
	t.Parallel()
	s := running(t)
	d, err := s.create(t.Context())
	require.NoError(t, err)
	d.farewell = 100 * time.Millisecond
	pool := d.open(t.Context(), t)
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()

	w := &witness{TB: t}
	require.False(t, d.close(w, pool))
	require.Contains(t, w.errors[0], "1 connections were acquired from the pool and not released")
}

// A template that was left half-made is made again, and by one process only.
func TestTemplateIsMadeOnce(t *testing.T) {
	t.Parallel()
	s := running(t)
	ctx := t.Context()
	const major = 1_000_000 // for a template of this test's own
	one := &server{dsn: s.dsn, admin: s.admin}
	require.NoError(t, one.makeTemplate(ctx, major))
	_, err := s.admin.Exec(ctx, "ALTER DATABASE "+one.template+" WITH IS_TEMPLATE false ALLOW_CONNECTIONS true")
	require.NoError(t, err)
	conn, err := pgx.Connect(ctx, s.dsn(one.template))
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "CREATE TABLE half (id int)")
	require.NoError(t, err)
	defer conn.Close(context.Background()) // and somebody is still connected

	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			other := &server{dsn: s.dsn, admin: s.admin}
			if err := other.makeTemplate(ctx, major); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	_, err = pgx.Connect(ctx, s.dsn(one.template))
	var refused *pgconn.PgError
	require.ErrorAs(t, err, &refused, "nobody may connect to it")
	require.Equal(t, "55000", refused.Code)

	copied := &server{dsn: s.dsn, admin: s.admin, template: one.template, last: 1_000_000}
	d, err := copied.create(ctx)
	require.NoError(t, err)
	require.NotContains(t, contents(t, d), "public.half")
	steps, err := migrations.Status(ctx, s.dsn(d.name))
	require.NoError(t, err)
	for _, step := range steps {
		require.True(t, step.Applied, step.Name)
	}
	_, err = s.admin.Exec(ctx, "ALTER DATABASE "+one.template+" WITH IS_TEMPLATE false")
	require.NoError(t, err)
	for _, name := range []string{d.name, one.template} {
		_, err = s.admin.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
		require.NoError(t, err)
	}
}

func TestRenamerKeepsTheRest(t *testing.T) {
	t.Parallel()
	for dsn, want := range map[string]string{
		"postgres://a:b@h:1/x?sslmode=disable":           "postgres://a:b@h:1/new?sslmode=disable",
		"postgresql://a@/x?dbname=y&host=%2Ftmp&port=54": "postgresql://a@/new?host=%2Ftmp&port=54",
		"host=h user=a dbname=x":                         "host=h user=a dbname=x dbname=new",
	} {
		rename, err := renamer(dsn)
		require.NoError(t, err)
		require.Equal(t, want, rename("new"))
		cfg, err := pgx.ParseConfig(rename("new"))
		require.NoError(t, err)
		require.Equal(t, "new", cfg.Database)
	}
	_, err := renamer("postgres://a:secret@h:port/x")
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
}

// scenario runs one test of TestScenario in another process, in a TMPDIR of its own.
func scenario(t *testing.T, name string, env ...string) (cmd *exec.Cmd, tmp string) {
	t.Helper()
	tmp, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.Chmod(filepath.Dir(tmp), 0o755)) // the account of postgres must get there
	require.NoError(t, os.Chmod(tmp, 0o755))
	cmd = exec.Command(os.Args[0], "-test.run=^TestScenario$/^"+name+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(append(os.Environ(), "TMPDIR="+tmp, "DBTEST_SCENARIO="+name), env...)
	return cmd, tmp
}

// nothingLeft polls: what is left ends in its own time.
func nothingLeft(t *testing.T, tmp string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; <-tick.C {
		left := leftIn(t, tmp)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			require.Empty(t, left)
		}
	}
}

// leftIn are the files in a directory, and the processes that work there.
func leftIn(t *testing.T, tmp string) (left []string) {
	t.Helper()
	entries, err := os.ReadDir(tmp)
	require.NoError(t, err)
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	out, _ := exec.Command("/bin/sh", "-c", `grep -als "$0" /proc/[0-9]*/cmdline || true`, tmp+"/tespg").Output()
	for _, path := range strings.Fields(string(out)) {
		text, _ := os.ReadFile(path)
		if !strings.Contains(string(text), "grep") && len(text) > 0 {
			left = append(left, string(text))
		}
	}
	return left
}

// However a test binary ends, nothing of its cluster is left.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	for name, says := range map[string]string{
		"pass":  "PASS",
		"fail":  "it is meant to fail",
		"panic": "panic: it is meant to",
		"exit":  "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, tmp := scenario(t, name, "TES_TEST_DATABASE_URL=")
			out, err := cmd.CombinedOutput()
			require.Equal(t, name == "pass", err == nil, "%s", out)
			require.Contains(t, string(out), says)
			require.Contains(t, string(out), hasDatabase)
			nothingLeft(t, tmp)
		})
	}
	t.Run("timeout", func(t *testing.T) {
		t.Parallel()
		for _, limit := range []string{"5s", "20s", "1m"} { // the first is long enough on a quiet machine
			cmd, tmp := scenario(t, "hang", "TES_TEST_DATABASE_URL=")
			cmd.Args = append(cmd.Args, "-test.timeout="+limit)
			out, err := cmd.CombinedOutput()
			require.Error(t, err)
			require.Contains(t, string(out), "panic: test timed out after "+limit)
			nothingLeft(t, tmp)
			if strings.Contains(string(out), hasDatabase) {
				return
			}
		}
		t.Fatal("the scenario did not get its database in a minute")
	})
	t.Run("kill", func(t *testing.T) {
		t.Parallel()
		cmd, tmp := scenario(t, "hang", "TES_TEST_DATABASE_URL=")
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			if lines.Text() == hasDatabase {
				break
			}
		}
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
		nothingLeft(t, tmp)
	})
}

// On somebody else's server the databases of failed tests stay, and only they.
func TestForeignServerIsLeftAsItWas(t *testing.T) {
	t.Parallel()
	s := running(t)
	for _, name := range []string{"pass", "fail"} {
		cmd, tmp := scenario(t, name, "TES_TEST_DATABASE_URL="+s.dsn("postgres"))
		out, err := cmd.CombinedOutput()
		require.Equal(t, name == "pass", err == nil, "%s", out)
		require.NoDirExists(t, filepath.Join(tmp, fmt.Sprintf("tespg-%d", os.Geteuid())))

		rows, err := s.admin.Query(t.Context(), "SELECT datname FROM pg_database WHERE datname LIKE $1", fmt.Sprintf("t\\_%d\\_%%", cmd.Process.Pid))
		require.NoError(t, err)
		left, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		if name == "pass" {
			require.Empty(t, left)
			continue
		}
		require.Len(t, left, 1)
		require.Contains(t, string(out), "the database of this failed test is kept: "+left[0])
		_, err = s.admin.Exec(t.Context(), "DROP DATABASE "+left[0])
		require.NoError(t, err)
	}
}

// Who may not switch off triggers cannot reset, and gets a new database every time.
func TestOrdinaryRoleGetsNewDatabases(t *testing.T) {
	t.Parallel()
	s := running(t)
	role := fmt.Sprintf("ordinary_%d", os.Getpid())
	_, err := s.admin.Exec(t.Context(), "CREATE ROLE "+role+" LOGIN CREATEDB PASSWORD '"+role+"'")
	require.NoError(t, err)
	defer func() {
		_, err := s.admin.Exec(context.Background(), "DROP ROLE "+role)
		require.NoError(t, err)
	}()
	dsn := s.dsn("postgres") + " user=" + role + " password=" + role
	if parsed, err := url.Parse(s.dsn("postgres")); err == nil {
		parsed.User = url.UserPassword(role, role)
		dsn = parsed.String()
	}
	cmd, _ := scenario(t, "ordinary", "TES_TEST_DATABASE_URL="+dsn)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// hasDatabase is what a scenario says when it has one.
const hasDatabase = "scenario has a database"

// TestScenario is what the tests above run in other processes.
func TestScenario(t *testing.T) {
	name := os.Getenv("DBTEST_SCENARIO")
	if name == "" {
		return
	}
	t.Run(name, func(t *testing.T) {
		var first string
		t.Run("first", func(t *testing.T) { first = databaseOf(Get(t)) })
		pool := Get(t)
		_, _ = fmt.Println(hasDatabase) // t.Log would wait for the end
		switch name {
		case "fail":
			t.Fatal("it is meant to fail")
		case "panic":
			panic("it is meant to")
		case "exit":
			os.Exit(3)
		case "hang":
			select {}
		case "ordinary":
			require.False(t, running(t).canReset)
			require.NotEqual(t, first, databaseOf(pool))
		}
	})
}
