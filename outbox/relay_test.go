package outbox_test

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

func TestRelayTellsEveryFlushInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one, two := b.task(), b.task()
	b.flush(one, two, one)
	b.flush(one)
	r := b.relay(b.bus)
	b.told()
	b.flush(two)
	b.told()
	require.Equal(t, []string{
		outbox.EventID(one, 1).String(), outbox.EventID(two, 1).String(), outbox.EventID(one, 2).String(), outbox.EventID(one, 3).String(),
		outbox.EventID(two, 2).String(),
	}, b.bus.deliveredIDs())
	require.EqualValues(t, 5, r.Published())
	require.Equal(t, 3, ask[int](b, "SELECT count(*) FROM outbox_published"))
}

func TestRelayIsWokenAndDoesNotWaitForItsPoll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Poll = time.Hour })
	waitFor(t, "the relay to lead", r.Leads)
	task := b.task()
	for range 3 {
		b.flush(task)
		r.Wake()
		b.tells(task)
	}
}

func (b *testBundle) tells(task uuid.UUID) {
	b.t.Helper()
	n := ask[int](b, "SELECT count(*) FROM task_event WHERE task_id = $1", task)
	waitFor(b.t, "the events to be told", func() bool { return len(b.bus.ids()) == n })
}

// What the engine keeps for itself is not told, and does not stay.
func TestMovesForTheAuditTrailAreNotTold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.task()
	b.flushOf("released", task, task)
	b.flushOf("redriven", task)
	r := b.relay(b.bus)
	b.told()
	require.Empty(t, b.bus.deliveredIDs())
	require.Zero(t, r.Failures())
}

func TestRefusedBatchIsTriedAgainInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var refusals atomic.Int64
	b.bus.before = func([]outbox.Message) error {
		if refusals.Add(1) <= 4 {
			return errors.New("the bus is away")
		}
		return nil
	}
	task := b.task()
	for range 10 {
		b.flush(task)
	}
	r := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Flushes = 2 })
	b.told()
	require.Equal(t, eventIDs(task, 10), b.bus.deliveredIDs())
	require.EqualValues(t, 4, r.Failures())
}

// A round can fail before the acknowledgement of the one before it is read.
func TestBusThatTakesEveryOtherRound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var rounds atomic.Int64
	b.bus.before = func([]outbox.Message) error {
		if n := rounds.Add(1); n%2 == 0 && n < 40 {
			return errors.New("away")
		}
		return nil
	}
	task := b.task()
	for range 40 {
		b.flush(task)
	}
	b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Flushes = 1 })
	b.told()
	require.Equal(t, eventIDs(task, 40), b.bus.deliveredIDs())
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
	b.bus.before = func([]outbox.Message) error {
		if away.Add(-1) >= 0 {
			return errors.New("away")
		}
		return nil
	}
	task := b.task()
	b.flush(task)
	b.relay(b.bus, func(cfg *outbox.RelayConfig) {
		cfg.Retry.MaxBackoff, cfg.Logger = 4*time.Millisecond, slog.New(handler)
	})
	b.told()
	away.Store(2)
	b.flush(task)
	b.told()
	mu.Lock()
	defer mu.Unlock()
	ms := time.Millisecond
	require.Equal(t, []time.Duration{ms, 2 * ms, 4 * ms, 4 * ms, 4 * ms, ms, 2 * ms}, pauses)
}

// Max retries 10 means that the breaker opens and the row waits. It never means that a
// row is dropped: this bus is away five times as long.
func TestEventPublishingOpensTheBreakerAndDropsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	states := make(chan retry.State, 1000)
	var rounds atomic.Int64
	b.bus.before = func([]outbox.Message) error {
		if rounds.Add(1) <= 50 {
			return errors.New("away")
		}
		return nil
	}
	task := b.task()
	b.flush(task, task)
	b.flush(task)
	r := b.relay(b.bus, func(cfg *outbox.RelayConfig) {
		cfg.Retry.MinExecutions = 1000 // so that it is the retries that are used up, not the rate
		cfg.OnBreaker = func(s retry.Status) { states <- s.State }
	})
	for range 11 {
		require.Equal(t, retry.Open, receive(t, states))
		require.Equal(t, retry.HalfOpen, receive(t, states))
	}
	b.told()
	require.Equal(t, eventIDs(task, 3), b.bus.deliveredIDs())
	require.EqualValues(t, 50, r.Failures())
	require.Equal(t, retry.Closed, r.Breaker().Status().State)
}

