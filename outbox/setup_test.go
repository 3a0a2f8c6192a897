package outbox_test

import (
	"bytes"
	"context"
	"log/slog"
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
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// patience bounds every wait of a test; none is expected to last.
const patience = 30 * time.Second

// testBundle is a database with an outbox, and a bus that remembers.
type testBundle struct {
	t    *testing.T
	ctx  context.Context
	pool *pgxpool.Pool
	bus  *memoryBus
	log  *logBook

	wentBack bool // the database, in this test
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	b := &testBundle{t: t, ctx: ctx, pool: dbtest.Get(t), bus: newMemoryBus(), log: &logBook{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%.4000s", b.log)
		} else if !b.wentBack && b.pool.Ping(b.ctx) == nil { // and the test has not closed it
			require.Zero(t, ask[int](b, "SELECT count(*) FROM event_unknown"), "nothing was lost here")
		}
	})
	return b
}

// relay runs one until the test ends, in a quick rhythm.
func (b *testBundle) relay(bus outbox.Publisher, change ...func(*outbox.RelayConfig)) *running {
	b.t.Helper()
	return b.relayOn(b.pool, bus, change...)
}

// relayOn runs one with connections of its own.
func (b *testBundle) relayOn(pool *pgxpool.Pool, bus outbox.Publisher, change ...func(*outbox.RelayConfig)) *running {
	b.t.Helper()
	cfg := outbox.RelayConfig{
		Poll: 5 * time.Millisecond, Stand: 20 * time.Millisecond,
		Retry:  retry.Policy{Backoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, OpenFor: 20 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	for _, fn := range change {
		fn(&cfg)
	}
	r := &running{Relay: outbox.NewRelay(pool, bus, cfg)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx) }()
	r.ask = cancel
	r.stop = sync.OnceFunc(func() {
		cancel()
		receive(b.t, ended)
	})
	b.t.Cleanup(r.stop)
	return r
}

// running is a relay at work.
type running struct {
	*outbox.Relay
	ask  func() // asks it to stop
	stop func() // and waits until it has
}

// task inserts one that has no history yet.
func (b *testBundle) task() uuid.UUID {
	b.t.Helper()
	id := uuid.Must(uuid.NewV7())
	b.exec(`
		INSERT INTO task (task_id, job_id, created_at, version, type, lane, revision, priority, tenant_id, workflow_id, definition_id, executor, correlation_id, input)
		VALUES ($1, 1, now(), 1, 'AUTOMATED', 'task-execution-automated', 0, 3, '', 'wf', 'd', 'noop', 'c', '{}')`, id)
	return id
}

// flush commits events of tasks as the engine does: a contiguous range, and one row
// that says so. Each task named gets its next event.
func (b *testBundle) flush(tasks ...uuid.UUID) {
	b.t.Helper()
	b.flushOf("started", tasks...)
}

func (b *testBundle) flushOf(kind string, tasks ...uuid.UUID) {
	b.t.Helper()
	require.NoError(b.t, pgx.BeginFunc(b.ctx, b.pool, func(tx pgx.Tx) error {
		var end int64
		if err := tx.QueryRow(b.ctx, "SELECT nextval('task_event_id_seq')").Scan(&end); err != nil {
			return err
		}
		lo := end - 19_999
		for i, task := range tasks {
			if _, err := tx.Exec(b.ctx, `
				INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
				SELECT $1, $2, now(), coalesce(max(seq), 0) + 1, 0, $3::text::task_event_type, 'PENDING', 'RUNNING', 'p'
				FROM task_event
				WHERE task_id = $2`, lo+int64(i), task, kind); err != nil {
				return err
			}
		}
		_, err := tx.Exec(b.ctx, "INSERT INTO outbox (lo, hi) VALUES ($1, $2)", lo, lo+int64(len(tasks)))
		return err
	}))
}

// flushUnspeakable commits an event of which no envelope can be made: in UTC its date
// has five digits.
func (b *testBundle) flushUnspeakable(task uuid.UUID) {
	b.t.Helper()
	b.exec(`
		WITH moved AS (
			INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor, payload)
			SELECT nextval('task_event_id_seq'), $1, now(), 1, 0, 'assigned', 'PENDING', 'ASSIGNED', 'p', '{"dueDate": "9999-12-31T23:59:59-01:00"}'
			RETURNING id
		)
		INSERT INTO outbox (lo, hi) SELECT id, id + 1 FROM moved`, task)
}

func (b *testBundle) exec(sql string, args ...any) {
	b.t.Helper()
	_, err := b.pool.Exec(b.ctx, sql, args...)
	require.NoError(b.t, err)
}

func ask[T any](b *testBundle, sql string, args ...any) (value T) {
	b.t.Helper()
	require.NoError(b.t, b.pool.QueryRow(b.ctx, sql, args...).Scan(&value))
	return value
}

// told waits until the outbox is empty.
func (b *testBundle) told() {
	b.t.Helper()
	waitFor(b.t, "the outbox to be empty", func() bool { return ask[int](b, "SELECT count(*) FROM outbox") == 0 })
}

// eventIDs are a task's first n.
func eventIDs(task uuid.UUID, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = outbox.EventID(task, int32(i+1)).String()
	}
	return ids
}

func waitFor(t *testing.T, what string, met func() bool) {
	t.Helper()
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !met(); <-tick.C {
		if time.Now().After(deadline) {
			require.FailNow(t, "waited in vain for "+what)
		}
	}
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		require.FailNow(t, "nothing came in time")
		panic("unreachable")
	}
}

type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logBook) says(what string) bool { return strings.Contains(l.String(), what) }
