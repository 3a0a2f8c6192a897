package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/db/benchdb"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/automated"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/relay"
)

// cleanupContext is the context of taking down. Ctrl-C does not cancel it.
func cleanupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 2*time.Minute)
}

// patience bounds every wait for progress.
const patience = 3 * time.Minute

// definitionID is the definition of every task of the benchmarks.
const definitionID = "bench-noop"

// engine is tes without its API server, on a database of its own. The pools, River's client and the
// settings are those of tes serve.
type engine struct {
	b         *suite
	name      string // of the database
	pool      *pgxpool.Pool
	tasks     *jobs.Tasks
	relay     *relay.Relay // nil: no relay runs
	committed atomic.Int64 // when the last batch was committed, Unix time in ns
	closers   []func() error
}

// engine starts an engine on a fresh database, without runner and relay.
func (b *suite) engine() (e *engine, err error) {
	e = &engine{b: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if e.name, err = b.server.fresh(b.ctx, "tes"); err != nil {
		return nil, err
	}

	if !b.options.Keep {
		e.onClose(func() error { return b.server.drop(e.name) })
	}

	url := b.server.url(e.name)
	if e.pool, err = e.open(url, pgpool.Config{Name: "tes engine", MaxConns: 16, Engine: true}); err != nil {
		return nil, err
	}

	// The same pools as tes serve has: a figure with more connections would not be that of the
	// service.
	own, err := e.open(url, pgpool.Config{Name: "tes river", MaxConns: 4, Custom: true})
	if err != nil {
		return nil, err
	}

	// The hook runs after each commit with events: its last call is the end of a timed part.
	e.tasks = jobs.New(e.pool, jobs.Config{Logger: b.log, OnEventsCommitted: func() {
		e.committed.Store(time.Now().UnixNano())
		if e.relay != nil {
			e.relay.Wake()
		}
	}})

	river, err := jobs.NewRiver(own, e.tasks.ProcessID(), b.log, nil)
	if err != nil {
		return nil, err
	}

	if err := river.Start(context.WithoutCancel(b.ctx)); err != nil {
		return nil, fmt.Errorf("start river: %w", err)
	}

	e.onClose(func() error {
		ctx, cancel := cleanupContext()
		defer cancel()
		return river.Stop(ctx)
	})

	_, _, err = e.tasks.Definitions.Put(b.ctx, "bench", 0, jobs.Definition{
		ID: definitionID, Type: jobs.Automated, Version: "1", ExecutionConfig: jobs.ExecutionConfig{Executor: "noop"},
	})
	return e, err
}

func (e *engine) open(url string, cfg pgpool.Config) (*pgxpool.Pool, error) {
	pool, err := pgpool.Open(e.b.ctx, url, cfg)
	if err != nil {
		return nil, err
	}
	e.onClose(func() error { pool.Close(); return nil })
	return pool, nil
}

func (e *engine) onClose(do func() error) { e.closers = append(e.closers, do) }

func (e *engine) close() error {
	if e.tasks != nil {
		e.tasks.Drain(e.b.ctx)
	}

	var errs []error
	for i := len(e.closers) - 1; i >= 0; i-- {
		errs = append(errs, e.closers[i]())
	}

	e.closers = nil
	return errors.Join(errs...)
}

// taskRequest is the smallest complete request.
func taskRequest(priority jobs.Priority) jobs.Request {
	return jobs.Request{
		TaskDefinitionID: definitionID, WorkflowID: "bench", Priority: priority, Input: json.RawMessage(`{"n": 1}`), Actor: "bench",
	}
}

// inProcessCallers is the number of concurrent creates, enough to fill a batch.
const inProcessCallers = 1000

// create creates n tasks, with the priorities in turn, as concurrent callers would.
func (e *engine) create(n int, priorities ...jobs.Priority) error {
	if len(priorities) == 0 {
		priorities = []jobs.Priority{jobs.Medium}
	}

	// The first error ends all callers.
	ctx, cancel := context.WithCancelCause(e.b.ctx)
	defer cancel(nil)
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(inProcessCallers, n) {
		all.Go(func() {
			for i := next.Add(1); i <= int64(n) && ctx.Err() == nil; i = next.Add(1) {
				if _, _, err := e.tasks.Create(ctx, taskRequest(priorities[i%int64(len(priorities))])); err != nil {
					cancel(err)
					return
				}
				if i%1000 == 0 {
					_ = e.b.bar.Add(1000)
				}
			}
		})
	}

	all.Wait()
	return context.Cause(ctx)
}

// run starts a runner with one executor. stop ends the runner and returns when its last results are
// committed.
func (e *engine) run(noop jobs.Executor, cfg jobs.RunnerConfig) (stop func() error) {
	// The runner goes on after Ctrl-C until stop, so that the database is not dropped under it.
	cfg.Executors = map[string]jobs.Registration{"noop": {Executor: noop, Pure: true}}
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.b.ctx))
	done := make(chan error, 1)
	runner := jobs.NewRunner(e.tasks, cfg)
	go func() { done <- runner.Run(ctx, time.Minute) }()
	return func() error {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) { // a runner that is stopped before it has begun returns this error
			return err
		}
		return nil
	}
}

