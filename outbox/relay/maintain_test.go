package relay_test

import (
	"testing"
	"time"

	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
)

// publishedLongAgo makes publications of flushes that had nothing to tell any more, one
// round each, with ids and places from 1 on.
func (b *testBundle) publishedLongAgo(n int, at time.Time) {
	b.T.Helper()
	b.Exec(`
		INSERT INTO outbox_published (id, lo, hi, last_seq, published_at)
		SELECT n, n + 1000000000, n + 1000000001, n, $2 FROM generate_series(1::bigint, $1::bigint) n`, n, at)
}

// Publications are forgotten as fast as the engine makes them, and faster.
func TestOutboxForget(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const old = 50_000
	b.publishedLongAgo(old, time.Now().Add(-25*time.Hour))
	b.Exec("UPDATE outbox_published SET published_at = now() WHERE id > $1", old-10)
	b.Relay(b.Bus)
	outboxtest.WaitFor(t, "the old ones to be forgotten", func() bool {
		return ask[int](b, "SELECT count(*) FROM outbox_published") == 10
	})
}
