package relay_test

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
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/relay"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// session opens one under an application's name.
func (b *testBundle) session(application string) *pgx.Conn {
	b.T.Helper()
	cfg := b.Pool.Config().ConnConfig
	cfg.RuntimeParams["application_name"] = application
	conn, err := pgx.ConnectConfig(b.Ctx, cfg)
	require.NoError(b.T, err)
	b.T.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

const takeOldKey = "SELECT pg_advisory_lock(hashtextextended('tes relay', 0))"

// Anybody who may connect can take an advisory lock. It is no authority.
func TestStrangerWithTheRelaysAdvisoryKeyStopsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.session("psql").Exec(b.Ctx, takeOldKey)
	require.NoError(t, err)
	b.Flush(b.Task())
	b.Relay(b.Bus)
	b.AwaitPublished()
}

// A program from before the table publishes while it has the key. A new one waits for it,
// and has the key itself while it leads.
func TestProgramFromBeforeTheLeaderRowIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.session("tes engine")
	_, err := old.Exec(b.Ctx, takeOldKey)
	require.NoError(t, err)
	b.Flush(b.Task())
	r := b.Relay(b.Bus)
	outboxtest.WaitFor(t, "three asks for the lead", func() bool { return ask[int](b, "SELECT term FROM relay_leader") >= 3 })
	require.Empty(t, b.Bus.DeliveredIDs())
	require.False(t, r.Leads())
	require.Equal(t, "an older program", r.Status().Holder)

	require.NoError(t, old.Close(b.Ctx))
	b.AwaitPublished()
	old = b.session("tes engine")
	var got bool
	require.NoError(t, old.QueryRow(b.Ctx, "SELECT pg_try_advisory_lock(hashtextextended('tes relay', 0))").Scan(&got))
	require.False(t, got, "an older program must stand by")
}

// A stranger had the key when the lead was taken, and an older program has got it
// meanwhile: the leader stands back.
func TestLeaderStandsBackForAnOlderProgram(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stranger, old := b.session("psql"), b.session("tes engine")
	_, err := stranger.Exec(b.Ctx, takeOldKey)
	require.NoError(t, err)
	waiting := make(chan error, 1)
	go func() { // in the queue before the leader can ask again
		_, err := old.Exec(b.Ctx, takeOldKey)
		waiting <- err
	}()
	outboxtest.WaitFor(t, "the older program to wait", func() bool {
		return ask[int](b, "SELECT count(*) FROM pg_locks k JOIN pg_database d ON d.oid = k.database WHERE k.locktype = 'advisory' AND NOT k.granted AND d.datname = current_database()") == 1
	})
	r := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.HeartbeatTimeout = 500 * time.Millisecond })
	outboxtest.WaitFor(t, "the lead", r.Leads)
	require.NoError(t, stranger.Close(b.Ctx))
	require.NoError(t, outboxtest.Receive(t, waiting))
	outboxtest.WaitFor(t, "the leader to stand back", func() bool { return !r.Leads() && r.Status().Holder == "an older program" })
}

// A hand in psql that has the row locked keeps the leader from beating, and everybody
// from taking its place. It publishes on, and says what is the matter.
func TestLockOnTheLeaderRowStopsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	quick := func(cfg *relay.Config) { cfg.HeartbeatTimeout = 500 * time.Millisecond }
	first := b.Relay(b.Bus, quick)
	outboxtest.WaitFor(t, "the lead", first.Leads)
	task := b.Task()
	tx, err := b.Pool.Begin(b.Ctx)
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(b.Ctx, "SELECT FROM relay_leader FOR UPDATE")
	require.NoError(t, err)
	outboxtest.WaitFor(t, "the leader to say so", func() bool { return b.Log.Says("a session holds a lock on the table relay_leader") })
	b.Relay(b.Bus, quick)
	outboxtest.WaitFor(t, "who stands by to say so", func() bool { return b.Log.Says("the leader is silent and its row cannot be taken") })
	b.Flush(task)
	b.AwaitPublished()
	require.True(t, first.Leads())
	require.NoError(t, tx.Rollback(b.Ctx))
	b.Flush(task)
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 2), b.Bus.StoredIDs())
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
	*outboxtest.Bus
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
	return c.Bus.Publish(ctx, batch)
}

// published are the rows of outbox_published.
func (b *testBundle) published() []db.OutboxPublished {
	b.T.Helper()
	rows, err := b.Pool.Query(b.Ctx, "SELECT * FROM outbox_published ORDER BY id")
	require.NoError(b.T, err)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[db.OutboxPublished])
	require.NoError(b.T, err)
	return all
}

