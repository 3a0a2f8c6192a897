package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

var cuts = flag.Int("cuts", 200, "how many commits TestConnectionsCutMidCommit cuts")

// witness counts the commits of moves to which there was no answer. It sees what the
// engine sees.
type witness struct {
	mu   sync.Mutex
	cut  map[string]int // by statement; guarded by mu
	made map[string]int // those that were answered; guarded by mu
}

type commits struct{}

var writes = []string{"TaskCreate", "TaskComplete", "TaskMove"}

func (w *witness) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	for _, name := range writes {
		if strings.HasPrefix(data.SQL, "-- name: "+name+" ") {
			return context.WithValue(ctx, commits{}, name)
		}
	}
	return ctx
}

func (w *witness) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	name, ok := ctx.Value(commits{}).(string)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case data.Err == nil:
		w.made[name]++
	case isUnavailable(data.Err):
		w.cut[name]++
	}
}

func (w *witness) cuts() (n int, by map[string]int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.cut {
		n += k
	}
	return n, maps.Clone(w.cut)
}

func (w *witness) answered() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.made)
}

// network is a network between a process and its database. It is another one after
// each cut: what was toxic is not to be trusted.
type network struct {
	t        *testing.T
	server   *toxiproxy.ApiServer
	listen   string
	upstream string
	proxy    *toxiproxy.Proxy
	seen     *witness
	ways     map[string]int // in which a commit was cut
}

// behindNetwork is a process that talks to the test's database through one.
func behindNetwork(t *testing.T) (direct, far *testBundle, n *network) {
	t.Helper()
	direct = setup(t)
	bridge := newProxy(t, direct.pool) // the database may listen on a socket only
	n = &network{
		t: t, server: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), seen: &witness{cut: map[string]int{}, made: map[string]int{}},
		listen: "127.0.0.1:0", upstream: bridge.listener.Addr().String(), ways: map[string]int{},
	}
	n.renew()
	t.Cleanup(func() { n.proxy.Stop() })

	_, port, err := net.SplitHostPort(n.listen)
	require.NoError(t, err)
	near := bridge.pool(t, direct.pool)
	cfg := near.Config()
	near.Close()
	var number uint16
	_, err = fmt.Sscan(port, &number)
	require.NoError(t, err)
	cfg.ConnConfig.Host, cfg.ConnConfig.Port, cfg.ConnConfig.Fallbacks, cfg.ConnConfig.Tracer = "127.0.0.1", number, nil, n.seen
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return direct, join(t, pool, "far"), n
}

// renew ends every connection, and puts a whole network in the place of this one.
func (n *network) renew() {
	n.t.Helper()
	if n.proxy != nil {
		n.proxy.Stop()
	}
	n.proxy = toxiproxy.NewProxy(n.server, "database", n.listen, n.upstream)
	require.NoError(n.t, n.proxy.Start())
	n.listen = n.proxy.Listen
}

// toxics are what may happen to every connection, with a figure below a bound.
var toxics = []struct {
	kind, attribute string
	below           int
}{
	{"reset_peer", "timeout", 3},      // ms, then RST
	{"timeout", "timeout", 20},        // ms of silence, then the end
	{"limit_data", "bytes", 3000},     // a question or an answer, cut in two
	{"limit_data", "bytes", 20},       // its first bytes
	{"limit_data", "bytes", 30 << 10}, // some time later
}

// cut makes the network toxic in some way until a commit has no answer, and renews it.
// It returns when commits of each kind go through again: who waits for the database
// does so for longer each time, and would not be there in a shorter moment.
func (n *network) cut(dice *rand.Rand) {
	n.t.Helper()
	toxic, direction := toxics[dice.IntN(len(toxics))], []string{"upstream", "downstream"}[dice.IntN(2)]
	before, _ := n.seen.cuts()
	text, err := json.Marshal(map[string]any{
		"name": "cut", "type": toxic.kind, "stream": direction, "toxicity": 1, "attributes": map[string]int{toxic.attribute: dice.IntN(toxic.below)},
	})
	require.NoError(n.t, err)
	_, err = n.proxy.Toxics.AddToxicJson(strings.NewReader(string(text)))
	require.NoError(n.t, err)
	soon := time.Now().Add(100 * time.Millisecond)
	waitFor(n.t, "a commit to be cut", func() bool {
		now, _ := n.seen.cuts()
		if now > before {
			n.ways[toxic.kind+" "+direction]++
		}
		return now > before || time.Now().After(soon) // it struck something else
	})
	n.renew()
	n.flows()
}

// flows waits until commits of each kind go through.
func (n *network) flows() {
	n.t.Helper()
	made := n.seen.answered()
	waitFor(n.t, "commits to go through", func() bool {
		now := n.seen.answered()
		return !slices.ContainsFunc(writes, func(name string) bool { return now[name] == made[name] })
	})
}

