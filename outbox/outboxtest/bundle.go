// Package outboxtest is the fixture of the tests of package outbox and of the packages below
// outbox: a database with tasks and events, a bus in memory, and a log that can be searched.
package outboxtest

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/outbox"
)

// Patience bounds every wait of a test. A test that passes does not come near it.
const Patience = 30 * time.Second

// Bundle is a database of the test's own, with the bus and the log that its relays and
// dispatchers use.
type Bundle struct {
	T    *testing.T
	Ctx  context.Context
	Pool *pgxpool.Pool
	Bus  *Bus
	Log  *Log

	// WentBack says that the test puts the database back in time on purpose. Without it, a
	// row in event_unknown fails the test.
	WentBack bool
}

// New returns a Bundle that is closed when the test ends.
func New(t *testing.T) *Bundle {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)

	b := &Bundle{T: t, Ctx: ctx, Pool: dbtest.Get(t), Bus: NewBus(), Log: &Log{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%.4000s", b.Log)
			return
		}

		// A relay that records unknown events here has lost count of the stream.
		if !b.WentBack && b.Pool.Ping(b.Ctx) == nil { // a test may have closed the pool
			require.Zero(t, Ask[int](b, "SELECT count(*) FROM event_unknown"), "the database lost no event in this test")
		}
	})

	return b
}

// Task inserts a task without events and returns its id.
func (b *Bundle) Task() uuid.UUID {
	b.T.Helper()
	id := uuid.Must(uuid.NewV7())
	b.Exec(`
		INSERT INTO task (task_id, job_id, created_at, version, type, lane, revision, priority, tenant_id, workflow_id, definition_id, executor, correlation_id, input)
		VALUES ($1, 1, now(), 1, 'AUTOMATED', 'task-execution-automated', 0, 3, '', 'wf', 'd', 'noop', 'c', '{}')`, id)
	return id
}

// Flush commits one started event for each of the tasks, as FlushOf does.
func (b *Bundle) Flush(tasks ...uuid.UUID) {
	b.T.Helper()
	b.FlushOf("started", tasks...)
}

// FlushOf commits the next event of each task as the engine does: event ids from a block of
// this process's own, and one outbox row with the range of these ids.
func (b *Bundle) FlushOf(kind string, tasks ...uuid.UUID) {
	b.T.Helper()
	require.NoError(b.T, pgx.BeginFunc(b.Ctx, b.Pool, func(tx pgx.Tx) error {
		var end int64
		if err := tx.QueryRow(b.Ctx, "SELECT nextval('task_event_id_seq')").Scan(&end); err != nil {
			return err
		}

		// The sequence counts in blocks of 20,000 ids and returns the last id of a block.
		lo := end - 19_999
		for i, task := range tasks {
			if _, err := tx.Exec(b.Ctx, `
				INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
				SELECT $1, $2, now(), coalesce(max(seq), 0) + 1, 0, $3::text::task_event_type, 'PENDING', 'RUNNING', 'p'
				FROM task_event
				WHERE task_id = $2`, lo+int64(i), task, kind); err != nil {
				return err
			}
		}

		_, err := tx.Exec(b.Ctx, "INSERT INTO outbox (lo, hi) VALUES ($1, $2)", lo, lo+int64(len(tasks)))
		return err
	}))
}

// FlushUnencodable commits an event that has no JSON: its due date is in the year 10000 in
// UTC, which package time refuses to write.
func (b *Bundle) FlushUnencodable(task uuid.UUID) {
	b.T.Helper()
	b.Exec(`
		WITH moved AS (
			INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor, payload)
			SELECT nextval('task_event_id_seq'), $1, now(), 1, 0, 'assigned', 'PENDING', 'ASSIGNED', 'p', '{"dueDate": "9999-12-31T23:59:59-01:00"}'
			RETURNING id
		)
		INSERT INTO outbox (lo, hi) SELECT id, id + 1 FROM moved`, task)
}

// Exec runs one statement and fails the test on an error.
func (b *Bundle) Exec(sql string, args ...any) {
	b.T.Helper()
	_, err := b.Pool.Exec(b.Ctx, sql, args...)
	require.NoError(b.T, err)
}

// Force runs one statement with the triggers off, so that a test can write a task that no
// legal transition leads to.
func (b *Bundle) Force(sql string, args ...any) {
	b.T.Helper()
	require.NoError(b.T, pgx.BeginFunc(b.Ctx, b.Pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(b.Ctx, "SET LOCAL session_replication_role = replica")
		require.NoError(b.T, err)
		_, err = tx.Exec(b.Ctx, sql, args...)
		return err
	}))
}

// Ask returns the only value of a query's only row.
func Ask[T any](b *Bundle, sql string, args ...any) (value T) {
	b.T.Helper()
	require.NoError(b.T, b.Pool.QueryRow(b.Ctx, sql, args...).Scan(&value))
	return value
}

// AwaitPublished waits until the outbox is empty.
func (b *Bundle) AwaitPublished() {
	b.T.Helper()
	WaitFor(b.T, "the outbox to be empty", func() bool { return Ask[int](b, "SELECT count(*) FROM outbox") == 0 })
}

// EventIDs returns the ids of a task's first n events.
func EventIDs(task uuid.UUID, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = outbox.EventID(task, int32(i+1)).String()
	}
	return ids
}

// WaitFor polls until met returns true, and fails the test after Patience.
func WaitFor(t *testing.T, what string, met func() bool) {
	t.Helper()
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()

	for deadline := time.Now().Add(Patience); !met(); <-tick.C {
		if time.Now().After(deadline) {
			require.FailNow(t, "waited in vain for "+what)
		}
	}
}

// Receive returns the next value of a channel, and fails the test after Patience.
func Receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(Patience):
		require.FailNow(t, "nothing came in time")
		panic("unreachable")
	}
}

// Log keeps the text of a logger. Safe for concurrent use.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

// Write appends to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Says reports whether the log contains text.
func (l *Log) Says(text string) bool { return strings.Contains(l.String(), text) }
