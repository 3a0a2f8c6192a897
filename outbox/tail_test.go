package outbox_test

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

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// publishedRounds tells a task's events one round at a time.
func (b *testBundle) publishedRounds(r *running, task uuid.UUID, n int) {
	b.t.Helper()
	for range n {
		b.flush(task)
		r.Wake()
		b.told()
	}
}

// toldWhole waits until a task's first n events are all in the stream, and nothing waits.
func (b *testBundle) toldWhole(task uuid.UUID, n int) {
	b.t.Helper()
	waitFor(b.t, "everything to be there", func() bool {
		return ask[int](b, "SELECT count(*) FROM outbox") == 0 && len(b.bus.ids()) == n
	})
	require.ElementsMatch(b.t, eventIDs(task, n), b.bus.ids())
}

// A bus says yes before its disk does, and then the power goes: what it acknowledged
// last is gone when it is back.
func TestStreamThatLostItsTailIsToldAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.task()
	r := b.relay(b.bus)
	b.publishedRounds(r, task, 6)
	first := b.bus.list(true)
	b.bus.truncate(4)
	r.Recheck()
	waitFor(t, "the lost ones to be told again", func() bool { return len(b.bus.ids()) == 6 })
	b.told()
	require.Equal(t, eventIDs(task, 6), b.bus.ids())
	require.Equal(t, first[4:], b.bus.list(true)[6:], "only these, and equal to the byte")
}

// The loss is noticed while a round is on its way and more is waiting. What is stored
// meanwhile stands at the sequences of what was lost, and must not hide it.
func TestLossUnderLoadIsToldAgain(t *testing.T) {
	t.Parallel()
	const rounds, before, survive = 30, 10, 5
	b := setup(t)
	task := b.task()
	for range rounds {
		b.flush(task)
	}
	proceed, entered := make(chan struct{}), make(chan struct{}, 1000)
	b.bus.before = func([]outbox.Message) error {
		entered <- struct{}{}
		<-proceed
		return nil
	}
	r := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Flushes = 1 })
	for range before {
		receive(t, entered)
		proceed <- struct{}{}
	}
	receive(t, entered) // one is on its way
	b.bus.truncate(survive)
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
	task := b.task()
	for range rounds {
		b.flush(task)
	}
	n := 0
	b.bus.before = func([]outbox.Message) error {
		if n++; n <= rounds && n%3 == 0 {
			b.bus.truncate(len(b.bus.ids()) - 1)
		}
		return nil
	}
	b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Flushes = 1 })
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
			task, told := b.task(), 0
			r := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Poll = time.Hour })
			waitFor(t, "the lead", r.Leads)
			b.told()
			for _, kind := range flushes {
				switch kind {
				case "":
					r.Wake()
					b.told()
				case "unspeakable":
					b.flushUnspeakable(b.task())
				case "released":
					b.flushOf(kind, b.task())
				default:
					b.flushOf(kind, task)
					told++
				}
			}
			b.bus.truncate(0)
			r.Recheck()
			waitFor(t, "everything to be told again", func() bool { return len(b.bus.ids()) == told })
			b.told()
			require.Equal(t, eventIDs(task, told), b.bus.ids())
		})
	}
}

// The bus comes back while an acknowledgement waits to be noted, and has lost what it
// acknowledged.
func TestLossOfWhatIsNotNotedYet(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.task()
	r := b.relay(b.bus)
	b.publishedRounds(r, task, 3)
	var once sync.Once
	b.bus.after = func() {
		once.Do(func() {
			b.bus.truncate(3)
			r.Recheck()
		})
	}
	b.flush(task)
	r.Wake()
	waitFor(t, "the fourth to be there", func() bool { return len(b.bus.ids()) == 4 })
	b.told()
	require.Equal(t, eventIDs(task, 4), b.bus.ids())
}

