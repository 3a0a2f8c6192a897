package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/seed-3f7a0631/tes/db/benchdb"
)

// The settings of the bare River client, the best that were found: no longer and no shorter
// cooldown or poll gave a higher rate.
const (
	riverWorkers  = 2000
	riverCooldown = 2 * time.Millisecond
	riverPoll     = 20 * time.Millisecond
	riverConns    = 32
)

// noopArgs is the smallest job.
type noopArgs struct {
	N int `json:"n"`
}

// Kind is the name by which River finds the worker.
func (noopArgs) Kind() string { return "noop" }

// noopWorker counts its calls.
type noopWorker struct {
	river.WorkerDefaults[noopArgs]
	done *counter
}

// Work counts the call.
func (w *noopWorker) Work(context.Context, *river.Job[noopArgs]) error {
	w.done.add(1)
	return nil
}

// riverPeer is the other side of a comparison: River alone, with the stock schema, on a separate
// database, without tasks, attempts and events.
type riverPeer struct {
	b       *suite
	name    string
	pool    *pgxpool.Pool
	client  *river.Client[pgx.Tx]
	done    *counter
	written atomic.Int64 // when the last completions were committed, Unix time in ns
}

// river makes a peer whose done is full after n jobs.
func (b *suite) river(n int) (p *riverPeer, err error) {
	p = &riverPeer{b: b, done: countTo(n)}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.name, err = b.server.fresh(b.ctx, "river"); err != nil {
		return nil, err
	}

	cfg, err := pgxpool.ParseConfig(b.server.url(p.name))
	if err != nil {
		return nil, fmt.Errorf("database url: %w", err)
	}

	cfg.MaxConns = riverConns
	cfg.ConnConfig.Tracer = completions{&p.written}
	if p.pool, err = pgxpool.NewWithConfig(b.ctx, cfg); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}

	// The completer's batch size and flush interval are River's own: bare River means without
	// tricks.
	workers := river.NewWorkers()
	river.AddWorker(workers, &noopWorker{done: p.done})
	p.client, err = river.NewClient(riverpgxv5.New(p.pool), &river.Config{
		Logger: b.log, Workers: workers, FetchCooldown: riverCooldown, FetchPollInterval: riverPoll,
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: riverWorkers}},
	})
	if err != nil {
		return nil, fmt.Errorf("river client: %w", err)
	}

	return p, nil
}

// completions notes the end of each statement with which River's completer commits. River's
// subscriptions would cost River time for each job, and polling would cost the machine; a tracer
// costs nothing.
type completions struct{ at *atomic.Int64 }

type isCompletion struct{}

// TraceQueryStart marks the completer's statement.
func (completions) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(data.SQL, "-- name: JobSetStateIfRunningMany") {
		return context.WithValue(ctx, isCompletion{}, true)
	}
	return ctx
}

// TraceQueryEnd notes the end of a marked statement.
func (c completions) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if ctx.Value(isCompletion{}) != nil {
		c.at.Store(time.Now().UnixNano())
	}
}

// create inserts n jobs in bulk, the fastest way that River has.
func (p *riverPeer) create(n int) error {
	for made := 0; made < n; {
		// In batches, because COPY needs the rows of a batch in memory.
		batch := make([]river.InsertManyParams, min(5000, n-made))
		for i := range batch {
			batch[i].Args = noopArgs{N: made + i}
		}

		if _, err := p.client.InsertManyFast(p.b.ctx, batch); err != nil {
			return fmt.Errorf("insert jobs: %w", err)
		}

		made += len(batch)
		_ = p.b.bar.Add(len(batch))
	}

	return nil
}

func (p *riverPeer) start() error {
	if err := p.client.Start(context.WithoutCancel(p.b.ctx)); err != nil {
		return fmt.Errorf("start river: %w", err)
	}
	return nil
}

// stop stops the client, which makes its completer write at once. A running completer would keep
// the last completions for up to 250 ms, and the figure would be too low.
func (p *riverPeer) stop() error {
	ctx, cancel := cleanupContext()
	defer cancel()
	if err := p.client.Stop(ctx); err != nil {
		return fmt.Errorf("stop river: %w", err)
	}
	return nil
}

// ended is when the last completions were committed. It is complete after stop.
func (p *riverPeer) ended() time.Time { return time.Unix(0, p.written.Load()) }

func (p *riverPeer) verify(n int) error {
	completed, err := benchdb.New(p.pool).CountCompletedJobs(p.b.ctx)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	if completed != int64(n) {
		return fmt.Errorf("the figure is void: of %d jobs River completed %d", n, completed)
	}
	return nil
}

func (p *riverPeer) close() error {
	if p.pool != nil {
		p.pool.Close()
	}
	if p.name == "" || p.b.options.Keep {
		return nil
	}
	return p.b.server.drop(p.name)
}
