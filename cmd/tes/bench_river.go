package main

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
)

// The bare River client at the best settings that were found for it: no cooldown
// or poll that is longer or shorter gave more.
const (
	riverWorkers  = 2000
	riverCooldown = 2 * time.Millisecond
	riverPoll     = 20 * time.Millisecond
	riverConns    = 32
)

// benchArgs is the smallest job.
type benchArgs struct {
	N int `json:"n"`
}

// Kind is River's name of it.
func (benchArgs) Kind() string { return "noop" }

// benchWorker does nothing, counted.
type benchWorker struct {
	river.WorkerDefaults[benchArgs]
	done *counter
}

// Work does nothing, once.
func (w *benchWorker) Work(context.Context, *river.Job[benchArgs]) error {
	w.done.add(1)
	return nil
}

// benchRiver is the peer: River alone, with its stock schema, on a database of
// its own. It keeps no task, no attempt and no event.
type benchRiver struct {
	b       *bench
	name    string
	pool    *pgxpool.Pool
	client  *river.Client[pgx.Tx]
	done    *counter
	written atomic.Int64 // when the last completions were committed, ns of the Unix time
}

// river makes a peer that will have worked n jobs when done is full.
func (b *bench) river(n int) (p *benchRiver, err error) {
	p = &benchRiver{b: b, done: countTo(n)}
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
	workers := river.NewWorkers()
	river.AddWorker(workers, &benchWorker{done: p.done})
	p.client, err = river.NewClient(riverpgxv5.New(p.pool), &river.Config{
		Logger: b.log, Workers: workers, FetchCooldown: riverCooldown, FetchPollInterval: riverPoll,
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: riverWorkers}},
	})
	if err != nil {
		return nil, fmt.Errorf("river client: %w", err)
	}
	return p, nil
}

// completions notes the end of each statement with which River's completer
// commits. Its subscription would cost River something for each job, and polling
// would cost the machine; this costs nothing.
type completions struct{ at *atomic.Int64 }

type isCompletion struct{}

// TraceQueryStart marks the statement.
func (completions) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(data.SQL, "-- name: JobSetStateIfRunningMany") {
		return context.WithValue(ctx, isCompletion{}, true)
	}
	return ctx
}

// TraceQueryEnd notes its end.
func (c completions) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if ctx.Value(isCompletion{}) != nil {
		c.at.Store(time.Now().UnixNano())
	}
}

// create inserts n jobs in bulk, as fast as River can.
func (p *benchRiver) create(n int) error {
	for made := 0; made < n; {
		batch := make([]river.InsertManyParams, min(5000, n-made))
		for i := range batch {
			batch[i].Args = benchArgs{N: made + i}
		}
		if _, err := p.client.InsertManyFast(p.b.ctx, batch); err != nil {
			return fmt.Errorf("insert jobs: %w", err)
		}
		made += len(batch)
		_ = p.b.bar.Add(len(batch))
	}
	return nil
}

func (p *benchRiver) start() error {
	if err := p.client.Start(context.WithoutCancel(p.b.ctx)); err != nil {
		return fmt.Errorf("start river: %w", err)
	}
	return nil
}

// stop lets River write its last completions at once: left alone it would sit on
// them for up to a quarter of a second, which says nothing of its rate.
func (p *benchRiver) stop() error {
	ctx, cancel := lastOrders()
	defer cancel()
	if err := p.client.Stop(ctx); err != nil {
		return fmt.Errorf("stop river: %w", err)
	}
	return nil
}

// ended is when the last completions were committed; to be asked after stop.
func (p *benchRiver) ended() time.Time { return time.Unix(0, p.written.Load()) }

func (p *benchRiver) verify(n int) error {
	var completed int
	if err := p.pool.QueryRow(p.b.ctx, "SELECT count(*) FROM river_job WHERE state = 'completed'").Scan(&completed); err != nil {
		return fmt.Errorf("count: %w", err)
	}
	if completed != n {
		return fmt.Errorf("the figure is void: of %d jobs River completed %d", n, completed)
	}
	return nil
}

func (p *benchRiver) close() error {
	if p.pool != nil {
		p.pool.Close()
	}
	if p.name == "" || p.b.cmd.Keep {
		return nil
	}
	return p.b.server.drop(p.name)
}
