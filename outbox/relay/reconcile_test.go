package relay_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/relay"
	"github.com/seed-3f7a0631/tes/outbox/relay/relaytest"
)

// publishedRounds tells a task's events one round at a time.
func (b *testBundle) publishedRounds(r *relaytest.Running, task uuid.UUID, n int) {
	b.T.Helper()
	for range n {
		b.Flush(task)
		r.Wake()
		b.AwaitPublished()
	}
}

// toldWhole waits until a task's first n events are all in the stream, and nothing waits.
func (b *testBundle) toldWhole(task uuid.UUID, n int) {
	b.T.Helper()
	outboxtest.WaitFor(b.T, "everything to be there", func() bool {
		return ask[int](b, "SELECT count(*) FROM outbox") == 0 && len(b.Bus.StoredIDs()) == n
	})
	require.ElementsMatch(b.T, outboxtest.EventIDs(task, n), b.Bus.StoredIDs())
}

// A bus says yes before its disk does, and then the power goes: what it acknowledged
// last is gone when it is back.
func TestStreamThatLostItsTailIsToldAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.Task()
	r := b.Relay(b.Bus)
	b.publishedRounds(r, task, 6)
	first := b.Bus.Deliveries()
	b.Bus.Truncate(4)
	r.Recheck()
	outboxtest.WaitFor(t, "the lost ones to be told again", func() bool { return len(b.Bus.StoredIDs()) == 6 })
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 6), b.Bus.StoredIDs())
	require.Equal(t, first[4:], b.Bus.Deliveries()[6:], "only these, and equal to the byte")
}

// The loss is noticed while a round is on its way and more is waiting. What is stored
// meanwhile stands at the sequences of what was lost, and must not hide it.
func TestLossUnderLoadIsToldAgain(t *testing.T) {
	t.Parallel()
	const rounds, before, survive = 30, 10, 5
	b := setup(t)
	task := b.Task()
	for range rounds {
		b.Flush(task)
	}
	proceed, entered := make(chan struct{}), make(chan struct{}, 1000)
	b.Bus.Before = func([]outbox.Message) error {
		entered <- struct{}{}
		<-proceed
		return nil
	}
	r := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.RangesPerBatch = 1 })
	for range before {
		outboxtest.Receive(t, entered)
		proceed <- struct{}{}
	}
	outboxtest.Receive(t, entered) // one is on its way
	b.Bus.Truncate(survive)
	r.Recheck()
	close(proceed)
	b.toldWhole(task, rounds)
}

// Each third message takes the place of the one before it, which is lost. Whether that
// one was noted already is a matter of luck, and must not matter.
func TestLossBetweenTwoAcknowledgements(t *testing.T) {
	t.Parallel()
	const rounds = 90
	b := setup(t)
	task := b.Task()
	for range rounds {
		b.Flush(task)
	}
	n := 0
	b.Bus.Before = func([]outbox.Message) error {
		if n++; n <= rounds && n%3 == 0 {
			b.Bus.Truncate(len(b.Bus.StoredIDs()) - 1)
		}
		return nil
	}
	b.Relay(b.Bus, func(cfg *relay.Config) { cfg.RangesPerBatch = 1 })
	b.toldWhole(task, rounds)
}

// A flush that tells nothing has no place in the stream. Noted at the end of what was
// told before it, it would be asked for that one, and have nothing to look for.
func TestFlushThatToldNothingSpeaksForNoOther(t *testing.T) {
	t.Parallel()
	for name, flushes := range map[string][]string{
		"a round of its own":     {"started", "", "released", ""},
		"the last of a round":    {"started", "released", ""},
		"the first of a round":   {"started", "", "released", "started", ""},
		"before more is told":    {"started", "", "released", "", "started", ""},
		"with what cannot be":    {"started", "", "unspeakable", ""},
		"as the last that is so": {"started", "unspeakable", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			task, told := b.Task(), 0
			r := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.PollInterval = time.Hour })
			outboxtest.WaitFor(t, "the lead", r.Leads)
			b.AwaitPublished()
			for _, kind := range flushes {
				switch kind {
				case "":
					r.Wake()
					b.AwaitPublished()
				case "unspeakable":
					b.FlushUnencodable(b.Task())
				case "released":
					b.FlushOf(kind, b.Task())
				default:
					b.FlushOf(kind, task)
					told++
				}
			}
			b.Bus.Truncate(0)
			r.Recheck()
			outboxtest.WaitFor(t, "everything to be told again", func() bool { return len(b.Bus.StoredIDs()) == told })
			b.AwaitPublished()
			require.Equal(t, outboxtest.EventIDs(task, told), b.Bus.StoredIDs())
		})
	}
}

