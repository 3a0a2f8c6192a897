package main

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
)

// ignored are the parameters of our sessions that a configuration of PgBouncer may swallow.
const ignored = "ignore_startup_parameters = statement_timeout, lock_timeout, idle_in_transaction_session_timeout, tcp_keepalives_idle, " +
	"tcp_keepalives_interval, tcp_keepalives_count, tes.actor, plan_cache_mode, enable_hashjoin, enable_mergejoin, enable_seqscan, " +
	"max_parallel_workers_per_gather, jit, extra_float_digits"

// Behind a pooler in transaction mode, with the direct URL beside it: every lane works, what
// people and remote workers do is done, and a session listens at the server itself.
func TestServeBehindAPooler(t *testing.T) {
	t.Parallel()
	for _, real := range poolers() {
		p := pooling{real: real}
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			serveBehind(t, p)
		})
	}
}

func serveBehind(t *testing.T, before pooling) {
	t.Helper()
	dsn := dbtest.URL(dbtest.New(t))
	b := setupServeOn(t, dsn, true)
	for name, value := range map[string]string{"TES_DATABASE_URL": before.start(t, dsn), "TES_DATABASE_DIRECT_URL": dsn} {
		b.env = append(b.env, name+"="+value)
	}
	h := listenTo(t, b.bus)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	readyz(t, api, http.StatusOK, `"database":"ok"`)

	must(t, http.StatusCreated, "PUT", api+definitionsPath+"/mail", orchestrator, object{
		"name": "Mail", "type": "INTEGRATION", "version": "1.0.0",
		"executionConfig": object{"integration": object{"type": "REST", "method": "send_email", "instance": "mail"}},
	})
	var ids []any
	for i := range 40 {
		task := noop(fmt.Sprint("w-", i))
		if i%4 == 0 {
			task = object{"taskDefinitionId": "mail", "workflowId": "w", "input": object{"to": "a@example.com"}}
		}
		ids = append(ids, must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, task, "Idempotency-Key", fmt.Sprint("k-", i))["taskId"])
	}
	for i, id := range ids {
		reaches(t, api, orchestrator, id, "COMPLETED")
		again := must(t, http.StatusOK, "GET", api+tasksPath+"/"+fmt.Sprint(id), orchestrator, nil)
		require.EqualValues(t, 1, again["attempt"], i)
	}
	h.waitFor(t, ids[1], "task.created", "task.started", "task.completed")

	// Somebody listens, and it is a session of the server's.
	eventually(t, patience, func() error {
		if n := number(t, dsn, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tes sessions' AND datname = current_database()"); n == 0 {
			return fmt.Errorf("%d sessions", n)
		}
		return nil
	})
	require.Zero(t, number(t, dsn, `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'tes engine' AND query LIKE 'LISTEN%'`))
	require.Equal(t, exitOK, p.stop(t))
}

// All that the demo does is done behind a pooler too: every lane, people, retries, dead
// letters, events.
func TestDemoBehindAPooler(t *testing.T) {
	t.Parallel()
	for _, real := range poolers() {
		p := pooling{real: real}
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			dsn := dbtest.URL(dbtest.New(t))
			code, stdout, stderr := tes(t, environ("TES_DATABASE_URL="+p.start(t, dsn), "TES_DATABASE_DIRECT_URL="+dsn), "demo")
			require.Equal(t, exitOK, code, "%s\n%s", stdout, stderr)
		})
	}
}

// Without the direct URL, serve refuses and says what to set: whether the pooler refuses our
// settings or swallows them, and even where the role has them and only the sessions are not
// ours.
func TestServeRefusesAPoolerWithoutTheDirectURL(t *testing.T) {
	t.Parallel()
	dsn := dbtest.URL(dbtest.New(t))
	b := setupServeOn(t, dsn, false)
	env := func(url string) []string { return append(b.env[:len(b.env):len(b.env)], "TES_DATABASE_URL="+url) }
	for _, real := range poolers() {
		for _, p := range []pooling{{real, true, false}, {real, true, true}, {real, false, false}, {real, false, true}} {
			code, _, stderr := tes(t, env(p.start(t, dsn)), "serve", "--http", "127.0.0.1:0")
			require.Equal(t, exitError, code, p)
			require.Contains(t, stderr, "there is a pooler between tes and the database", p)
			require.Contains(t, stderr, "Set TES_DATABASE_DIRECT_URL to the address of the PostgreSQL server itself", p)
		}
	}

	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	for name, value := range map[string]string{"statement_timeout": "15000", "lock_timeout": "1000", "tes.actor": "engine"} {
		_, err := conn.Exec(t.Context(), "ALTER DATABASE "+pgx.Identifier{conn.Config().Database}.Sanitize()+" SET "+name+" = '"+value+"'")
		require.NoError(t, err)
	}
	code, _, stderr := tes(t, environ("TES_DATABASE_DIRECT_URL="+dsn), "demo")
	require.Equal(t, exitUsage, code)
	require.Contains(t, stderr, "TES_DATABASE_DIRECT_URL goes with TES_DATABASE_URL")
	for _, real := range poolers() {
		p := pooling{real: real, swallow: true}
		behind := env(p.start(t, dsn))
		says(t, exitError, behind, []string{"serve", "--http", "127.0.0.1:0"}, "it assigns sessions for one transaction at a time", "Set TES_DATABASE_DIRECT_URL")

		behind = append(behind, "TES_DATABASE_DIRECT_URL="+dbtest.URL(dbtest.New(t)))
		says(t, exitError, behind, []string{"serve", "--http", "127.0.0.1:0"}, "lead to two databases")
	}
}

// pooling is a pooler and how it is set up.
type pooling struct {
	real               bool // PgBouncer, and not our own
	bySession, swallow bool
}

func (p pooling) String() string {
	return fmt.Sprintf("%+v", struct{ PgBouncer, BySession, Swallow bool }{p.real, p.bySession, p.swallow})
}

// start returns the URL through it.
func (p pooling) start(t *testing.T, dsn string) string {
	t.Helper()
	if !p.real {
		return (&dbtest.Pooler{BySession: p.bySession, Swallow: p.swallow}).Start(t, dsn)
	}
	lines := []string{"pool_mode = transaction"}
	if p.bySession {
		lines[0] = "pool_mode = session"
	}
	if p.swallow {
		lines = append(lines, ignored)
	}
	return dbtest.NewBouncer(t, dsn, lines...)
}

// poolers are our own, and PgBouncer where it is installed.
func poolers() []bool {
	if dbtest.PgBouncer() == "" {
		return []bool{false}
	}
	return []bool{false, true}
}

// collect returns the rows of a statement.
func collect[T any](ctx context.Context, dsn string, read pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, read)
}

// number is the one number that a statement returns.
func number(t *testing.T, dsn, sql string, args ...any) int {
	t.Helper()
	rows, err := collect(t.Context(), dsn, pgx.RowTo[int], sql, args...)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	return rows[0]
}
