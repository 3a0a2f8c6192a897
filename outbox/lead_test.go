package outbox_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// session opens one under an application's name.
func (b *testBundle) session(application string) *pgx.Conn {
	b.t.Helper()
	cfg := b.pool.Config().ConnConfig
	cfg.RuntimeParams["application_name"] = application
	conn, err := pgx.ConnectConfig(b.ctx, cfg)
	require.NoError(b.t, err)
	b.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

const takeOldKey = "SELECT pg_advisory_lock(hashtextextended('tes relay', 0))"

// Anybody who may connect can take an advisory lock. It is no authority.
func TestStrangerWithTheRelaysAdvisoryKeyStopsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.session("psql").Exec(b.ctx, takeOldKey)
	require.NoError(t, err)
	b.flush(b.task())
	b.relay(b.bus)
	b.told()
}

// A program from before the table publishes while it has the key. A new one waits for it,
// and has the key itself while it leads.
func TestProgramFromBeforeTheLeaderRowIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.session("tes engine")
	_, err := old.Exec(b.ctx, takeOldKey)
	require.NoError(t, err)
	b.flush(b.task())
	r := b.relay(b.bus)
	waitFor(t, "three asks for the lead", func() bool { return ask[int](b, "SELECT term FROM relay_leader") >= 3 })
	require.Empty(t, b.bus.deliveredIDs())
	require.False(t, r.Leads())
	require.Equal(t, "an older program", r.Standing().Holder)

	require.NoError(t, old.Close(b.ctx))
	b.told()
	old = b.session("tes engine")
	var got bool
	require.NoError(t, old.QueryRow(b.ctx, "SELECT pg_try_advisory_lock(hashtextextended('tes relay', 0))").Scan(&got))
	require.False(t, got, "an older program must stand by")
}

// A stranger had the key when the lead was taken, and an older program has got it
// meanwhile: the leader stands back.
func TestLeaderStandsBackForAnOlderProgram(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stranger, old := b.session("psql"), b.session("tes engine")
	_, err := stranger.Exec(b.ctx, takeOldKey)
	require.NoError(t, err)
	waiting := make(chan error, 1)
	go func() { // in the queue before the leader can ask again
		_, err := old.Exec(b.ctx, takeOldKey)
		waiting <- err
	}()
	waitFor(t, "the older program to wait", func() bool {
		return ask[int](b, "SELECT count(*) FROM pg_locks k JOIN pg_database d ON d.oid = k.database WHERE k.locktype = 'advisory' AND NOT k.granted AND d.datname = current_database()") == 1
	})
	r := b.relay(b.bus, func(cfg *outbox.RelayConfig) { cfg.Silence = 500 * time.Millisecond })
	waitFor(t, "the lead", r.Leads)
	require.NoError(t, stranger.Close(b.ctx))
	require.NoError(t, receive(t, waiting))
	waitFor(t, "the leader to stand back", func() bool { return !r.Leads() && r.Standing().Holder == "an older program" })
}

// A hand in psql that has the row locked keeps the leader from beating, and everybody
// from taking its place. It publishes on, and says what is the matter.
func TestLockOnTheLeaderRowStopsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	quick := func(cfg *outbox.RelayConfig) { cfg.Silence = 500 * time.Millisecond }
	first := b.relay(b.bus, quick)
	waitFor(t, "the lead", first.Leads)
	task := b.task()
	tx, err := b.pool.Begin(b.ctx)
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(b.ctx, "SELECT FROM relay_leader FOR UPDATE")
	require.NoError(t, err)
	waitFor(t, "the leader to say so", func() bool { return b.log.says("a session holds a lock on the table relay_leader") })
	b.relay(b.bus, quick)
	waitFor(t, "who stands by to say so", func() bool { return b.log.says("the leader is silent and its row cannot be taken") })
	b.flush(task)
	b.told()
	require.True(t, first.Leads())
	require.NoError(t, tx.Rollback(b.ctx))
	b.flush(task)
	b.told()
	require.Equal(t, eventIDs(task, 2), b.bus.ids())
}

// ice is what a frozen process stands in: nothing that it sends leaves, and nothing that
// was sent to it is read.
type ice struct {
	mu     sync.Mutex
	thawed chan struct{} // closed while it runs; guarded by mu
}

func newIce() *ice {
	i := &ice{thawed: make(chan struct{})}
	close(i.thawed)
	return i
}

func (i *ice) freeze() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.thawed = make(chan struct{})
}

func (i *ice) thaw() {
	i.mu.Lock()
	defer i.mu.Unlock()
	close(i.thawed)
}

func (i *ice) wait() {
	i.mu.Lock()
	thawed := i.thawed
	i.mu.Unlock()
	<-thawed
}

// coldConn is a connection of a process that may be frozen.
type coldConn struct {
	net.Conn
	ice *ice
}

func (c coldConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.ice.wait()
	return n, err
}

func (c coldConn) Write(p []byte) (int, error) {
	c.ice.wait()
	return c.Conn.Write(p)
}

// coldBus freezes its process with the first batch in its hands, and publishes when the
// ice is gone.
type coldBus struct {
	*memoryBus
	once   *sync.Once
	ice    *ice
	frozen chan struct{}
}

func (c coldBus) Publish(ctx context.Context, batch []outbox.Message) (uint64, error) {
	c.once.Do(func() {
		c.ice.freeze()
		close(c.frozen)
	})
	c.ice.wait()
	return c.memoryBus.Publish(ctx, batch)
}