// The bus comes back while an acknowledgement waits to be noted, and has lost what it
// acknowledged.
func TestLossOfWhatIsNotNotedYet(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.Task()
	r := b.Relay(b.Bus)
	b.publishedRounds(r, task, 3)
	var once sync.Once
	b.Bus.After = func() {
		once.Do(func() {
			b.Bus.Truncate(3)
			r.Recheck()
		})
	}
	b.Flush(task)
	r.Wake()
	outboxtest.WaitFor(t, "the fourth to be there", func() bool { return len(b.Bus.StoredIDs()) == 4 })
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 4), b.Bus.StoredIDs())
}

// A server of a cluster loses its tail, and our connection, which is to another, stays.
// The next acknowledgement shows it, however much it was.
func TestLongTailLostWithoutAReconnect(t *testing.T) {
	t.Parallel()
	const rounds = 600
	b := setup(t)
	task := b.Task()
	for range rounds {
		b.Flush(task)
	}
	r := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.RangesPerBatch = 1 })
	b.AwaitPublished()
	r.Recheck()
	b.publishedRounds(r, task, 1) // and the check is behind it
	b.Bus.Truncate(0)
	b.Flush(task)
	r.Wake()
	b.toldWhole(task, rounds+2)
}

func TestAnotherStreamIsToldEverythingThatIsRemembered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.Task()
	r := b.Relay(b.Bus)
	b.publishedRounds(r, task, 3)
	r.Stop()
	b.Exec("UPDATE outbox_published SET published_at = now() - interval '2 days' WHERE id = (SELECT min(id) FROM outbox_published)")
	b.Bus.Recreate()
	r = b.Relay(b.Bus)
	outboxtest.WaitFor(t, "the others to be told again", func() bool { return len(b.Bus.StoredIDs()) >= 2 })
	b.AwaitPublished()
	require.Contains(t, b.Bus.StoredIDs(), outboxtest.EventIDs(task, 3)[2])
	// And then it is at rest.
	r.Recheck()
	b.publishedRounds(r, task, 1)
	n := len(b.Bus.DeliveredIDs())
	r.Recheck()
	b.publishedRounds(r, task, 1)
	require.Len(t, b.Bus.DeliveredIDs(), n+1)
}

// The sequence of our last event was handed out again, to somebody else's.
func TestSequenceHandedOutAgainIsNoticed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.Task()
	r := b.Relay(b.Bus)
	b.publishedRounds(r, task, 3)
	b.Bus.SetID(3, "somebody else's")
	r.Recheck()
	outboxtest.WaitFor(t, "it to be told again", func() bool { return len(b.Bus.DeliveredIDs()) > 3 })
	b.AwaitPublished()
	require.Contains(t, b.Bus.StoredIDs(), outboxtest.EventIDs(task, 3)[2])
}

func TestStreamThatIsWholeIsNotToldAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.Task()
	r := b.Relay(b.Bus)
	for range 3 {
		b.publishedRounds(r, task, 2)
		r.Recheck()
	}
	b.publishedRounds(r, task, 1)
	require.Equal(t, outboxtest.EventIDs(task, 7), b.Bus.DeliveredIDs())
	r.Stop()
	r = b.Relay(b.Bus)
	b.publishedRounds(r, task, 1)
	require.Equal(t, outboxtest.EventIDs(task, 8), b.Bus.DeliveredIDs())
}

// The disk of the embedded bus is put back to an earlier day, and then lost.
func TestBusRestoredFromABackup(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dir, backup := filepath.Join(t.TempDir(), "nats"), filepath.Join(t.TempDir(), "backup")
	open := func(dir string) *natsbus.Bus {
		bus, err := natsbus.Open(b.Ctx, natsbus.Config{StoreDir: dir, NoSync: true, Logger: slog.New(slog.NewTextHandler(b.Log, nil))})
		require.NoError(t, err)
		t.Cleanup(func() { _ = bus.Close(context.Background()) })
		return bus
	}
	task := b.Task()
	session := func(dir string, rounds int) (ids []string) {
		bus := open(dir)
		r := b.Relay(bus)
		outboxtest.WaitFor(t, "the relay to lead", r.Leads)
		b.publishedRounds(r, task, rounds)
		r.Stop()
		last, _, err := bus.Tail(b.Ctx)
		require.NoError(t, err)
		for seq := uint64(1); seq <= last; seq++ {
			id, err := bus.Stored(b.Ctx, seq)
			require.NoError(t, err)
			ids = append(ids, id)
		}
		require.NoError(t, bus.Close(b.Ctx))
		return ids
	}
	require.Equal(t, outboxtest.EventIDs(task, 4), session(dir, 4))
	require.NoError(t, os.CopyFS(backup, os.DirFS(dir)))
	require.Equal(t, outboxtest.EventIDs(task, 7), session(dir, 3))
	require.Equal(t, outboxtest.EventIDs(task, 8), session(backup, 1), "the three between are told before the new one")
	require.Equal(t, outboxtest.EventIDs(task, 9), session(filepath.Join(t.TempDir(), "new"), 1), "an empty bus is told all")
}

