package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/benchdb"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/relay"
)

// events measures the relay alone: from the outbox rows of finished tasks to the bus's
// acknowledgements, with every message on disk, and the marks in the outbox. Each round has a new
// bus and the same rows.
func (b *suite) events() (err error) {
	tasks := (b.size.tasks + 2) / 3 // a task has three events
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
		if err := b.server.quiesce(b.ctx, e.pool); err != nil {
			return err
		}

		figures := roundFigures{}
		part, err := e.publishTo(n)
		if err != nil {
			return err
		}

		part.put(figures, "events", n)
		b.out.add("events", figures)
		if err := e.requeueEvents(); err != nil {
			return err
		}
	}

	b.out.Events = &eventsResult{PerSecond: rounded(median(b.out.column("events", "events")))}
	return nil
}

// finish creates n tasks and runs them, with the relay off.
func (e *engine) finish(n int) error {
	// Tasks are created while the runner runs, because the events matter here and not the time.
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

// publishTo publishes the whole outbox to a new bus.
func (e *engine) publishTo(n int) (t timed, err error) {
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

	// The relay marks a batch with the next one, so the last batch is marked late.
	q := benchdb.New(e.pool)
	for marked := false; !marked && b.ctx.Err() == nil; {
		time.Sleep(time.Millisecond)
		if marked, err = q.OutboxEmpty(b.ctx); err != nil {
			return t, fmt.Errorf("look at the outbox: %w", err)
		}
	}

	stopProfile()
	t.took, t.to, t.bus = time.Since(begun), b.server.cpu(b.ctx), time.Duration(to.waited.Load())
	return t, errors.Join(e.verifyPublished(bus, n), inOrder(b.ctx, bus, n))
}

// requeueEvents puts every published event back into the outbox.
func (e *engine) requeueEvents() error {
	q := db.New(e.pool)
	leader, err := q.RelayLeader(e.b.ctx)
	if err != nil {
		return fmt.Errorf("refill the outbox: %w", err)
	}

	if _, err := q.OutboxRequeue(e.b.ctx, db.OutboxRequeueParams{Term: leader.Term, Page: math.MaxInt32}); err != nil {
		return fmt.Errorf("refill the outbox: %w", err)
	}

	// Without this the relay would take the next round's new bus for a bus that has lost its stream.
	if err := benchdb.New(e.pool).ForgetStream(e.b.ctx); err != nil {
		return fmt.Errorf("refill the outbox: %w", err)
	}

	return nil
}

// inOrder reads the stream back: n events, each task's events in order.
func inOrder(ctx context.Context, bus *natsbus.Bus, n int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	read := countTo(n)
	last := map[string]string{} // the last sequence, by task id; only Subscribe's goroutine uses it
	err := bus.Subscribe(ctx, "", natsbus.All, func(d outbox.Delivery, at uint64) {
		task, sequence := d.Header["ce-subject"], d.Header["ce-sequence"]
		if sequence <= last[task] {
			cancel(fmt.Errorf("the figure is void: message %d of the stream is event %s of task %s, and comes after event %s", at, sequence, task, last[task]))
		}

		last[task] = sequence
		read.add(1)
	})
	if err != nil {
		return err
	}

	return read.wait(ctx, "events were read back")
}