// published are the rows of outbox_published.
func (b *testBundle) published() []db.OutboxPublished {
	b.t.Helper()
	rows, err := b.pool.Query(b.ctx, "SELECT * FROM outbox_published ORDER BY id")
	require.NoError(b.t, err)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[db.OutboxPublished])
	require.NoError(b.t, err)
	return all
}

// A leader is frozen while it publishes, with its session open. Another replaces it, and
// tells everything once and in order. The frozen one changes nothing when it wakes.
func TestFrozenLeaderIsReplaced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	cold := newIce()
	cfg := b.pool.Config()
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return coldConn{conn, cold}, err
	}
	pool, err := pgxpool.NewWithConfig(b.ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	task := b.task()
	for range 3 {
		b.flush(task)
	}
	bus := coldBus{b.bus, &sync.Once{}, cold, make(chan struct{})}
	quick := func(holder string) func(*outbox.RelayConfig) {
		return func(cfg *outbox.RelayConfig) {
			cfg.Flushes, cfg.Silence, cfg.Holder = 1, 500*time.Millisecond, holder
		}
	}
	frozen := b.relayOn(pool, bus, quick("frozen"))
	receive(t, bus.frozen)
	b.relay(b.bus, quick("other"))
	b.told()
	term := ask[int64](b, "SELECT term FROM relay_leader")
	require.Greater(t, term, int64(1))
	published := b.published()
	require.Equal(t, eventIDs(task, 3), b.bus.ids())

	cold.thaw()
	waitFor(t, "the frozen one to learn it", func() bool { return !frozen.Leads() })
	b.flush(task)
	b.told()
	require.Equal(t, eventIDs(task, 4), b.bus.ids())
	require.Equal(t, published, b.published()[:len(published)])
}

// Each write of a leader names its term, and changes nothing under another.
func TestSupersededLeaderChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.task()
	b.flush(task)
	r := b.relay(b.bus)
	b.told()
	r.stop()
	b.flush(task)
	b.exec("UPDATE outbox_published SET published_at = '2020-01-01'")
	old := ask[int64](b, "UPDATE relay_leader SET term = term + 1 RETURNING term - 1")
	waiting := ask[int64](b, "SELECT id FROM outbox")
	before := b.published()
	created := ask[time.Time](b, "SELECT stream_created_at FROM outbox_stream")
	q := db.New(b.pool)
	for name, write := range map[string]func(term int64) error{
		"advance": func(term int64) error {
			rows, err := q.OutboxAdvance(b.ctx, db.OutboxAdvanceParams{Term: term, Told: []int64{waiting}, LastSeqs: []int64{7}, UnderWay: []int64{}, Flushes: 9})
			require.Empty(t, rows)
			return err
		},
		"park": func(term int64) error {
			return q.OutboxPark(b.ctx, db.OutboxParkParams{Term: term, EventID: 1, TaskID: uuid.Nil, Reason: "r"})
		},
		"forget": func(term int64) error {
			_, err := q.OutboxForget(b.ctx, db.OutboxForgetParams{Term: term, Hours: 1, Page: 9})
			return err
		},
		"requeue": func(term int64) error {
			_, err := q.OutboxRequeue(b.ctx, db.OutboxRequeueParams{Term: term, Page: 9})
			return err
		},
		"requeue round": func(term int64) error {
			_, err := q.OutboxRequeueRound(b.ctx, db.OutboxRequeueRoundParams{Term: term, LastSeq: before[0].LastSeq})
			return err
		},
		"stream": func(term int64) error {
			return q.OutboxStreamPut(b.ctx, db.OutboxStreamPutParams{Term: term, StreamCreatedAt: created.Add(time.Hour)})
		},
		"beat": func(term int64) error {
			row, err := q.RelayBeat(b.ctx, term)
			require.False(t, row.Leads || row.Beaten)
			return err
		},
		"yield": func(term int64) error {
			return q.RelayYield(b.ctx, term)
		},
	} {
		require.NoError(t, write(old), name)
		require.Equal(t, before, b.published(), name)
		require.Equal(t, waiting, ask[int64](b, "SELECT id FROM outbox"), name)
		require.Zero(t, ask[int](b, "SELECT count(*) FROM outbox_parked"), name)
		require.True(t, created.Equal(ask[time.Time](b, "SELECT stream_created_at FROM outbox_stream")), name)
	}
}

// A leader gives the lead back, its session goes, or its heartbeat is silent: only then
// another takes it, under the next term.
func TestRelayTake(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change string
		taken  bool
	}{
		"beats":        {"UPDATE relay_leader SET heartbeat_at = now()", false},
		"given back":   {"UPDATE relay_leader SET heartbeat_at = now(), holder = ''", true},
		"session gone": {"UPDATE relay_leader SET heartbeat_at = now(), backend_start = backend_start - interval '1 second'", true},
		"silent":       {"UPDATE relay_leader SET heartbeat_at = now() - interval '6 seconds'", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			first, second := b.session("first"), b.session("second")
			row, err := db.New(first).RelayTake(b.ctx, db.RelayTakeParams{Holder: "first", SilenceSeconds: 5})
			require.NoError(t, err)
			require.EqualValues(t, 1, row.Term)
			b.exec(tt.change)
			row, err = db.New(second).RelayTake(b.ctx, db.RelayTakeParams{Holder: "second", SilenceSeconds: 5})
			if !tt.taken {
				require.ErrorIs(t, err, pgx.ErrNoRows)
				return
			}
			require.NoError(t, err)
			require.EqualValues(t, 2, row.Term)
			require.Equal(t, "second", ask[string](b, "SELECT holder FROM relay_leader"))
		})
	}
}