// A leader is frozen while it publishes, with its session open. Another replaces it, and
// tells everything once and in order. The frozen one changes nothing when it wakes.
func TestFrozenLeaderIsReplaced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	cold := newIce()
	cfg := b.Pool.Config()
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return coldConn{conn, cold}, err
	}
	pool, err := pgxpool.NewWithConfig(b.Ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	task := b.Task()
	for range 3 {
		b.Flush(task)
	}
	bus := coldBus{b.Bus, &sync.Once{}, cold, make(chan struct{})}
	quick := func(holder string) func(*relay.Config) {
		return func(cfg *relay.Config) {
			cfg.RangesPerBatch, cfg.HeartbeatTimeout, cfg.Holder = 1, 500*time.Millisecond, holder
		}
	}
	frozen := b.RelayOn(pool, bus, quick("frozen"))
	outboxtest.Receive(t, bus.frozen)
	b.Relay(b.Bus, quick("other"))
	b.AwaitPublished()
	term := ask[int64](b, "SELECT term FROM relay_leader")
	require.Greater(t, term, int64(1))
	published := b.published()
	require.Equal(t, outboxtest.EventIDs(task, 3), b.Bus.StoredIDs())

	cold.thaw()
	outboxtest.WaitFor(t, "the frozen one to learn it", func() bool { return !frozen.Leads() })
	b.Flush(task)
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 4), b.Bus.StoredIDs())
	require.Equal(t, published, b.published()[:len(published)])
}

// Each write of a leader names its term, and changes nothing under another.
func TestSupersededLeaderChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.Task()
	b.Flush(task)
	r := b.Relay(b.Bus)
	b.AwaitPublished()
	r.Stop()
	b.Flush(task)
	b.Exec("UPDATE outbox_published SET published_at = '2020-01-01'")
	old := ask[int64](b, "UPDATE relay_leader SET term = term + 1 RETURNING term - 1")
	waiting := ask[int64](b, "SELECT id FROM outbox")
	before := b.published()
	created := ask[time.Time](b, "SELECT stream_created_at FROM outbox_stream")
	q := db.New(b.Pool)
	for name, write := range map[string]func(term int64) error{
		"advance": func(term int64) error {
			rows, err := q.OutboxAdvance(b.Ctx, db.OutboxAdvanceParams{Term: term, Told: []int64{waiting}, LastSeqs: []int64{7}, UnderWay: []int64{}, Flushes: 9})
			require.Empty(t, rows)
			return err
		},
		"park": func(term int64) error {
			return q.OutboxPark(b.Ctx, db.OutboxParkParams{Term: term, EventID: 1, TaskID: uuid.Nil, Reason: "r"})
		},
		"forget": func(term int64) error {
			_, err := q.OutboxForget(b.Ctx, db.OutboxForgetParams{Term: term, Hours: 1, Page: 9})
			return err
		},
		"requeue": func(term int64) error {
			_, err := q.OutboxRequeue(b.Ctx, db.OutboxRequeueParams{Term: term, Page: 9})
			return err
		},
		"requeue round": func(term int64) error {
			_, err := q.OutboxRequeueRound(b.Ctx, db.OutboxRequeueRoundParams{Term: term, LastSeq: before[0].LastSeq})
			return err
		},
		"stream": func(term int64) error {
			return q.OutboxStreamPut(b.Ctx, db.OutboxStreamPutParams{Term: term, StreamCreatedAt: created.Add(time.Hour)})
		},
		"beat": func(term int64) error {
			row, err := q.RelayBeat(b.Ctx, term)
			require.False(t, row.Leads || row.Beaten)
			return err
		},
		"yield": func(term int64) error {
			return q.RelayYield(b.Ctx, term)
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
			row, err := db.New(first).RelayTake(b.Ctx, db.RelayTakeParams{Holder: "first", SilenceSeconds: 5})
			require.NoError(t, err)
			require.EqualValues(t, 1, row.Term)
			b.Exec(tt.change)
			row, err = db.New(second).RelayTake(b.Ctx, db.RelayTakeParams{Holder: "second", SilenceSeconds: 5})
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

func TestOneLeadsAndAnotherTakesOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.Relay(b.Bus, func(cfg *relay.Config) {
		cfg.Retry, cfg.ElectInterval = retry.Policy{Backoff: time.Hour, MaxBackoff: time.Hour}, time.Hour
	})
	outboxtest.WaitFor(t, "the first to lead", first.Leads)
	second := b.Relay(b.Bus)
	third := b.Relay(b.Bus)
	task := b.Task()
	b.Flush(task)
	b.AwaitPublished()
	require.True(t, first.Leads())
	require.EqualValues(t, 1, first.Published())

	b.kill()
	outboxtest.WaitFor(t, "another to lead", func() bool { return second.Leads() || third.Leads() })
	b.Flush(task)
	b.AwaitPublished()
	require.False(t, first.Leads())
	require.False(t, second.Leads() && third.Leads())
	require.Equal(t, outboxtest.EventIDs(task, 2), b.Bus.DeliveredIDs())
}

func TestStoppedRelayHandsOverAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.Relay(b.Bus)
	outboxtest.WaitFor(t, "the first to lead", first.Leads)
	first.Stop()
	require.False(t, first.Leads())
	second := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.ElectInterval = time.Hour })
	outboxtest.WaitFor(t, "the second to lead", second.Leads)
}
