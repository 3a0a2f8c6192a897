package outbox_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/outbox"
)

// publishedLongAgo makes publications of flushes that had nothing to tell any more, one
// round each, with ids and places from 1 on.
func (b *testBundle) publishedLongAgo(n int, at time.Time) {
	b.t.Helper()
	b.exec(`
		INSERT INTO outbox_published (id, lo, hi, last_seq, published_at)
		SELECT n, n + 1000000000, n + 1000000001, n, $2 FROM generate_series(1::bigint, $1::bigint) n`, n, at)
}

// Publications are forgotten as fast as the engine makes them, and faster.
func TestOutboxForget(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const old = 50_000
	b.publishedLongAgo(old, time.Now().Add(-25*time.Hour))
	b.exec("UPDATE outbox_published SET published_at = now() WHERE id > $1", old-10)
	b.relay(b.bus)
	waitFor(t, "the old ones to be forgotten", func() bool {
		return ask[int](b, "SELECT count(*) FROM outbox_published") == 10
	})
}

// The stream is gone, and with it more than the database moves in one statement before it
// ends that for its time. The relay is killed half-way. Everything is told again by pages:
// nothing before all is back, and each task's events in order.
func TestOutboxRequeueByPages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.pool = dbtest.New(t)
	const lost = 20_000
	task := b.task()
	b.flush(task)
	first := b.relay(b.bus)
	b.told()
	first.stop()
	b.exec("UPDATE outbox_published SET last_seq = 1, id = 1")
	b.exec(`
		INSERT INTO outbox_published (id, lo, hi, last_seq)
		SELECT n, n + 1000000000, n + 1000000001, n FROM generate_series(2::bigint, $1::bigint) n`, lost)
	b.exec("SELECT setval('outbox_id_seq', $1)", lost)
	b.flush(task)
	b.exec("WITH told AS (DELETE FROM outbox RETURNING id, lo, hi) INSERT INTO outbox_published SELECT id, lo, hi, id FROM told")
	b.flush(task)
	b.exec(`
		CREATE FUNCTION too_long() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF (SELECT count(*) FROM fresh) > 700 THEN
				RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = 'query_canceled';
			END IF;
			RETURN NULL;
		END
		$$`)
	b.exec("CREATE TRIGGER too_long AFTER INSERT ON outbox REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION too_long()")
	b.bus.renew()
	b.bus.before = func([]outbox.Message) error {
		if left := ask[int](b, "SELECT count(*) FROM outbox_published"); left > 0 && len(b.bus.ids()) == 0 {
			t.Errorf("an event is told while %d flushes are not back", left)
		}
		return nil
	}

	r := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Page, cfg.Flushes = 2000, 500 })
	waitFor(t, "some pages to be back", func() bool { return ask[int](b, "SELECT count(*) FROM outbox") > lost/10 })
	b.kill()
	waitFor(t, "all to be told", func() bool { return len(b.bus.ids()) == 3 })
	require.Equal(t, eventIDs(task, 3), b.bus.deliveredIDs()[1:], "the first was told before the stream was lost")
	require.Positive(t, r.Failures(), "it was not killed half-way")
}

// The stream has lost more than is looked at round by round. What survived is not told again.
func TestLossBeyondTheRememberedRounds(t *testing.T) {
	t.Parallel()
	const rounds, survive = 1200, 700
	b := setup(t)
	task := b.task()
	for range rounds {
		b.flush(task)
	}
	r := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Flushes = 1 })
	b.told()
	b.bus.truncate(survive)
	r.Recheck()
	waitFor(t, "the lost ones to be told again", func() bool { return len(b.bus.ids()) == rounds })
	b.told()
	require.Equal(t, eventIDs(task, rounds), b.bus.ids())
	require.Less(t, len(b.bus.deliveredIDs())-rounds, 2*(rounds-survive), "much that survived was told again")
}

// A page is whole rounds, oldest first, and names where the next begins.
func TestOutboxRequeue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, row := range [][2]int64{{5, 10}, {6, 10}, {7, 20}, {8, 20}, {9, 30}, {10, 0}} {
		b.exec("INSERT INTO outbox_published (id, lo, hi, last_seq) VALUES ($1::bigint, $1::bigint, $1::bigint + 1, $2)", row[0], row[1])
	}
	q := db.New(b.pool)
	for _, tt := range []struct {
		after int64
		want  db.OutboxRequeueRow
		back  []int64
	}{
		{0, db.OutboxRequeueRow{Flushes: 4, LastSeq: 20}, []int64{5, 6, 7, 8}},
		{20, db.OutboxRequeueRow{Flushes: 1, LastSeq: 30}, []int64{5, 6, 7, 8, 9}},
		{30, db.OutboxRequeueRow{}, []int64{5, 6, 7, 8, 9}},
	} {
		page, err := q.OutboxRequeue(b.ctx, db.OutboxRequeueParams{AfterSeq: tt.after, Page: 3})
		require.NoError(t, err)
		require.Equal(t, tt.want, page)
		require.Equal(t, tt.back, ask[[]int64](b, "SELECT array_agg(id ORDER BY id) FROM outbox"))
	}
	require.Equal(t, int64(10), ask[int64](b, "SELECT id FROM outbox_published"), "what told nothing has no place, and stays")
}
