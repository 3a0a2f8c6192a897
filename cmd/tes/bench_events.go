package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/relay"
)

// events measures the relay alone: from the rows of finished tasks to the bus's
// acknowledgement, every batch on disk, and their marks. Each round has a new bus
// and the same rows.
func (b *bench) events() (err error) {
	tasks := (b.size.tasks + 2) / 3 // of three events each
	n := 3 * tasks
	e, err := b.engine()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	b.step(tasks, "events: tasks")
	if err := e.finish(tasks); err != nil {
		return err
	}
	for round := range b.size.rounds {
		b.step(1, "events %d/%d", round+1, b.size.rounds)
		if err := b.server.still(b.ctx, e.pool); err != nil {
			return err
		}
		figures := benchRound{}
		part, err := e.tell(n)
		if err != nil {
			return err
		}
		part.put(figures, "events", n)
		b.out.add("events", figures)
		if err := e.untell(); err != nil {
			return err
		}
	}
	b.out.Events = &benchEvents{PerSecond: round(median(b.out.column("events", "events")))}
	return nil
}

// finish creates n tasks and runs them, with the relay off.
func (e *benchEngine) finish(n int) error {
	done := countTo(n)
	stop := e.run(handled{counter: done}, jobs.RunnerConfig{})
	err := e.create(n)
	if err == nil {
		err = done.wait(e.b.ctx, "tasks were run")
	}
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	return e.verify(n)
}

// tell publishes everything to a new bus.
func (e *benchEngine) tell(n int) (t timed, err error) {
	b := e.b
	bus, closeBus, err := b.server.bus(b.ctx, b.log)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, closeBus()) }()
	to := ackedBy(bus, n)
	relay := relay.New(e.pool, to, relay.Config{Logger: b.log})
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.ctx))
	var running sync.WaitGroup
	defer func() { cancel(); running.Wait() }()

	settle()
	stopProfile := b.profile("events")
	t.from = b.server.cpu(b.ctx)
	begun := time.Now()
	running.Go(func() { relay.Run(ctx) })
	if err := to.counted.Load().wait(b.ctx, "events were published"); err != nil {
		return t, err
	}
	for marked := false; !marked && b.ctx.Err() == nil; {
		time.Sleep(time.Millisecond) // the last round is marked by the next one
		if err := e.pool.QueryRow(b.ctx, "SELECT NOT EXISTS (SELECT FROM outbox)").Scan(&marked); err != nil {
			return t, fmt.Errorf("look at the outbox: %w", err)
		}
	}
	stopProfile()
	t.took, t.to, t.bus = time.Since(begun), b.server.cpu(b.ctx), time.Duration(to.waited.Load())
	return t, errors.Join(e.verifyPublished(bus, n), inOrder(b.ctx, bus, n))
}

// untell brings the outbox back to what it was before it was told.
func (e *benchEngine) untell() error {
	q := db.New(e.pool)
	leader, err := q.RelayLeader(e.b.ctx)
	if err != nil {
		return fmt.Errorf("refill the outbox: %w", err)
	}
	if _, err := q.OutboxRequeue(e.b.ctx, db.OutboxRequeueParams{Term: leader.Term, Page: math.MaxInt32}); err != nil {
		return fmt.Errorf("refill the outbox: %w", err)
	}
	// Else the relay would take the new bus for one that has lost its stream.
	if _, err := e.pool.Exec(e.b.ctx, "DELETE FROM outbox_stream"); err != nil {
		return fmt.Errorf("refill the outbox: %w", err)
	}
	return nil
}

// inOrder reads the stream back: n events, those of each task in their order.
func inOrder(ctx context.Context, bus *natsbus.Bus, n int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	read := countTo(n)
	last := map[string]string{} // sequence by task; one goroutine at a time
	err := bus.Subscribe(ctx, "", natsbus.All, func(d outbox.Delivery, at uint64) {
		task, sequence := d.Header["ce-subject"], d.Header["ce-sequence"]
		if sequence <= last[task] {
			cancel(fmt.Errorf("the figure is void: message %d of the stream tells of step %s of task %s after step %s", at, sequence, task, last[task]))
		}
		last[task] = sequence
		read.add(1)
	})
	if err != nil {
		return err
	}
	return read.wait(ctx, "events were read back")
}