// publish runs a relay until the engine is closed.
func (e *engine) publish(bus relay.Publisher) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.b.ctx))
	e.relay = relay.New(e.pool, bus, relay.Config{Logger: e.b.log})
	var done sync.WaitGroup
	done.Go(func() { e.relay.Run(ctx) })
	e.onClose(func() error { cancel(); done.Wait(); return nil })
}

// bus starts a bus for this engine alone.
func (e *engine) bus() (*natsbus.Bus, error) {
	bus, closeBus, err := e.b.server.bus(e.b.ctx, e.b.log)
	if err != nil {
		return nil, err
	}
	e.onClose(closeBus)
	return bus, nil
}

// ended is when the last batch was committed.
func (e *engine) ended() time.Time { return time.Unix(0, e.committed.Load()) }

// verify returns an error unless every task has its rows: 1 completed task, 1 completed attempt, 3
// events and 1 completed job.
func (e *engine) verify(n int) error {
	got, err := benchdb.New(e.pool).CountFinished(e.b.ctx)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}

	want := benchdb.CountFinishedRow{Tasks: int64(n), Attempts: int64(n), Events: 3 * int64(n), Jobs: int64(n)}
	if got != want {
		return fmt.Errorf("the figure is void: of %d tasks %d are COMPLETED, with %d attempts, %d events (of %d) and %d completed jobs",
			n, got.Tasks, got.Attempts, got.Events, want.Events, got.Jobs)
	}

	return nil
}

// verifyPublished returns an error unless the stream holds n events, each once, and the outbox is
// empty. The ranges of outbox_published may have holes, so their lengths would prove nothing.
func (e *engine) verifyPublished(bus relay.Publisher, n int) error {
	q := benchdb.New(e.pool)
	var waiting int64
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		// The relay marks a batch with the next one, so the last batch is marked late.
		var err error
		if waiting, err = q.CountOutbox(e.b.ctx); err != nil {
			return fmt.Errorf("count: %w", err)
		}

		if waiting == 0 || time.Since(begun) > 10*time.Second {
			break
		}
	}

	stored, _, err := bus.Tail(e.b.ctx)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	if waiting != 0 || stored != uint64(n) {
		return fmt.Errorf("the figure is void: of %d events %d are on the bus, and %d flushes wait", n, stored, waiting)
	}

	return nil
}

// counter counts towards a number.
type counter struct {
	n    atomic.Int64
	want int64
	full chan struct{} // closed when want is reached
	at   time.Time     // when want was reached; read it after full is closed
}

func countTo(n int) *counter { return &counter{want: int64(n), full: make(chan struct{})} }

func (c *counter) add(n int64) {
	if sum := c.n.Add(n); sum >= c.want && sum-n < c.want {
		c.at = time.Now()
		close(c.full)
	}
}

// wait returns when the number is reached, with an error after patience.
func (c *counter) wait(ctx context.Context, of string) error {
	select {
	case <-c.full:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(patience):
		return fmt.Errorf("the figure is void: %d of %d %s after %v", c.n.Load(), c.want, of, patience)
	}
}

// handled is the no-op executor, and counts its calls.
type handled struct {
	*counter
	automated.Noop
}

// Execute counts the call.
func (h handled) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	h.add(1)
	return h.Noop.Execute(ctx, job)
}

// acked counts the events that a bus has acknowledged.
type acked struct {
	relay.Publisher
	counted atomic.Pointer[counter]
	waited  atomic.Int64 // time in Publish, ns
}

func ackedBy(bus relay.Publisher, n int) *acked {
	a := &acked{Publisher: bus}
	a.counted.Store(countTo(n))
	return a
}

// Publish publishes, then counts.
func (a *acked) Publish(ctx context.Context, batch []outbox.Message) (uint64, error) {
	begun := time.Now()
	last, err := a.Publisher.Publish(ctx, batch)
	a.waited.Add(int64(time.Since(begun)))
	if err == nil {
		a.counted.Load().add(int64(len(batch)))
	}
	return last, err
}

// profile writes a CPU profile until stop, if --profile is set.
func (b *suite) profile(name string) (stop func()) {
	if b.options.Profile == "" {
		return func() {}
	}

	file, err := os.Create(filepath.Join(b.options.Profile, name+".pprof"))
	if err == nil {
		err = pprof.StartCPUProfile(file)
	}

	if err != nil {
		b.log.Error("no profile", "of", name, "error", err)
		return func() {}
	}

	return func() {
		pprof.StopCPUProfile()
		_ = file.Close()
	}
}
