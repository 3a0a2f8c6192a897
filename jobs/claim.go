package jobs

import (
	"context"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// claimer takes the waiting jobs of one lane and kind, as many as it has places.
type claimer struct {
	r          *Runner
	lane, kind string
	slots      int
	ready      func() int // see Registration; nil: always

	woken chan struct{} // holds one
	freed chan struct{} // holds one

	mu     sync.Mutex
	busy   int  // places taken; guarded by mu
	closed bool // guarded by mu
}

// The rhythm of a claimer.
const (
	// claimMost bounds one claim; a larger one holds its locks too long.
	claimMost = 500
	// claimCooldown keeps two claims apart, so that an insert's neighbours come along.
	claimCooldown = 2 * time.Millisecond
	// claimGather keeps two claims apart that find several: claims, and the finishes
	// that follow them, cost by the statement as well as by the job.
	claimGather  = 12 * time.Millisecond
	claimSeveral = 8
	// claimWorth is how many places make a claim worth while under a backlog.
	claimWorth = claimMost / 2
	// claimPatience bounds the wait for that many.
	claimPatience = 10 * time.Millisecond
)

// wake says that there may be work. It reports whether there is a place for it.
func (c *claimer) wake() bool {
	c.mu.Lock()
	room := c.busy < c.slots && !c.closed
	c.mu.Unlock()
	select {
	case c.woken <- struct{}{}:
	default:
	}
	return room && (c.ready == nil || c.ready() > 0)
}

// done frees places.
func (c *claimer) done(n int) {
	c.mu.Lock()
	c.busy -= n
	c.mu.Unlock()
	select {
	case c.freed <- struct{}{}:
	default:
	}
}

func (c *claimer) free() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots - c.busy
}

// run claims until ctx ends.
func (c *claimer) run(ctx context.Context) {
	poll := time.NewTicker(c.r.cfg.Poll)
	defer poll.Stop()
	woken := false
	for ctx.Err() == nil { // a select among several that are ready may choose another
		found, more, err := c.claim(ctx)
		if err != nil {
			_ = c.r.tasks.insist(ctx, c.r.complain("claim"), err, func() error {
				found, more, err = c.claim(ctx)
				return err
			})
		}
		cooldown := claimCooldown
		if found >= claimSeveral && !more {
			cooldown = claimGather
		}
		if !pause(ctx, cooldown) {
			return
		}
		// An insert within notifyEvery of the one that woke us was not announced.
		var echo <-chan time.Time
		if woken {
			echo = time.After(notifyEvery)
		}
		woken = false
		if more {
			if !c.room(ctx) {
				return
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-c.woken:
			woken = true
		case <-echo:
		case <-poll.C:
		}
	}
}

// room waits until a claim is worth while: many places, or some and enough time.
func (c *claimer) room(ctx context.Context) bool {
	patience := time.NewTimer(claimPatience)
	defer patience.Stop()
	for {
		free := c.free()
		if free >= min(claimWorth, c.slots) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-c.freed:
		case <-patience.C:
			if free > 0 {
				return true
			}
			patience.Reset(claimPatience)
		}
	}
}

// claim takes what there is, as far as the executor is ready for it. It reports how
// many it found and whether there may be more. After an error, whether it committed is
// unknown; what it took is found by the sweep.
func (c *claimer) claim(ctx context.Context) (found int, more bool, err error) {
	n := min(c.free(), claimMost)
	if n <= 0 {
		return 0, true, nil
	}
	if c.ready != nil {
		if n = min(n, c.ready()-c.slots+c.free()); n <= 0 {
			return 0, false, nil // what waits is looked at with the next poll
		}
	}
	c.mu.Lock()
	c.busy += n
	c.mu.Unlock()
	asked, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	rows, err := c.r.tasks.q.LaneClaim(asked, db.LaneClaimParams{
		Lane: c.lane, Kind: c.kind, Slots: int32(n), ExecutorID: c.r.tasks.cfg.ProcessID,
	})
	cancel()
	if err != nil {
		c.done(n)
		c.r.trouble("claim", err)
		return 0, false, err
	}
	if len(rows) < n {
		c.done(n - len(rows))
	}
	for _, row := range rows {
		c.r.dispatch(c, row)
	}
	return len(rows), len(rows) == n, nil
}

// pause waits, and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
