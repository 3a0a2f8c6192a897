package jobs

import (
	"context"
	"slices"

	"github.com/seed-3f7a0631/tes/db"
)

// park holds claimed jobs back whose tasks are paused: see pause.go. kind is the kind under
// which they waited.
func (c *claimer) park(kind string, jobs []int64) {
	r := c.r
	defer c.release(len(jobs))

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

	if !all {
		c.wake()
	}
}

// park holds back the claimed jobs of paused tasks. all is false if a job's pause was resumed
// since the claim: the job is available again. A lock that another session holds is waited for
// only as long as any statement waits: then the jobs stay claimed, their slots become free for
// other tasks, and the sweep gives the jobs' tasks new jobs.
func (t *Tasks) park(kind string, jobs []int64) (all bool, err error) {
	err = uncancelled(func(ctx context.Context) error {
		parked, err := t.q.LanePark(ctx, db.LaneParkParams{JobIds: jobs, Kind: kind, ExecutorID: t.cfg.ProcessID})
		all = !slices.Contains(parked, false)
		return err //nolint:wrapcheck // the callers log it with the same words
	})
	return all, err
}

// How far a dequeue goes past paused jobs. It holds back what it meets on the way, so that the
// next one begins behind it.
const (
	parkPage  = 500 // jobs in one statement
	parkPages = 20
)

// spareHeads is how many jobs more than it wants a claim considers: others that run at the same
// time have locked the first ones.
const spareHeads = 64

// claim is WorkerClaim without the jobs of paused tasks, which it holds back. Where there were
// only such jobs, it looks further.
func (l *Leases) claim(ctx context.Context, p db.WorkerClaimParams) ([]db.WorkerClaimRow, error) {
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

		p.Walk = parkPage
	}

	return nil, nil
}
