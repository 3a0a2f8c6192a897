package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-3f7a0631/tes/jobs"
)

// backlog compares claim rates: among many pending tasks with among few, and with
// four priorities that age with one that does not. A rate is that of calls of a
// no-op handler, so it holds claim and result alike.
func (b *bench) backlog() error {
	if err := b.depths(); err != nil {
		return err
	}
	if err := b.priorities(); err != nil {
		return err
	}
	b.out.Backlog = &benchBacklog{
		SmallPerSecond: round(median(b.out.column("backlog", "small"))),
		LargePerSecond: round(median(b.out.column("backlog", "large"))),
		Ratio:          round(median(b.out.column("backlog", "ratio"))),
		PriorityRatio:  round(median(b.out.column("priorities", "ratio"))),
	}
	return nil
}

// depthRounds is how often the two depths are compared for each round of the
// others: one comparison is over in a second.
const depthRounds = 3

func (b *bench) depths() (err error) {
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

// bothClaims takes the two rates, in either order.
func bothClaims(manyFirst bool, few, many *benchEngine, n int) (small, large timed, err error) {
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

// claims runs what is pending until n tasks were run. What was claimed beyond is
// run too.
func (e *benchEngine) claims(n int, cfg jobs.RunnerConfig) (t timed, err error) {
	b := e.b
	if err := b.server.still(b.ctx, e.pool); err != nil {
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

// verifyRest makes the figures void unless at most so many tasks are left and all
// others are whole.
func (e *benchEngine) verifyRest(most int) error {
	var left, half int
	err := e.pool.QueryRow(e.b.ctx, `
		SELECT count(*) FILTER (WHERE t.status = 'PENDING'), count(*) FILTER (WHERE t.status NOT IN ('PENDING', 'COMPLETED'))
		FROM task t`).Scan(&left, &half)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	if left > most || half > 0 {
		return fmt.Errorf("the figures are void: %d tasks are PENDING (of %d at most), %d neither that nor COMPLETED", left, most, half)
	}
	return nil
}

// The ageing of the mixed run: so quick that in its few seconds every priority has
// rows to climb, at a rhythm of five times a second.
const (
	benchAgeStep = 100 * time.Millisecond
	benchTick    = 200 * time.Millisecond
)

func (b *bench) priorities() error {
	n := b.size.mixed
	for i := range b.size.rounds {
		b.step(2*n, "priorities %d/%d", i+1, b.size.rounds)
		one, err := b.claimRate(n, jobs.RunnerConfig{Tick: benchTick, AgeStep: time.Hour}, jobs.Medium)
		if err != nil {
			return err
		}
		four, err := b.claimRate(n, jobs.RunnerConfig{Tick: benchTick, AgeStep: benchAgeStep}, jobs.Critical, jobs.High, jobs.Medium, jobs.Low)
		if err != nil {
			return err
		}
		b.out.addRatio("priorities", n, "four", four, "one", one)
	}
	return nil
}

func (b *bench) claimRate(n int, cfg jobs.RunnerConfig, priorities ...jobs.Priority) (t timed, err error) {
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

// wal is what a task writes from its creation to COMPLETED, relay off. A page's
// first change after a checkpoint logs the page whole, which says nothing of a
// task: so some tasks go first and touch every page that exists; pages made later
// need no such image. On another server whatever else it does is counted too.
func (b *bench) wal() (err error) {
	e, err := b.engine()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	n, first := b.size.wal, b.size.wal/10
	b.step(n+first, "WAL")
	if err := b.server.still(b.ctx, e.pool); err != nil {
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
	b.out.WALBytesPerTask = round(float64(to-from) / float64(n))
	b.out.add("wal", benchRound{"createBytes": round(float64(created-from) / float64(n)), "runBytes": round(float64(to-created) / float64(n))})
	return e.verify(n + first)
}

// logged is how many bytes of WAL the server has ever written.
func (e *benchEngine) logged(ctx context.Context) (bytes int64, err error) {
	if err := e.pool.QueryRow(ctx, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").Scan(&bytes); err != nil {
		return 0, fmt.Errorf("ask for the WAL position: %w", err)
	}
	return bytes, nil
}
