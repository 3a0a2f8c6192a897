package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-3f7a0631/tes/db/benchdb"
	"github.com/seed-3f7a0631/tes/jobs"
)

// backlog compares claim rates: many pending tasks against few, and four ageing priorities against
// one priority. A rate counts the calls of a no-op handler, so claim and result are both part of
// it.
func (b *suite) backlog() error {
	if err := b.depths(); err != nil {
		return err
	}

	if err := b.priorities(); err != nil {
		return err
	}

	b.out.Backlog = &backlogResult{
		SmallPerSecond: rounded(median(b.out.column("backlog", "small"))),
		LargePerSecond: rounded(median(b.out.column("backlog", "large"))),
		Ratio:          rounded(median(b.out.column("backlog", "ratio"))),
		PriorityRatio:  rounded(median(b.out.column("priorities", "ratio"))),
	}

	return nil
}

// depthRounds is how many comparisons of the two depths make up one round. A single comparison ends
// within a second, too short for a steady figure.
const depthRounds = 3

func (b *suite) depths() (err error) {
	few, err := b.engine()
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, few.close()) }()
	many, err := b.engine()
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, many.close()) }()
	b.step(b.size.large, "backlog: %d tasks", b.size.large)
	if err := many.create(b.size.large); err != nil {
		return err
	}

	// Every comparison takes n tasks from the large backlog too; even after all rounds the backlog
	// is large.
	n, rounds := b.size.small, depthRounds*b.size.rounds
	for i := range rounds {
		b.step(n, "backlog %d/%d", i+1, rounds)
		if err := few.create(n); err != nil {
			return err
		}

		small, large, err := bothClaims(i%2 == 1, few, many, n)
		if err != nil {
			return err
		}

		b.out.addRatio("backlog", n, "large", large, "small", small)
	}

	return errors.Join(few.verifyRest(0), many.verifyRest(b.size.large-rounds*n))
}

// bothClaims takes the two rates, in either order, so that neither depth always profits from being
// second.
func bothClaims(manyFirst bool, few, many *engine, n int) (small, large timed, err error) {
	if manyFirst {
		if large, err = many.claims(n, jobs.RunnerConfig{}); err != nil {
			return small, large, err
		}
	}

	if small, err = few.claims(n, jobs.RunnerConfig{}); err != nil || manyFirst {
		return small, large, err
	}

	large, err = many.claims(n, jobs.RunnerConfig{})
	return small, large, err
}

// claims times the runner until n tasks have run. Tasks that were claimed beyond n run too, outside
// the timed part.
func (e *engine) claims(n int, cfg jobs.RunnerConfig) (t timed, err error) {
	b := e.b
	if err := b.server.quiesce(b.ctx, e.pool); err != nil {
		return t, err
	}

	done := countTo(n)
	settle()
	t.from = b.server.cpu(b.ctx)
	begun := time.Now()
	stop := e.run(handled{counter: done}, cfg)
	err = done.wait(b.ctx, "tasks were run")
	t.to = b.server.cpu(b.ctx)
	if err := errors.Join(err, stop()); err != nil {
		return t, err
	}

	t.took = done.at.Sub(begun)
	return t, nil
}

// verifyRest returns an error if more than most tasks are PENDING, or if a task is neither PENDING
// nor COMPLETED.
func (e *engine) verifyRest(most int) error {
	left, err := benchdb.New(e.pool).CountLeft(e.b.ctx)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	if left.Pending > int64(most) || left.Unfinished > 0 {
		return fmt.Errorf("the figures are void: %d tasks are PENDING (%d at most were expected), %d are neither PENDING nor COMPLETED", left.Pending, most, left.Unfinished)
	}
	return nil
}

// The ageing of the mixed run. Within a few seconds every priority has rows that climb, five times
// a second.
const (
	fastAgeStep = 100 * time.Millisecond
	fastTick    = 200 * time.Millisecond
)

func (b *suite) priorities() error {
	n := b.size.mixed
	for i := range b.size.rounds {
		b.step(2*n, "priorities %d/%d", i+1, b.size.rounds)
		one, err := b.claimRate(n, jobs.RunnerConfig{Tick: fastTick, AgeStep: time.Hour}, jobs.Medium)
		if err != nil {
			return err
		}

		four, err := b.claimRate(n, jobs.RunnerConfig{Tick: fastTick, AgeStep: fastAgeStep}, jobs.Critical, jobs.High, jobs.Medium, jobs.Low)
		if err != nil {
			return err
		}

		b.out.addRatio("priorities", n, "four", four, "one", one)
	}

	return nil
}

func (b *suite) claimRate(n int, cfg jobs.RunnerConfig, priorities ...jobs.Priority) (t timed, err error) {
	e, err := b.engine()
	if err != nil {
		return t, err
	}

	defer func() { err = errors.Join(err, e.close()) }()
	if err := e.create(n, priorities...); err != nil {
		return t, err
	}

	if t, err = e.claims(n, cfg); err != nil {
		return t, err
	}

	return t, e.verify(n)
}

// wal measures the WAL bytes of a task from its creation to COMPLETED, with the relay off. The
// first change of a page after a checkpoint logs the whole page, a cost that no task causes. So
// some tasks run first and touch every existing page; pages made later need no full image. On the
// operator's server the WAL of other databases is counted too.
func (b *suite) wal() (err error) {
	e, err := b.engine()
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, e.close()) }()
	n, first := b.size.wal, b.size.wal/10
	b.step(n+first, "WAL")
	if err := b.server.quiesce(b.ctx, e.pool); err != nil {
		return err
	}

	if err := e.finish(first); err != nil {
		return err
	}

	from, err := e.logged(b.ctx)
	if err != nil {
		return err
	}

	done := countTo(n)
	if err := e.create(n); err != nil {
		return err
	}

	created, err := e.logged(b.ctx)
	if err != nil {
		return err
	}

	stop := e.run(handled{counter: done}, jobs.RunnerConfig{})
	err = done.wait(b.ctx, "tasks were run")
	if err := errors.Join(err, stop()); err != nil {
		return err
	}

	to, err := e.logged(b.ctx)
	if err != nil {
		return err
	}

	b.out.WALBytesPerTask = rounded(float64(to-from) / float64(n))
	b.out.add("wal", roundFigures{"createBytes": rounded(float64(created-from) / float64(n)), "runBytes": rounded(float64(to-created) / float64(n))})
	return e.verify(n + first)
}

// logged is the server's current WAL position, in bytes.
func (e *engine) logged(ctx context.Context) (bytes int64, err error) {
	if err := e.pool.QueryRow(ctx, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").Scan(&bytes); err != nil {
		return 0, fmt.Errorf("ask for the WAL position: %w", err)
	}
	return bytes, nil
}
