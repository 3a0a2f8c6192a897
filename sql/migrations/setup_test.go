package migrations_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
)

// testBundle is a migrated database and what may be asked of it.
type testBundle struct {
	t    *testing.T
	pool *pgxpool.Pool // the engine's
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	return &testBundle{t, dbtest.Get(t)}
}

// as is a session of somebody else, by psql as it were.
func (b *testBundle) as(role string) *pgx.Conn {
	b.t.Helper()
	conn, err := pgx.Connect(b.t.Context(), dbtest.URL(b.pool))
	require.NoError(b.t, err)
	b.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if role != "" {
		_, err = conn.Exec(b.t.Context(), "SET ROLE "+role)
		require.NoError(b.t, err)
	}
	return conn
}

// task inserts one in that status, at version 1.
func (b *testBundle) task(status string) uuid.UUID {
	b.t.Helper()
	id := uuid.New()
	_, err := b.pool.Exec(b.t.Context(), `
		INSERT INTO task (task_id, job_id, created_at, ended_at, status, assignee_id, type, lane, revision, priority, tenant_id, workflow_id, definition_id, executor, correlation_id, input)
		VALUES ($1, 1, now(), CASE WHEN $2 IN ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMED_OUT') THEN now() END, $2::text::task_status, 'ann',
			'MANUAL', 'task-execution-manual', 0, 3, '', 'wf', 'd', 'manual', 'c', '{}')`, id, status)
	require.NoError(b.t, err)
	return id
}

func list[T any](t *testing.T, conn interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}, sql string, args ...any,
) []T {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[T])
	require.NoError(t, err)
	return all
}

// requireCode wants that the server has refused with this SQLSTATE.
func requireCode(t *testing.T, code string, err error, about ...any) *pgconn.PgError {
	t.Helper()
	var refused *pgconn.PgError
	require.ErrorAs(t, err, &refused, about...)
	require.Equal(t, code, refused.Code, fmt.Sprint(about...)+": "+refused.Message)
	return refused
}

// empty is a database of the test's own on the same server, without a table in it.
func empty(t *testing.T, options ...string) (dsn string) {
	t.Helper()
	template := dbtest.New(t)
	name := "empty_" + uuid.NewString()[:8]
	admin := template.Config().ConnConfig.Copy()
	conn, err := pgx.ConnectConfig(t.Context(), admin)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0 "+strings.Join(options, " "))
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := conn.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)")
		require.NoError(t, err)
		require.NoError(t, conn.Close(context.Background()))
	})
	return fmt.Sprintf("host=%s port=%d user=%s password='%s' dbname=%s", admin.Host, admin.Port, admin.User, admin.Password, name)
}

func open(t *testing.T, dsn string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}
