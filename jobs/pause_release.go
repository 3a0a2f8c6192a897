package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// releaseTime bounds the release within the call of a resume. The ticks of the processes release the
// rest.
const releaseTime = 2 * time.Second

// release makes the held-back jobs of resumed pauses available. A job with another pause in force stays
// held back. Safe to call from any process at any time.
//
// All processes share one walk over the held-back jobs, page by page, with its position in table
// pause_walk. While another process makes a page, release leaves the walk to the other process. Without
// a resumed pause, a page is made after rhythm, for jobs whose pause was deleted from the table.
func (p *Pauses) release(ctx context.Context, rhythm time.Duration) error {
	for walking := false; ; {
		if !walking {
			// Has no effect while a walk is under way.
			if err := p.t.q.PauseWalkBegin(ctx); err != nil {
				return fmt.Errorf("begin to release jobs that were held back: %w", err)
			}
		}

		page, err := retryDeadlock(ctx, func() (db.PauseReleaseRow, error) { return p.t.q.PauseRelease(ctx, rhythm.Seconds()) })
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return nil
		case err != nil:
			return fmt.Errorf("release jobs that were held back: %w", err)
		}
		p.t.notifyQueues(ctx, page.Queues...)

		// A page without resumed pauses is a check for deleted pauses: one page each rhythm is enough.
		if !page.Releases {
			return nil
		}
		walking = !page.Ended
	}
}

// releaseTask is release for the resumed pause of a task. The statement reads the job of this task
// alone, however many jobs other pauses hold back.
func (p *Pauses) releaseTask(ctx context.Context, task string, pause int64) error {
	id, err := uuid.Parse(task)
	if err != nil {
		return fmt.Errorf("task %q: %w", task, err)
	}

	row, err := retryDeadlock(ctx, func() (db.PauseReleaseTaskRow, error) { return p.t.q.PauseReleaseTask(ctx, id) })
	if err != nil {
		return fmt.Errorf("release the job of task %s: %w", task, err)
	}
	p.t.notifyQueues(ctx, row.Queues...)

	if row.Locked {
		return nil // looked at again at the next tick
	}
	// The walk of the next tick need not look for this pause.
	return p.t.q.PauseReleased(ctx, []int64{pause})
}

// releases continues the releases that the callers of resumes have not finished.
func (r *Runner) releases(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "release jobs that were held back", func(ctx context.Context) error {
		return r.tasks.Pauses.release(ctx, sweepTicks*r.cfg.Tick)
	})
}