// A bus that takes every other round is left alone for a while too.
func TestEventPublishingOpensTheBreakerAtHalf(t *testing.T) {
	t.Parallel()
	b := setup(t)
	opened := make(chan struct{}, 1000)
	var rounds atomic.Int64
	b.bus.before = func([]outbox.Message) error {
		if n := rounds.Add(1); n%2 == 0 && n < 20 {
			return errors.New("away")
		}
		return nil
	}
	task := b.task()
	b.relay(b.bus, func(cfg *outbox.RelayConfig) {
		cfg.Flushes = 1
		cfg.OnBreaker = func(s retry.Status) {
			if s.State == retry.Open {
				opened <- struct{}{}
			}
		}
	})
	for range 20 {
		b.flush(task)
	}
	receive(t, opened)
	b.told()
	require.Equal(t, eventIDs(task, 20), b.bus.deliveredIDs())
}

// A bus that cannot even say how far it has come is away: it is asked as the table
// says, and not as often as the database.
func TestEventPublishingCountsATailThatCannotBeRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.flush(b.task())
	bus := &deafBus{memoryBus: b.bus}
	bus.deaf.Store(true)
	r := b.relay(bus, func(cfg *outbox.RelayConfig) { cfg.Retry.Retries, cfg.Retry.OpenFor = 3, time.Hour })
	waitFor(t, "the breaker to open", func() bool { return r.Breaker().Status().State == retry.Open })
	require.EqualValues(t, 4, r.Failures())
	bus.deaf.Store(false)
	r.Recheck()
	b.told()
}

// deafBus does not answer questions about its stream.
type deafBus struct {
	*memoryBus
	deaf atomic.Bool
}

func (d *deafBus) Tail(ctx context.Context) (uint64, time.Time, error) {
	if d.deaf.Load() {
		return 0, time.Time{}, errors.New("away")
	}
	return d.memoryBus.Tail(ctx)
}

// A bus that says it is back is not kept waiting for.
func TestReconnectedBusIsTriedThroughTheOpenBreaker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var back atomic.Bool
	b.bus.before = func([]outbox.Message) error {
		if !back.Load() {
			return errors.New("away")
		}
		return nil
	}
	task := b.task()
	b.flush(task)
	r := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Retry.Retries, cfg.Retry.OpenFor = 1, time.Hour })
	waitFor(t, "the breaker to open", func() bool { return r.Breaker().Status().State == retry.Open })
	back.Store(true)
	r.Recheck()
	b.told()
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

// tooLarge is what a bus says of a message that it can never take.
type tooLarge struct{ id string }

func (e *tooLarge) Error() string     { return "message " + e.id + " is too large" }
func (e *tooLarge) MessageID() string { return e.id }

func TestMessageThatNeverHealsIsParkedAndTheRestGoesOn(t *testing.T) {
	t.Parallel()
	for name, position := range map[string]int{"first": 0, "in the middle": 2, "last": 4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			task := b.task()
			all := eventIDs(task, 6)
			never := all[position]
			b.bus.before = func(batch []outbox.Message) error {
				for _, m := range batch {
					if m.ID == never {
						return fmt.Errorf("publish: %w", &tooLarge{never})
					}
				}
				return nil
			}
			b.flush(task, task, task)
			b.flush(task, task)
			r := b.relay(b.bus)
			b.told()
			rest := append(append([]string{}, all[:position]...), all[position+1:5]...)
			require.Equal(t, rest, b.bus.deliveredIDs())
			require.Zero(t, r.Failures(), "it is not an outage")
			require.Equal(t, "message "+never+" is too large",
				ask[string](b, "SELECT p.reason FROM outbox_parked p JOIN task_event e ON e.id = p.event_id WHERE e.seq = $1", position+1))

			// A look at the tail does not take the parked one for lost.
			r.stop()
			b.relay(b.bus)
			b.flush(task)
			b.told()
			require.Equal(t, append(rest, all[5]), b.bus.deliveredIDs())
		})
	}
}

func TestRoundOfParkedEventsOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.task()
	b.bus.before = func(batch []outbox.Message) error { return &tooLarge{batch[0].ID} }
	b.flush(task)
	b.relay(b.bus)
	b.told()
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM outbox_parked"))
}

// kill ends the session of the relay that leads.
func (b *testBundle) kill() {
	b.t.Helper()
	require.True(b.t, ask[bool](b, `
		SELECT pg_terminate_backend(l.backend_pid)
		FROM relay_leader l
		WHERE l.holder <> ''`))
}

// What no envelope can be made of is parked, and those behind it go on.
func TestEventThatCannotBeWrittenIsParked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.task()
	broken := b.task()
	b.flush(task)
	b.flushUnspeakable(broken)
	b.flush(task)
	b.relay(b.bus)
	b.told()
	require.Equal(t, eventIDs(task, 2), b.bus.deliveredIDs())
	require.Equal(t, broken, ask[uuid.UUID](b, "SELECT task_id FROM outbox_parked"))
	require.Contains(t, ask[string](b, "SELECT reason FROM outbox_parked"), "year outside of range")
}

