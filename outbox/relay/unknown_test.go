package relay_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
)

// The database is one of some moments ago, and the bus is not. The relay says so, writes
// down what it lost, and gives no id out a second time for something else: not this leader,
// and not those after it. All else is told as ever.
func TestDatabaseThatWentBackIsNoticed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.WentBack = true
	whole, cut := b.Task(), b.Task()
	r := b.Relay(b.Bus)
	b.publishedRounds(r, whole, 3)
	b.publishedRounds(r, cut, 3)
	r.Stop()
	before := b.Bus.Deliveries()
	b.Force("DELETE FROM task_event WHERE task_id = '" + cut.String() + "' AND seq > 1")
	b.Force("DELETE FROM outbox_published WHERE last_seq > 4")

	r = b.Relay(b.Bus)
	outboxtest.WaitFor(t, "it to be told", func() bool { return strings.Contains(b.Log.String(), "the database went back in time") })
	unknown := func() []uuid.UUID {
		return ask[[]uuid.UUID](b, "SELECT array_agg(event_id ORDER BY stream_seq) FROM event_unknown")
	}
	outboxtest.WaitFor(t, "it to be written down", func() bool { return len(unknown()) == 2 })
	require.Equal(t, []uuid.UUID{outbox.EventID(cut, 2), outbox.EventID(cut, 3)}, unknown())

	for n := range 2 { // the task is moved again, by this leader and by the next
		b.Flush(cut)
		b.Flush(whole)
		r.Wake()
		b.AwaitPublished()
		require.Equal(t, n+1, ask[int](b, "SELECT count(*) FROM outbox_parked"))
		require.Equal(t, outbox.EventID(whole, int32(4+n)).String(), b.Bus.StoredIDs()[6+n])
		r.Stop()
		r = b.Relay(b.Bus)
	}
	b.Flush(cut)
	r.Wake()
	b.AwaitPublished()
	require.Equal(t, outbox.EventID(cut, 4).String(), b.Bus.StoredIDs()[8], "which nobody has heard of")
	require.Equal(t, before, b.Bus.Deliveries()[:6])
	require.Equal(t, 1, strings.Count(b.Log.String(), "the stream has events that the database does not know"), "it is told once")
}
