package bench

import (
	"errors"
	"fmt"
	"time"

	"github.com/seed-3f7a0631/tes/jobs"
)

// drains empties a queue of pending no-op tasks, and compares the time with River emptying a queue
// of as many no-op jobs. The clock runs from the start of the runner to the commit of the last
// result. For drainPublished the relay is on, and the clock stops when the bus has acknowledged the
// last event; the created events are published before the clock starts.
//
// Both sides are asked to stop when the last handler has been called, so that neither waits for its
// next poll to flush its last results.
func (b *suite) drains() error {
	n := b.size.tasks
	for round := range b.size.rounds {
		var ours, published timed
		var err error
		if b.wants("drain") {
			b.step(n, "drain %d/%d", round+1, b.size.rounds)

			if ours, err = b.drain(n); err != nil {
				return err
			}
		}

		b.step(n, "drain %d/%d: River", round+1, b.size.rounds)

		// River's figure belongs to both sections, so that both compare with the same round.
		river, err := b.drainRiver(n)
		if err != nil {
			return fmt.Errorf("river: %w", err)
		}

		if b.wants("drainPublished") {
			b.step(n, "drain, until published %d/%d", round+1, b.size.rounds)
			if published, err = b.drainPublished(n); err != nil {
				return err
			}
			b.out.addPair("drainPublished", n, published, river)
		}

		if b.wants("drain") {
			b.out.addPair("drain", n, ours, river)
		}
	}

	if b.wants("drain") {
		b.out.Drain = b.out.compare("drain")
	}
	if b.wants("drainPublished") {
		b.out.DrainPublished = b.out.compare("drainPublished")
	}

	return nil
}

func (b *suite) drain(n int) (t timed, err error) {
	e, err := b.engine()
	if err != nil {
		return t, err
	}

	defer func() { err = errors.Join(err, e.close()) }()
	if err := e.create(n); err != nil {
		return t, err
	}

	if err := b.server.quiesce(b.ctx, e.pool); err != nil {
		return t, err
	}

	// From here on, nothing but the engine's own work may happen until the last result.
	done := countTo(n)
	settle()
	stopProfile := b.profile("drain")
	t.from = b.server.cpu(b.ctx)
	begun := time.Now()
	stop := e.run(handled{counter: done}, jobs.RunnerConfig{})
	err = done.wait(b.ctx, "tasks were run")
	if err := errors.Join(err, stop()); err != nil {
		return t, err
	}

	stopProfile()
	t.took, t.to = e.ended().Sub(begun), b.server.cpu(b.ctx)
	return t, e.verify(n)
}

func (b *suite) drainPublished(n int) (t timed, err error) {
	e, err := b.engine()
	if err != nil {
		return t, err
	}

	defer func() { err = errors.Join(err, e.close()) }()
	bus, err := e.bus()
	if err != nil {
		return t, err
	}

	// The created events are published before the clock starts: only those of the runs are
	// measured.
	to := ackedBy(bus, n)
	e.publish(to)
	if err := e.create(n); err != nil {
		return t, err
	}

	if err := to.counted.Load().wait(b.ctx, "created events were published"); err != nil {
		return t, err
	}

	if err := e.verifyPublished(to, n); err != nil {
		return t, err
	}

	if err := b.server.quiesce(b.ctx, e.pool); err != nil {
		return t, err
	}

	// Each task has a started and a completed event still to come.
	done, published := countTo(n), countTo(2*n)
	to.counted.Store(published)
	to.waited.Store(0)
	settle()
	stopProfile := b.profile("drainPublished")
	t.from = b.server.cpu(b.ctx)
	begun := time.Now()
	stop := e.run(handled{counter: done}, jobs.RunnerConfig{})
	err = errors.Join(done.wait(b.ctx, "tasks were run"), published.wait(b.ctx, "events were published"))
	stopProfile()
	if err := errors.Join(err, stop()); err != nil {
		return t, err
	}

	t.took, t.to = published.at.Sub(begun), b.server.cpu(b.ctx)
	t.bus = time.Duration(to.waited.Load())
	return t, errors.Join(e.verify(n), e.verifyPublished(to, 3*n))
}

func (b *suite) drainRiver(n int) (t timed, err error) {
	p, err := b.river(n)
	if err != nil {
		return t, err
	}

	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.create(n); err != nil {
		return t, err
	}

	if err := b.server.quiesce(b.ctx, p.pool); err != nil {
		return t, err
	}

	settle()
	t.from = b.server.cpu(b.ctx)
	begun := time.Now()
	if err := p.start(); err != nil {
		return t, err
	}

	err = p.done.wait(b.ctx, "jobs were worked")
	if err := errors.Join(err, p.stop()); err != nil {
		return t, err
	}

	t.took, t.to = p.ended().Sub(begun), b.server.cpu(b.ctx)
	return t, p.verify(n)
}
