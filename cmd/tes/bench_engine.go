package main

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

	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/automated"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/relay"
)

// lastOrders is the context of taking down, which goes on after Ctrl-C.
func lastOrders() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 2*time.Minute)
}

// benchPatience bounds the wait for anything that must come.
const benchPatience = 3 * time.Minute

// benchDefinition is what every task of the benchmarks is made of.
const benchDefinition = "bench-noop"

// benchEngine is tes without its door, on a database of its own: the pools,
// River's client and the settings are those of serve.
type benchEngine struct {
	b       *bench
	name    string // of the database
	pool    *pgxpool.Pool
	tasks   *jobs.Tasks
	relay   *relay.Relay // nil when off
	told    atomic.Int64 // when the last flush committed, ns of the Unix time
	closers []func() error
}

// engine starts one on a fresh database, without runner and relay.
func (b *bench) engine() (e *benchEngine, err error) {
	e = &benchEngine{b: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if e.name, err = b.server.fresh(b.ctx, "tes"); err != nil {
		return nil, err
	}
	if !b.cmd.Keep {
		e.onClose(func() error { return b.server.drop(e.name) })
	}
	url := b.server.url(e.name)
	if e.pool, err = e.open(url, pgpool.Config{Name: "tes engine", MaxConns: 16, Engine: true}); err != nil {
		return nil, err
	}
	own, err := e.open(url, pgpool.Config{Name: "tes river", MaxConns: 4, Custom: true})
	if err != nil {
		return nil, err
	}
	e.tasks = jobs.New(e.pool, jobs.Config{Logger: b.log, Told: func() {
		e.told.Store(time.Now().UnixNano())
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
		ctx, cancel := lastOrders()
		defer cancel()
		return river.Stop(ctx)
	})
	_, _, err = e.tasks.Definitions.Put(b.ctx, "bench", 0, jobs.Definition{
		ID: benchDefinition, Type: jobs.Automated, Version: "1", ExecutionConfig: jobs.ExecutionConfig{Executor: "noop"},
	})
	return e, err
}

func (e *benchEngine) open(url string, cfg pgpool.Config) (*pgxpool.Pool, error) {
	pool, err := pgpool.Open(e.b.ctx, url, cfg)
	if err != nil {
		return nil, err
	}
	e.onClose(func() error { pool.Close(); return nil })
	return pool, nil
}

func (e *benchEngine) onClose(do func() error) { e.closers = append(e.closers, do) }

func (e *benchEngine) close() error {
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

// benchRequest is the smallest whole one.
func benchRequest(priority jobs.Priority) jobs.Request {
	return jobs.Request{
		TaskDefinitionID: benchDefinition, WorkflowID: "bench", Priority: priority, Input: json.RawMessage(`{"n": 1}`), By: "bench",
	}
}

// benchCreators is how many callers create at a time: what fills a flush.
const benchCreators = 1000

// create makes n tasks, of one priority or of all in turn, as callers would.
func (e *benchEngine) create(n int, priorities ...jobs.Priority) error {
	if len(priorities) == 0 {
		priorities = []jobs.Priority{jobs.Medium}
	}
	ctx, cancel := context.WithCancelCause(e.b.ctx)
	defer cancel(nil)
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(benchCreators, n) {
		all.Go(func() {
			for i := next.Add(1); i <= int64(n) && ctx.Err() == nil; i = next.Add(1) {
				if _, _, err := e.tasks.Create(ctx, benchRequest(priorities[i%int64(len(priorities))])); err != nil {
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

// run starts the working half with one executor; stop ends it and returns when all
// it did is committed.
func (e *benchEngine) run(noop jobs.Executor, cfg jobs.RunnerConfig) (stop func() error) {
	cfg.Executors = map[string]jobs.Registration{"noop": {Executor: noop, Pure: true}}
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.b.ctx))
	done := make(chan error, 1)
	runner := jobs.NewRunner(e.tasks, cfg)
	go func() { done <- runner.Run(ctx, time.Minute) }()
	return func() error {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) { // it is, if this came before it had begun
			return err
		}
		return nil
	}
}

// publish turns the relay on, until the engine is closed.
func (e *benchEngine) publish(bus relay.Publisher) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.b.ctx))
	e.relay = relay.New(e.pool, bus, relay.Config{Logger: e.b.log})
	var done sync.WaitGroup
	done.Go(func() { e.relay.Run(ctx) })
	e.onClose(func() error { cancel(); done.Wait(); return nil })
}

// bus opens one for this engine alone.
func (e *benchEngine) bus() (*natsbus.Bus, error) {
	bus, closeBus, err := e.b.server.bus(e.b.ctx, e.b.log)
	if err != nil {
		return nil, err
	}
	e.onClose(closeBus)
	return bus, nil
}

// ended is when the last flush committed.
func (e *benchEngine) ended() time.Time { return time.Unix(0, e.told.Load()) }

// verify makes a figure void unless every row is there.
func (e *benchEngine) verify(n int) error {
	var tasks, attempts, events, worked int
	err := e.pool.QueryRow(e.b.ctx, `
		SELECT
			(SELECT count(*) FROM task WHERE status = 'COMPLETED'),
			(SELECT count(*) FROM task_attempt WHERE outcome = 'COMPLETED'),
			(SELECT count(*) FROM task_event),
			(SELECT count(*) FROM river_job WHERE state = 'completed')`).Scan(&tasks, &attempts, &events, &worked)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	if tasks != n || attempts != n || events != 3*n || worked != n {
		return fmt.Errorf("the figure is void: of %d tasks %d are COMPLETED, with %d attempts, %d events (of %d) and %d completed jobs",
			n, tasks, attempts, events, 3*n, worked)
	}
	return nil
}

// verifyPublished makes a figure void unless the stream holds n events, each once,
// and nothing waits. The ranges of outbox_published may have holes, so their
// lengths say nothing.
func (e *benchEngine) verifyPublished(bus relay.Publisher, n int) error {
	var waiting int
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		// The last round is marked by the next one.
		if err := e.pool.QueryRow(e.b.ctx, "SELECT count(*) FROM outbox").Scan(&waiting); err != nil {
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
	at   time.Time     // when; to be read after full
}

func countTo(n int) *counter { return &counter{want: int64(n), full: make(chan struct{})} }

func (c *counter) add(n int64) {
	if sum := c.n.Add(n); sum >= c.want && sum-n < c.want {
		c.at = time.Now()
		close(c.full)
	}
}

// wait returns when the number is reached.
func (c *counter) wait(ctx context.Context, of string) error {
	select {
	case <-c.full:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(benchPatience):
		return fmt.Errorf("the figure is void: %d of %d %s after %v", c.n.Load(), c.want, of, benchPatience)
	}
}

// handled is the no-op executor, counted.
type handled struct {
	*counter
	automated.Noop
}

// Execute does nothing, once.
func (h handled) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	h.add(1)
	return h.Noop.Execute(ctx, job)
}

// acked counts the events that a bus has acknowledged.
type acked struct {
	relay.Publisher
	counted atomic.Pointer[counter]
	waited  atomic.Int64 // for the bus, ns
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

// profile writes a CPU profile from here to stop, if one is wanted.
func (b *bench) profile(name string) (stop func()) {
	if b.cmd.Profile == "" {
		return func() {}
	}
	file, err := os.Create(filepath.Join(b.cmd.Profile, name+".pprof"))
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
