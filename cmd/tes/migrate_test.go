package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/sql/migrations"
)

var fresh atomic.Int64

// freshDatabase is one that nobody has migrated.
func freshDatabase(t *testing.T) string {
	t.Helper()
	pool := dbtest.Get(t)
	name := fmt.Sprintf("fresh_%d_%d", os.Getpid(), fresh.Add(1))
	_, err := pool.Exec(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := pool.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)")
		require.NoError(t, err)
	})
	dsn := dbtest.URL(pool)
	if !strings.HasPrefix(dsn, "postgres") {
		return dsn + " dbname=" + name
	}
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	u.Path = "/" + name
	return u.String()
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	dsn := freshDatabase(t)
	env := environ("TES_DATABASE_URL=" + dsn)
	ok := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := tes(t, env, append([]string{"migrate"}, args...)...)
		require.Equal(t, exitOK, code, stderr)
		require.Empty(t, stderr)
		return stdout
	}
	status := func() (steps []migrations.Step, applied int) {
		t.Helper()
		require.NoError(t, json.Unmarshal([]byte(ok("status", "--json")), &steps))
		for _, step := range steps {
			if step.Applied {
				applied++
			}
		}
		return steps, applied
	}
	tables := func() int {
		t.Helper()
		return number(t, dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'goose%'")
	}

	steps, applied := status()
	require.Zero(t, applied)
	require.NotEmpty(t, steps)
	for i, step := range steps {
		require.NotEmpty(t, step.Name)
		require.True(t, i == 0 || step.Version > steps[i-1].Version, "oldest first")
	}
	list := strings.Split(strings.TrimSpace(ok("status")), "\n")
	require.Len(t, list, len(steps))
	for i, line := range list {
		require.Equal(t, fmt.Sprintf("missing  %5d  %s", steps[i].Version, steps[i].Name), line)
	}
	require.Equal(t, "There was no step to revert.\n", ok("down", "--yes"))
	require.Zero(t, tables())

	require.Equal(t, "The schema is up to date.\n", ok("up"))
	require.Equal(t, "The schema is up to date.\n", ok("up"), "a second time there is nothing to do")
	_, applied = status()
	require.Len(t, steps, applied)
	require.True(t, strings.HasPrefix(ok("status"), fmt.Sprintf("applied  %5d  %s\n", steps[0].Version, steps[0].Name)))
	whole := tables()
	require.Greater(t, whole, 10)

	// One has to mean it.
	says(t, exitUsage, env, []string{"migrate", "down"}, "reverting a step deletes the data in its tables and columns: confirm with --yes")
	_, applied = status()
	require.Len(t, steps, applied)

	last := steps[len(steps)-1]
	require.Equal(t, fmt.Sprintf("Reverted: %d %s\n", last.Version, last.Name), ok("down", "--yes"))
	_, applied = status()
	require.Equal(t, len(steps)-1, applied)
	says(t, exitError, append(env, "TES_NEIGHBOURS_URL=http://127.0.0.1:1", "TES_LOG_LEVEL=error", "TES_DATA_DIR="+t.TempDir()),
		[]string{"serve", "--http", "127.0.0.1:0"}, "tes: the database lacks "+last.Name+": run tes migrate up")

	// All the way down, and up again.
	for range len(steps) - 1 {
		require.Contains(t, ok("down", "--yes"), "Reverted: ")
	}
	require.Equal(t, "There was no step to revert.\n", ok("down", "--yes"))
	require.Zero(t, tables())
	ok("up")
	require.Equal(t, whole, tables())
}

// Two processes that start together may both migrate.
func TestMigrateTwiceAtOnce(t *testing.T) {
	t.Parallel()
	env := environ("TES_DATABASE_URL=" + freshDatabase(t))
	first, second := start(t, env, "migrate", "up"), start(t, env, "migrate", "up")
	require.Equal(t, exitOK, first.wait(t, patience), first.stderr)
	require.Equal(t, exitOK, second.wait(t, patience), second.stderr)
}

func TestMigrateNeedsADatabase(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"up", "down --yes", "status", "status --json"} {
		args := append([]string{"migrate"}, strings.Fields(command)...)
		says(t, exitUsage, environ(), args, "TES_DATABASE_URL is not set")
		says(t, exitError, environ("TES_DATABASE_URL=postgres://tes:"+canary+"@"+nobodysPort(t)+"/tes?connect_timeout=5"), args, "tes: ")
		says(t, exitUsage, environ("TES_DATABASE_URL=postgres://tes:"+canary+"@[/tes"), args, "tes: TES_DATABASE_URL: ")
	}
	_, err := pgx.ParseConfig("postgres://tes:" + canary + "@[/tes")
	require.Error(t, err, "or the last case proves nothing")
}