// The stream is gone, and with it more than the database moves in one statement before it
// ends that for its time. The relay is killed half-way. Everything is told again by pages:
// nothing before all is back, and each task's events in order.
func TestOutboxRequeueByPages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Pool = dbtest.New(t)
	const lost = 20_000
	task := b.Task()
	b.Flush(task)
	first := b.Relay(b.Bus)
	b.AwaitPublished()
	first.Stop()
	b.Exec("UPDATE outbox_published SET last_seq = 1, id = 1")
	b.Exec(`
		INSERT INTO outbox_published (id, lo, hi, last_seq)
		SELECT n, n + 1000000000, n + 1000000001, n FROM generate_series(2::bigint, $1::bigint) n`, lost)
	b.Exec("SELECT setval('outbox_id_seq', $1)", lost)
	b.Flush(task)
	b.Exec("WITH told AS (DELETE FROM outbox RETURNING id, lo, hi) INSERT INTO outbox_published SELECT id, lo, hi, id FROM told")
	b.Flush(task)
	b.Exec(`
		CREATE FUNCTION too_long() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF (SELECT count(*) FROM fresh) > 700 THEN
				RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = 'query_canceled';
			END IF;
			RETURN NULL;
		END
		$$`)
	b.Exec("CREATE TRIGGER too_long AFTER INSERT ON outbox REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION too_long()")
	b.Bus.Recreate()
	b.Bus.Before = func([]outbox.Message) error {
		if left := ask[int](b, "SELECT count(*) FROM outbox_published"); left > 0 && len(b.Bus.StoredIDs()) == 0 {
			t.Errorf("an event is told while %d flushes are not back", left)
		}
		return nil
	}

	r := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.RequeuePage, cfg.RangesPerBatch = 2000, 500 })
	outboxtest.WaitFor(t, "some pages to be back", func() bool { return ask[int](b, "SELECT count(*) FROM outbox") > lost/10 })
	b.kill()
	outboxtest.WaitFor(t, "all to be told", func() bool { return len(b.Bus.StoredIDs()) == 3 })
	require.Equal(t, outboxtest.EventIDs(task, 3), b.Bus.DeliveredIDs()[1:], "the first was told before the stream was lost")
	require.Positive(t, r.Failures(), "it was not killed half-way")
}

// The stream has lost more than is looked at round by round. What survived is not told again.
func TestLossBeyondTheRememberedRounds(t *testing.T) {
	t.Parallel()
	const rounds, survive = 1200, 700
	b := setup(t)
	task := b.Task()
	for range rounds {
		b.Flush(task)
	}
	r := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.RangesPerBatch = 1 })
	b.AwaitPublished()
	b.Bus.Truncate(survive)
	r.Recheck()
	outboxtest.WaitFor(t, "the lost ones to be told again", func() bool { return len(b.Bus.StoredIDs()) == rounds })
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, rounds), b.Bus.StoredIDs())
	require.Less(t, len(b.Bus.DeliveredIDs())-rounds, 2*(rounds-survive), "much that survived was told again")
}

// A page is whole rounds, oldest first, and names where the next begins.
func TestOutboxRequeue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, row := range [][2]int64{{5, 10}, {6, 10}, {7, 20}, {8, 20}, {9, 30}, {10, 0}} {
		b.Exec("INSERT INTO outbox_published (id, lo, hi, last_seq) VALUES ($1::bigint, $1::bigint, $1::bigint + 1, $2)", row[0], row[1])
	}
	q := db.New(b.Pool)
	for _, tt := range []struct {
		after int64
		want  db.OutboxRequeueRow
		back  []int64
	}{
		{0, db.OutboxRequeueRow{Flushes: 4, LastSeq: 20}, []int64{5, 6, 7, 8}},
		{20, db.OutboxRequeueRow{Flushes: 1, LastSeq: 30}, []int64{5, 6, 7, 8, 9}},
		{30, db.OutboxRequeueRow{}, []int64{5, 6, 7, 8, 9}},
	} {
		page, err := q.OutboxRequeue(b.Ctx, db.OutboxRequeueParams{AfterSeq: tt.after, Page: 3})
		require.NoError(t, err)
		require.Equal(t, tt.want, page)
		require.Equal(t, tt.back, ask[[]int64](b, "SELECT array_agg(id ORDER BY id) FROM outbox"))
	}
	require.Equal(t, int64(10), ask[int64](b, "SELECT id FROM outbox_published"), "what told nothing has no place, and stays")
}
