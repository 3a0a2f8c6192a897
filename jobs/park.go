package jobs

import (
	"context"
	"slices"

	"github.com/seed-3f7a0631/tes/db"
)

// park holds back the claimed jobs of paused tasks: see pause.go. The jobs waited under kind.
func (c *claimer) park(kind string, jobs []int64) {
	r := c.r
	defer c.release(len(jobs))

	// Only a lost database is waited for: after a lock timeout, the sweep finds the jobs.
	const what = "hold paused jobs back"
	var all bool
	err := r.tasks.retryWhile(r.ctx, isDatabaseAbsent, r.logRetry(what), func(context.Context) (err error) {
		all, err = r.tasks.park(kind, jobs)
		return err
	})
	if err != nil {
		r.logTrouble(what, err)
		return
	}

	// A pause was resumed since the claim: its jobs are available again.
	if !all {
		c.wake()
	}
}

// park holds back the claimed jobs of paused tasks. all is false if the pause of a job was resumed
// since the claim: the job is available again. park waits for locks of other sessions no longer than
// any statement. Then the jobs stay claimed, their slots become free for other tasks, and the sweep
// gives new jobs to the tasks.
func (t *Tasks) park(kind string, jobs []int64) (all bool, err error) {
	err = uncancelled(func(ctx context.Context) error {
		parked, err := t.q.LanePark(ctx, db.LaneParkParams{JobIds: jobs, Kind: kind, ExecutorID: t.cfg.ProcessID})
		all = !slices.Contains(parked, false)
		return err //nolint:wrapcheck // the callers log it with the same words
	})
	return all, err
}

// The bounds of a dequeue among paused jobs. The dequeue holds these jobs back, so that the next
// dequeue does not meet them.
const (
	parkPage  = 500 // jobs in one statement
	parkPages = 20
)

// spareHeads is the number of jobs that a claim considers beyond its need: concurrent claims have
// locked the first jobs.
const spareHeads = 64

// claim is WorkerClaim without the jobs of paused tasks, which are held back. After only such jobs,
// claim looks further.
func (l *Leases) claim(ctx context.Context, p db.WorkerClaimParams) ([]db.WorkerClaimRow, error) {
	// Nearly every claim meets no paused job, and needs one short walk.
	p.Walk = p.Most

	for range parkPages {
		p.Spare = 2*p.Walk + spareHeads
		rows, err := l.t.q.WorkerClaim(ctx, p)
		if err != nil {
			return nil, err //nolint:wrapcheck // the caller wraps it
		}

		var claimed []db.WorkerClaimRow
		var paused []int64
		for _, row := range rows {
			if row.Paused {
				paused = append(paused, row.JobID)
			} else {
				claimed = append(claimed, row)
			}
		}

		if len(paused) > 0 {
			if _, err := l.t.park(KindWorker, paused); err != nil {
				l.t.cfg.Logger.Warn("the jobs of paused tasks stay claimed until the sweep", "jobs", len(paused), "error", err)
				return claimed, nil
			}
		}

		if len(claimed) > 0 || len(rows) == 0 {
			return claimed, nil
		}

		// Only paused jobs so far: the next walk is longer.
		p.Walk = parkPage
	}

	return nil, nil
}