// load is what goes on while the network is cut: tasks are made under keys, every
// other one for remote workers, and the next when one was worked.
type load struct {
	*testBundle
	clients, workers sync.WaitGroup
	stop, leave      context.Context
	made, twice      atomic.Int64
	ran              sync.Map // executions here
	worked           sync.Map // a channel by task
}

// workedOn receives when somebody has worked a task.
func (l *load) workedOn(task uuid.UUID) chan struct{} {
	c, _ := l.worked.LoadOrStore(task, make(chan struct{}, 9))
	return c.(chan struct{})
}

func (l *load) execute(_ context.Context, job Job) (Result, error) {
	if _, before := l.ran.LoadOrStore(fmt.Sprintf("%s:%d", job.TaskID, job.Attempt), true); before {
		l.twice.Add(1)
	}
	l.workedOn(job.TaskID) <- struct{}{}
	return Result{Output: json.RawMessage(`{"n": 1}`)}, nil
}

func (l *load) create(client int) error {
	for i := 0; l.stop.Err() == nil; i++ {
		change := []func(*Request){key(fmt.Sprintf("%d-%d", client, i))}
		if client%2 == 1 {
			change = append(change, remote)
		}
		task, err := insist(l.ctx, func() (db.Task, error) {
			task, _, err := l.Create(l.ctx, request(change...))
			return task, err
		})
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		l.made.Add(1)
		select {
		case <-l.workedOn(task.TaskID):
		case <-l.ctx.Done():
			return fmt.Errorf("task %s was not worked: %w", task.TaskID, l.ctx.Err())
		}
	}
	return nil
}

// lease is a remote worker's life, who asks again whatever was not answered.
func (l *load) lease(id string) error {
	for n := 0; l.leave.Err() == nil; n++ {
		leases, err := insist(l.ctx, func() ([]Lease, error) {
			return l.Leases.Acquire(l.ctx, LeaseRequest{
				Worker: id, ID: fmt.Sprint(n), Wait: 200 * time.Millisecond, Most: 2, Select: []Selection{{Lane: LaneAutomated}},
			})
		})
		if err != nil {
			return fmt.Errorf("lease: %w", err)
		}
		for _, one := range leases {
			if _, err := insist(l.ctx, func() (db.Task, error) {
				return l.Leases.Complete(l.ctx, "", one.Token, json.RawMessage(`{"by": "a worker"}`))
			}); err != nil {
				return fmt.Errorf("complete: %w", err)
			}
			l.workedOn(one.TaskID) <- struct{}{}
		}
	}
	return nil
}

// The connection to the database is cut in the middle of commits, in either direction
// and in several ways, while tasks are made under keys, worked here, and worked by remote
// workers: whatever was committed is found, nothing is done twice, nothing is lost.
func TestConnectionsCutMidCommit(t *testing.T) {
	t.Parallel()
	b, far, n := behindNetwork(t)
	begun, most := time.Now(), *cuts
	if testing.Short() {
		most = min(most, 40)
	}
	b.ctx, far.ctx = t.Context(), t.Context() // a long form takes longer than a test may
	l := &load{testBundle: far}
	var enough, leave context.CancelFunc
	l.stop, enough = context.WithCancel(b.ctx)
	defer enough()
	l.leave, leave = context.WithCancel(b.ctx)
	defer leave()
	far.work(noop(l.execute), func(cfg *RunnerConfig) { cfg.Silence = time.Second })
	for client := range 24 {
		l.clients.Go(func() {
			if err := l.create(client); err != nil {
				t.Error(err)
			}
		})
	}
	for worker := range 4 {
		l.workers.Go(func() {
			if err := l.lease(fmt.Sprint("w-", worker)); err != nil {
				t.Error(err)
			}
		})
	}
	n.flows() // a Runner that cannot say that it is there does not begin
	dice := dice(0)
	for done, _ := n.seen.cuts(); done < most; done, _ = n.seen.cuts() {
		n.cut(dice)
	}
	enough()
	l.clients.Wait()
	leave()
	l.workers.Wait()

	made := int(l.made.Load())
	require.Equal(t, made, ask[int](b, "SELECT count(*) FROM task"), "one task for each key")
	waitFor(t, "all to be completed", func() bool { return ask[int](b, "SELECT count(*) FROM task WHERE status <> 'COMPLETED'") == 0 })
	require.Equal(t, made, ask[int](b, "SELECT count(*) FROM task_event WHERE type = 'completed'"))
	require.Equal(t, made, ask[int](b, "SELECT sum(attempt)::integer FROM task"), "and one attempt")
	require.Zero(t, l.twice.Load(), "an attempt ran twice")
	done, by := n.seen.cuts()
	say(t, map[string]any{
		"cuts": done, "by": by, "ways": n.ways, "tasks": made, "duplicates": 0, "lost": 0, "ranTwice": 0,
		"seconds": time.Since(begun).Seconds(),
	})
	if most >= 200 {
		require.Len(t, n.ways, 6, "every way, in both directions")
	}
}

// insist asks until there is an answer.
func insist[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	for {
		answer, err := ask()
		if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
			return answer, err
		}
	}
}
