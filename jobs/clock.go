package jobs

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// The database's clock decides. A moment that a statement judges was written by a
// statement; what a process knows is how long ago something happened and how long
// something is to wait, and it hands in these. Where a process needs to know what time it
// is at the database (due dates in business hours, serverTime) it reckons: its own clock
// and the difference, which is measured once a second.

// clock is a process's clock, and what it knows of the database's.
type clock struct {
	wall func() time.Time
	log  *slog.Logger
	off  atomic.Int64 // nanoseconds that the database is ahead
	read atomic.Bool  // it was measured
	said atomic.Int64 // when a difference was logged, in Unix seconds
}

// clockTolerance is the difference that is not worth a line in the log.
const clockTolerance = time.Second

// sayClockEvery spaces the lines in the log about a difference.
const sayClockEvery = 10 * time.Minute

// now is the database's time, as far as is known.
func (c *clock) now() time.Time {
	return c.wall().Add(time.Duration(c.off.Load())).UTC().Truncate(time.Microsecond)
}

// since is how long ago a moment of this process's clock was.
func (c *clock) since(at time.Time) time.Duration { return max(0, c.wall().Sub(at)) }

// measured notes what the database said between two moments of ours.
func (c *clock) measured(asked time.Time, said time.Time, answered time.Time) {
	took := answered.Sub(asked)
	if took > clockTolerance && c.read.Load() {
		return // it says too little
	}

	off := said.Sub(asked.Add(took / 2))
	c.off.Store(int64(off))
	c.read.Store(true)
	if off.Abs() <= clockTolerance {
		return
	}

	at, before := answered.Unix(), c.said.Load()
	if at-before >= int64(sayClockEvery.Seconds()) && c.said.CompareAndSwap(before, at) {
		c.log.Warn("this process's clock and the database's differ; the database's decides", "database_ahead", off)
	}
}

// Now is the database's time. It is asked when nobody has before, and reckoned from then
// on; while the database is away it is this process's.
func (t *Tasks) Now(ctx context.Context) time.Time {
	if !t.clock.read.Load() {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		asked := t.clock.wall()
		if said, err := t.q.Now(ctx); err == nil {
			t.clock.measured(asked, said, t.clock.wall())
		}
	}

	return t.clock.now()
}

// ClockOffset is how far the database's clock is ahead of this process's; zero before it
// was first measured.
func (t *Tasks) ClockOffset() time.Duration { return time.Duration(t.clock.off.Load()) }

// seen says that the process is there, and reads the database's clock.
func (t *Tasks) seen(ctx context.Context, p db.ExecutorSeenParams) error {
	asked := t.clock.wall()
	said, err := t.q.ExecutorSeen(ctx, p)
	if err != nil {
		if isUnavailable(err) {
			t.writes.note(err)
		}
		return err
	}

	t.clock.measured(asked, said, t.clock.wall())
	return nil
}