// silentBus takes everything and never answers.
type silentBus struct {
	*memoryBus
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
	b.flush(b.task())
	bus := silentBus{b.bus, make(chan struct{}, 1)}
	r := b.relay(bus)
	receive(t, bus.asked)
	r.stop()
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM outbox"))
}

// Between the bus's yes and our note of it everything can happen. The next leader reads
// what the stream has behind what was noted, and does not tell it again, however long ago
// that was.
func TestRelayKilledBetweenPublishAndNote(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var once sync.Once
	b.bus.after = func() { once.Do(b.kill) }
	task := b.task()
	b.flush(task, task)
	b.relay(b.bus)
	b.told()
	require.Equal(t, eventIDs(task, 2), b.bus.deliveredIDs())
	require.Equal(t, int64(2), ask[int64](b, "SELECT last_seq FROM outbox_published"))
	b.flush(task)
	b.told()
	require.Equal(t, eventIDs(task, 3), b.bus.deliveredIDs())
}

func TestOneLeadsAndAnotherTakesOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.relay(b.bus, func(cfg *outbox.RelayConfig) {
		cfg.Retry, cfg.Stand = retry.Policy{Backoff: time.Hour, MaxBackoff: time.Hour}, time.Hour
	})
	waitFor(t, "the first to lead", first.Leads)
	second := b.relay(b.bus)
	third := b.relay(b.bus)
	task := b.task()
	b.flush(task)
	b.told()
	require.True(t, first.Leads())
	require.EqualValues(t, 1, first.Published())

	b.kill()
	waitFor(t, "another to lead", func() bool { return second.Leads() || third.Leads() })
	b.flush(task)
	b.told()
	require.False(t, first.Leads())
	require.False(t, second.Leads() && third.Leads())
	require.Equal(t, eventIDs(task, 2), b.bus.deliveredIDs())
}

func TestStoppedRelayHandsOverAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.relay(b.bus)
	waitFor(t, "the first to lead", first.Leads)
	first.stop()
	require.False(t, first.Leads())
	second := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Stand = time.Hour })
	waitFor(t, "the second to lead", second.Leads)
}

// A process that is asked to stop tells first what it has committed.
func TestRelayThatIsAskedToStopTellsWhatIsCommitted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	entered, proceed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.bus.after = func() {
		once.Do(func() {
			close(entered)
			<-proceed
		})
	}
	task := b.task()
	b.flush(task)
	r := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Flushes = 1 })
	receive(t, entered)
	for range 5 {
		b.flush(task)
	}
	r.ask()
	close(proceed)
	r.stop()
	require.Equal(t, eventIDs(task, 6), b.bus.deliveredIDs())
	require.Zero(t, ask[int](b, "SELECT count(*) FROM outbox"))
}

// Three processes move twenty tasks, and a real bus holds the outcome: every event
// once, and those of a task in the order in which they happened.
func TestOrderOfATaskOverProcessesAndARealBus(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bus, err := natsbus.Open(b.ctx, natsbus.Config{StoreDir: t.TempDir(), NoSync: true, Logger: slog.New(slog.NewTextHandler(b.log, nil))})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bus.Close(context.WithoutCancel(b.ctx))) })
	r := b.relay(bus, func(cfg *outbox.RelayConfig) { cfg.Flushes = 7 })

	const tasks, flushes, width = 20, 60, 5
	all := make([]uuid.UUID, tasks)
	for i := range all {
		all[i] = b.task()
	}
	var movers errgroup.Group
	for mover := range 3 {
		movers.Go(func() error {
			return move(b, mover, flushes, width, all)
		})
	}
	require.NoError(t, movers.Wait())
	b.told()

	seqOf := map[string]int32{}
	taskOf := map[string]uuid.UUID{}
	total := 0
	for _, task := range all {
		n := ask[int](b, "SELECT count(*) FROM task_event WHERE task_id = $1", task)
		total += n
		for i, id := range eventIDs(task, n) {
			seqOf[id], taskOf[id] = int32(i+1), task
		}
	}
	require.Equal(t, 3*flushes*width, total)
	last, _, err := bus.Tail(b.ctx)
	require.NoError(t, err)
	require.EqualValues(t, total, last, "every event once")
	reached := map[uuid.UUID]int32{}
	for seq := uint64(1); seq <= last; seq++ {
		id, err := bus.Stored(b.ctx, seq)
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
	if err := b.pool.QueryRow(b.ctx, "SELECT nextval('task_event_id_seq') - 19999").Scan(&next); err != nil {
		return err
	}
	for n := range flushes {
		var some []uuid.UUID
		for i := range width {
			some = append(some, tasks[(n*7+mover*3+i*4)%len(tasks)])
		}
		err := pgx.BeginFunc(b.ctx, b.pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(b.ctx, `
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
