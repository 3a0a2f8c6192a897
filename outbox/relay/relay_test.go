package relay_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/relay"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

func TestRelayTellsEveryFlushInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one, two := b.Task(), b.Task()
	b.Flush(one, two, one)
	b.Flush(one)
	r := b.Relay(b.Bus)
	b.AwaitPublished()
	b.Flush(two)
	b.AwaitPublished()
	require.Equal(t, []string{
		outbox.EventID(one, 1).String(), outbox.EventID(two, 1).String(), outbox.EventID(one, 2).String(), outbox.EventID(one, 3).String(),
		outbox.EventID(two, 2).String(),
	}, b.Bus.DeliveredIDs())
	require.EqualValues(t, 5, r.Published())
	require.Equal(t, 3, ask[int](b, "SELECT count(*) FROM outbox_published"))
}

func TestRelayIsWokenAndDoesNotWaitForItsPoll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.PollInterval = time.Hour })
	outboxtest.WaitFor(t, "the relay to lead", r.Leads)
	task := b.Task()
	for range 3 {
		b.Flush(task)
		r.Wake()
		b.tells(task)
	}
}

func (b *testBundle) tells(task uuid.UUID) {
	b.T.Helper()
	n := ask[int](b, "SELECT count(*) FROM task_event WHERE task_id = $1", task)
	outboxtest.WaitFor(b.T, "the events to be told", func() bool { return len(b.Bus.StoredIDs()) == n })
}

// What the engine keeps for itself is not told, and does not stay.
func TestMovesForTheAuditTrailAreNotTold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.Task()
	b.FlushOf("released", task, task)
	b.FlushOf("redriven", task)
	r := b.Relay(b.Bus)
	b.AwaitPublished()
	require.Empty(t, b.Bus.DeliveredIDs())
	require.Zero(t, r.Failures())
}

// Pauses grow while the bus is away, and are short again after it was back.
func TestPausesGrowAndAreForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var mu sync.Mutex
	var pauses []time.Duration
	handler := attrs(func(name string, value slog.Value) {
		if name == "again_in" {
			mu.Lock()
			defer mu.Unlock()
			pauses = append(pauses, value.Duration())
		}
	})
	var away atomic.Int64
	away.Store(5)
	b.Bus.Before = func([]outbox.Message) error {
		if away.Add(-1) >= 0 {
			return errors.New("away")
		}
		return nil
	}
	task := b.Task()
	b.Flush(task)
	b.Relay(b.Bus, func(cfg *relay.Config) {
		cfg.Retry.MaxBackoff, cfg.Logger = 4*time.Millisecond, slog.New(handler)
	})
	b.AwaitPublished()
	away.Store(2)
	b.Flush(task)
	b.AwaitPublished()
	mu.Lock()
	defer mu.Unlock()
	ms := time.Millisecond
	require.Equal(t, []time.Duration{ms, 2 * ms, 4 * ms, 4 * ms, 4 * ms, ms, 2 * ms}, pauses)
}

// A bus that cannot even say how far it has come is away: it is asked as the table
// says, and not as often as the database.
func TestEventPublishingCountsATailThatCannotBeRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Flush(b.Task())
	bus := &deafBus{Bus: b.Bus}
	bus.deaf.Store(true)
	r := b.Relay(bus, func(cfg *relay.Config) { cfg.Retry.Retries, cfg.Retry.OpenFor = 3, time.Hour })
	outboxtest.WaitFor(t, "the breaker to open", func() bool { return r.Breaker().Status().State == retry.Open })
	require.EqualValues(t, 4, r.Failures())
	bus.deaf.Store(false)
	r.Recheck()
	b.AwaitPublished()
}

// deafBus does not answer questions about its stream.
type deafBus struct {
	*outboxtest.Bus
	deaf atomic.Bool
}

func (d *deafBus) Tail(ctx context.Context) (uint64, time.Time, error) {
	if d.deaf.Load() {
		return 0, time.Time{}, errors.New("away")
	}
	return d.Bus.Tail(ctx)
}

// A bus that says it is back is not kept waiting for.
func TestReconnectedBusIsTriedThroughTheOpenBreaker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var back atomic.Bool
	b.Bus.Before = func([]outbox.Message) error {
		if !back.Load() {
			return errors.New("away")
		}
		return nil
	}
	task := b.Task()
	b.Flush(task)
	r := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.Retry.Retries, cfg.Retry.OpenFor = 1, time.Hour })
	outboxtest.WaitFor(t, "the breaker to open", func() bool { return r.Breaker().Status().State == retry.Open })
	back.Store(true)
	r.Recheck()
	b.AwaitPublished()
	require.Equal(t, retry.Closed, r.Breaker().Status().State)
}

// attrs is a log handler that hears attributes.
type attrs func(name string, value slog.Value)

func (a attrs) Enabled(context.Context, slog.Level) bool { return true }
func (a attrs) WithAttrs([]slog.Attr) slog.Handler       { return a }
func (a attrs) WithGroup(string) slog.Handler            { return a }
func (a attrs) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(attr slog.Attr) bool { a(attr.Key, attr.Value); return true })
	return nil
}

// kill ends the session of the relay that leads.
func (b *testBundle) kill() {
	b.T.Helper()
	require.True(b.T, ask[bool](b, `
		SELECT pg_terminate_backend(l.backend_pid)
		FROM relay_leader l
		WHERE l.holder <> ''`))
}