// A server of a cluster loses its tail, and our connection, which is to another, stays.
// The next acknowledgement shows it, however much it was.
func TestLongTailLostWithoutAReconnect(t *testing.T) {
	t.Parallel()
	const rounds = 600
	b := setup(t)
	task := b.task()
	for range rounds {
		b.flush(task)
	}
	r := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Flushes = 1 })
	b.told()
	r.Recheck()
	b.publishedRounds(r, task, 1) // and the check is behind it
	b.bus.truncate(0)
	b.flush(task)
	r.Wake()
	b.toldWhole(task, rounds+2)
}

func TestAnotherStreamIsToldEverythingThatIsRemembered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.task()
	r := b.relay(b.bus)
	b.publishedRounds(r, task, 3)
	r.stop()
	b.exec("UPDATE outbox_published SET published_at = now() - interval '2 days' WHERE id = (SELECT min(id) FROM outbox_published)")
	b.bus.renew()
	r = b.relay(b.bus)
	waitFor(t, "the others to be told again", func() bool { return len(b.bus.ids()) >= 2 })
	b.told()
	require.Contains(t, b.bus.ids(), eventIDs(task, 3)[2])
	// And then it is at rest.
	r.Recheck()
	b.publishedRounds(r, task, 1)
	n := len(b.bus.deliveredIDs())
	r.Recheck()
	b.publishedRounds(r, task, 1)
	require.Len(t, b.bus.deliveredIDs(), n+1)
}

// The sequence of our last event was handed out again, to somebody else's.
func TestSequenceHandedOutAgainIsNoticed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.task()
	r := b.relay(b.bus)
	b.publishedRounds(r, task, 3)
	b.bus.mu.Lock()
	b.bus.stream[2].ID = "somebody else's"
	b.bus.mu.Unlock()
	r.Recheck()
	waitFor(t, "it to be told again", func() bool { return len(b.bus.deliveredIDs()) > 3 })
	b.told()
	require.Contains(t, b.bus.ids(), eventIDs(task, 3)[2])
}

func TestStreamThatIsWholeIsNotToldAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.task()
	r := b.relay(b.bus)
	for range 3 {
		b.publishedRounds(r, task, 2)
		r.Recheck()
	}
	b.publishedRounds(r, task, 1)
	require.Equal(t, eventIDs(task, 7), b.bus.deliveredIDs())
	r.stop()
	r = b.relay(b.bus)
	b.publishedRounds(r, task, 1)
	require.Equal(t, eventIDs(task, 8), b.bus.deliveredIDs())
}

// The disk of the embedded bus is put back to an earlier day, and then lost.
func TestBusRestoredFromABackup(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dir, backup := filepath.Join(t.TempDir(), "nats"), filepath.Join(t.TempDir(), "backup")
	open := func(dir string) *natsbus.Bus {
		bus, err := natsbus.Open(b.ctx, natsbus.Config{StoreDir: dir, NoSync: true, Logger: slog.New(slog.NewTextHandler(b.log, nil))})
		require.NoError(t, err)
		t.Cleanup(func() { _ = bus.Close(context.Background()) })
		return bus
	}
	task := b.task()
	session := func(dir string, rounds int) (ids []string) {
		bus := open(dir)
		r := b.relay(bus)
		waitFor(t, "the relay to lead", r.Leads)
		b.publishedRounds(r, task, rounds)
		r.stop()
		last, _, err := bus.Tail(b.ctx)
		require.NoError(t, err)
		for seq := uint64(1); seq <= last; seq++ {
			id, err := bus.Stored(b.ctx, seq)
			require.NoError(t, err)
			ids = append(ids, id)
		}
		require.NoError(t, bus.Close(b.ctx))
		return ids
	}
	require.Equal(t, eventIDs(task, 4), session(dir, 4))
	require.NoError(t, os.CopyFS(backup, os.DirFS(dir)))
	require.Equal(t, eventIDs(task, 7), session(dir, 3))
	require.Equal(t, eventIDs(task, 8), session(backup, 1), "the three between are told before the new one")
	require.Equal(t, eventIDs(task, 9), session(filepath.Join(t.TempDir(), "new"), 1), "an empty bus is told all")
}
