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

// releaseTime bounds what a resume releases before it answers. The rest is released at the
// processes' ticks.
const releaseTime = 2 * time.Second

// release makes the jobs available that are held back for resumed pauses alone. A job that
// another pause in force holds back stays. Safe to call from any process at any time.
//
// All processes make one walk, page by page, with its place in table pause_walk: if another
// process makes a page at this moment, release leaves the walk to it. Where there is no resumed
// pause, a page is made after rhythm, which finds jobs whose pause somebody has deleted.
func (p *Pauses) release(ctx context.Context, rhythm time.Duration) error {
	for walking := false; ; {
		if !walking {
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

		if !page.Releases {
			return nil
		}
		walking = !page.Ended
	}
}

// releaseTask is release for the resumed pause of one task: it looks at this task's job alone,
// however many jobs other pauses hold back.
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
	return p.t.q.PauseReleased(ctx, []int64{pause})
}

// releases ends what a resume has left undone.
func (r *Runner) releases(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "release jobs that were held back", func(ctx context.Context) error {
		return r.tasks.Pauses.release(ctx, sweepTicks*r.cfg.Tick)
	})
}