// silentBus takes everything and never answers.
type silentBus struct {
	*outboxtest.Bus
	asked chan struct{}
}

func (s silentBus) Publish(ctx context.Context, _ []outbox.Message) (uint64, error) {
	s.asked <- struct{}{}
	<-ctx.Done()
	return 0, ctx.Err()
}

// A round has as long as it takes, but for the last words of a relay that stops.
func TestRelayStopsThoughTheBusIsSilent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Flush(b.Task())
	bus := silentBus{b.Bus, make(chan struct{}, 1)}
	r := b.Relay(bus)
	outboxtest.Receive(t, bus.asked)
	r.Stop()
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM outbox"))
}

// Between the bus's yes and our note of it everything can happen. The next leader reads
// what the stream has behind what was noted, and does not tell it again, however long ago
// that was.
func TestRelayKilledBetweenPublishAndNote(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var once sync.Once
	b.Bus.After = func() { once.Do(b.kill) }
	task := b.Task()
	b.Flush(task, task)
	b.Relay(b.Bus)
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 2), b.Bus.DeliveredIDs())
	require.Equal(t, int64(2), ask[int64](b, "SELECT last_seq FROM outbox_published"))
	b.Flush(task)
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 3), b.Bus.DeliveredIDs())
}

// A process that is asked to stop tells first what it has committed.
func TestRelayThatIsAskedToStopTellsWhatIsCommitted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	entered, proceed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.Bus.After = func() {
		once.Do(func() {
			close(entered)
			<-proceed
		})
	}
	task := b.Task()
	b.Flush(task)
	r := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.RangesPerBatch = 1 })
	outboxtest.Receive(t, entered)
	for range 5 {
		b.Flush(task)
	}
	r.RequestStop()
	close(proceed)
	r.Stop()
	require.Equal(t, outboxtest.EventIDs(task, 6), b.Bus.DeliveredIDs())
	require.Zero(t, ask[int](b, "SELECT count(*) FROM outbox"))
}

// Three processes move twenty tasks, and a real bus holds the outcome: every event
// once, and those of a task in the order in which they happened.
func TestOrderOfATaskOverProcessesAndARealBus(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bus, err := natsbus.Open(b.Ctx, natsbus.Config{StoreDir: t.TempDir(), NoSync: true, Logger: slog.New(slog.NewTextHandler(b.Log, nil))})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bus.Close(context.WithoutCancel(b.Ctx))) })
	r := b.Relay(bus, func(cfg *relay.Config) { cfg.RangesPerBatch = 7 })

	const tasks, flushes, width = 20, 60, 5
	all := make([]uuid.UUID, tasks)
	for i := range all {
		all[i] = b.Task()
	}
	var movers errgroup.Group
	for mover := range 3 {
		movers.Go(func() error {
			return move(b, mover, flushes, width, all)
		})
	}
	require.NoError(t, movers.Wait())
	b.AwaitPublished()

	seqOf := map[string]int32{}
	taskOf := map[string]uuid.UUID{}
	total := 0
	for _, task := range all {
		n := ask[int](b, "SELECT count(*) FROM task_event WHERE task_id = $1", task)
		total += n
		for i, id := range outboxtest.EventIDs(task, n) {
			seqOf[id], taskOf[id] = int32(i+1), task
		}
	}
	require.Equal(t, 3*flushes*width, total)
	last, _, err := bus.Tail(b.Ctx)
	require.NoError(t, err)
	require.EqualValues(t, total, last, "every event once")
	reached := map[uuid.UUID]int32{}
	for seq := uint64(1); seq <= last; seq++ {
		id, err := bus.Stored(b.Ctx, seq)
		require.NoError(t, err)
		require.Equal(t, reached[taskOf[id]]+1, seqOf[id], "at %d of the stream", seq)
		reached[taskOf[id]]++
	}
	require.EqualValues(t, total, r.Published())
}

// move makes moves as a process of the engine does: its own block of event ids, the
// rows locked, and the outbox row last.
func move(b *testBundle, mover, flushes, width int, tasks []uuid.UUID) error {
	var next int64
	if err := b.Pool.QueryRow(b.Ctx, "SELECT nextval('task_event_id_seq') - 19999").Scan(&next); err != nil {
		return err
	}
	for n := range flushes {
		var some []uuid.UUID
		for i := range width {
			some = append(some, tasks[(n*7+mover*3+i*4)%len(tasks)])
		}
		err := pgx.BeginFunc(b.Ctx, b.Pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(b.Ctx, `
				WITH locked AS MATERIALIZED (
					SELECT task_id FROM task WHERE task_id = ANY ($1) ORDER BY task_id FOR UPDATE
				),
				moved AS (
					UPDATE task t SET version = t.version + 1, status = 'ASSIGNED', assignee_id = 'ann'
					FROM locked
					WHERE t.task_id = locked.task_id
					RETURNING t.task_id, t.version - 1 AS seq
				),
				new_event AS (
					INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
					SELECT $2::bigint + row_number() OVER () - 1, task_id, now(), seq, 0, 'started', 'PENDING', 'ASSIGNED', 'm' FROM moved
					RETURNING id
				)
				INSERT INTO outbox (lo, hi) SELECT min(id), max(id) + 1 FROM new_event`, some, next)
			return err
		})
		if err != nil {
			return err
		}
		next += int64(width)
	}
	return nil
}
