package jobs

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// The database's clock decides. Statements compare only moments that statements have written. A
// process passes durations: the time since an attempt has ended, or the delay of a retry. Where a
// process needs the database's time (due dates in business hours, serverTime), the process adds the
// difference of the clocks, measured once a second, to its own clock.

// clock is a process's clock with its difference from the database's.
type clock struct {
	wall     func() time.Time
	log      *slog.Logger
	off      atomic.Int64 // nanoseconds that the database is ahead
	read     atomic.Bool  // it was measured
	loggedAt atomic.Int64 // when a difference was logged, in Unix seconds
}

// clockTolerance is the largest difference that is not logged.
const clockTolerance = time.Second

// clockLogInterval spaces the log lines about a difference.
const clockLogInterval = 10 * time.Minute

// now is the database's time, as far as it is known.
func (c *clock) now() time.Time {
	return c.wall().Add(time.Duration(c.off.Load())).UTC().Truncate(time.Microsecond)
}

// since is how long ago a moment of this process's clock was.
func (c *clock) since(at time.Time) time.Duration { return max(0, c.wall().Sub(at)) }

// measured records a reading of the database's clock, taken between two readings of this process's.
func (c *clock) measured(asked time.Time, said time.Time, answered time.Time) {
	took := answered.Sub(asked)
	// The offset is uncertain by the duration of the answer: an earlier reading is better.
	if took > clockTolerance && c.read.Load() {
		return
	}

	// Assume that the database read its clock half-way between question and answer.
	off := said.Sub(asked.Add(took / 2))
	c.off.Store(int64(off))
	c.read.Store(true)
	if off.Abs() <= clockTolerance {
		return
	}

	at, before := answered.Unix(), c.loggedAt.Load()
	if at-before >= int64(clockLogInterval.Seconds()) && c.loggedAt.CompareAndSwap(before, at) {
		c.log.Warn("this process's clock and the database's differ; the database's decides", "database_ahead", off)
	}
}

// Now is the database's time. The first call asks the database; later calls add the known
// difference. As long as the database has never answered, Now is this process's time.
func (t *Tasks) Now(ctx context.Context) time.Time {
	if !t.clock.read.Load() {
		// A caller waits a second at most, and then gets the time of this process's clock.
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		asked := t.clock.wall()
		if said, err := t.q.Now(ctx); err == nil {
			t.clock.measured(asked, said, t.clock.wall())
		}
	}

	return t.clock.now()
}

// ClockOffset is how far the database's clock is ahead of this process's; zero until measured.
func (t *Tasks) ClockOffset() time.Duration { return time.Duration(t.clock.off.Load()) }

// seen writes this process's sign of life and reads the database's clock.
func (t *Tasks) seen(ctx context.Context, p db.ExecutorSeenParams) error {
	asked := t.clock.wall()
	said, err := t.q.ExecutorSeen(ctx, p)
	if err != nil {
		// An idle engine writes nothing else: this failure makes Writable probe the database.
		if isUnavailable(err) {
			t.writes.note(err)
		}
		return err
	}

	t.clock.measured(asked, said, t.clock.wall())
	return nil
}
