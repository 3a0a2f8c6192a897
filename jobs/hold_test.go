package jobs

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// holder keeps rows locked, so that a test decides who comes when.
type holder struct{ letGo func() }

// hold locks the rows of these tasks until letGo, or until the test ends.
func (b *testBundle) hold(tasks ...db.Task) holder {
	b.t.Helper()
	return b.lock("SELECT FROM task WHERE task_id = ANY ($1) FOR UPDATE", idsOf(tasks...))
}

// waiting waits until that many statements wait for a lock.
func (b *testBundle) waiting(n int) {
	b.t.Helper()
	waitFor(b.t, "statements to wait for a lock", func() bool {
		return ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") >= n
	})
}

func idsOf(tasks ...db.Task) []uuid.UUID {
	ids := make([]uuid.UUID, len(tasks))
	for i, task := range tasks {
		ids[i] = task.TaskID
	}
	return ids
}

// prepared is a creation on its way into the batcher.
func prepared(b *testBundle, change ...func(*Request)) *creation {
	b.t.Helper()
	c, err := b.prepare(b.ctx, request(change...))
	require.NoError(b.t, err)
	return c
}

// hastyPool is an engine's pool whose server gives up on a statement quickly.
func hastyPool(t *testing.T, like *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	pool, err := pgpool.Open(t.Context(), dbtest.URL(like), pgpool.Config{Engine: true, Name: "hasty", StatementTimeout: 200 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// enginePool is a pool as the engine has it in production, with its patience for locks.
// The pool of a test has more, so that the test decides who waits.
func enginePool(t *testing.T, like *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	pool, err := pgpool.Open(t.Context(), dbtest.URL(like), pgpool.Config{Engine: true, Name: "engine", MaxConns: 16})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// lock keeps the rows that a statement locks until letGo, or until the test ends.
func (b *testBundle) lock(sql string, args ...any) holder {
	b.t.Helper()
	tx, err := b.pool.Begin(b.ctx)
	require.NoError(b.t, err)
	_, err = tx.Exec(b.ctx, sql, args...)
	require.NoError(b.t, err)
	h := holder{letGo: sync.OnceFunc(func() { _ = tx.Rollback(context.WithoutCancel(b.ctx)) })}
	b.t.Cleanup(h.letGo)
	return h
}
