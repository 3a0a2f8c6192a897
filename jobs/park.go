package jobs

import (
	"context"

	"github.com/seed-3f7a0631/tes/db"
)

// park holds claimed jobs back whose tasks are paused: see pause.go. kind is the kind under
// which they waited.
func (c *claimer) park(kind string, jobs []int64) {
	r := c.r
	defer c.release(len(jobs))

	// A pause that another session has locked is not waited for: the jobs stay claimed, the slots
	// become free for other tasks, and the sweep gives the jobs' tasks new jobs.
	const what = "hold paused jobs back"
	var parked []bool
	err := r.tasks.retryWhile(r.ctx, isDatabaseAbsent, r.logRetry(what), func(context.Context) error {
		return uncancelled(func(ctx context.Context) (err error) {
			parked, err = r.tasks.q.LanePark(ctx, db.LaneParkParams{JobIds: jobs, Kind: kind, ExecutorID: r.tasks.cfg.ProcessID})
			return err
		})
	})
	if err != nil {
		r.logTrouble(what, err)
		return
	}

	for _, held := range parked {
		if !held { // resumed since the claim
			c.wake()
			return
		}
	}
}

// How far a dequeue goes past paused jobs. It holds back what it meets on the way, so that the
// next one begins behind it.
const (
	parkPage  = 500 // jobs in one statement
	parkPages = 20
)

// claim is WorkerClaim without the jobs that it has held back. Where there were only
// such jobs, it looks further.
func (l *Leases) claim(ctx context.Context, p db.WorkerClaimParams) ([]db.WorkerClaimRow, error) {
	p.Walk = p.Most

	for range parkPages {
		rows, err := l.t.q.WorkerClaim(ctx, p)
		if err != nil {
			return nil, err //nolint:wrapcheck // the caller wraps it
		}

		var claimed []db.WorkerClaimRow
		for _, row := range rows {
			if !row.Parked {
				claimed = append(claimed, row)
			}
		}

		if len(claimed) > 0 || len(rows) == 0 {
			return claimed, nil
		}

		p.Walk = parkPage
	}

	return nil, nil
}
