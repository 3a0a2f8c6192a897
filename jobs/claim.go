package jobs

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/batch"
)

// claimer claims the waiting jobs of a queue and kind, up to its free slots, and runs the jobs.
//
// A claimer claims after a wake-up (by a create of this process, or by NOTIFY), when a slot
// becomes free under a backlog, and at each poll. The poll finds jobs whose wake-up was lost.
type claimer struct {
	r          *Runner
	lane, kind string
	slots      int
	some       func() []string // the kinds to claim instead of kind, asked before each claim; nil: kind alone
	ready      func() int      // Registration.Ready; nil: no bound but slots

	woken     chan struct{} // holds one
	slotFreed chan struct{} // holds one

	mu     sync.Mutex
	busy   int  // slots taken; guarded by mu
	closed bool // guarded by mu
}

// The rhythm of a claimer.
const (
	// claimMost bounds a claim; a larger claim would hold its locks too long.
	claimMost = 500
	// claimCooldown keeps two claims apart, so that jobs inserted together are claimed together.
	claimCooldown = 2 * time.Millisecond
	// claimGather is the pause after a claim of claimSeveral jobs or more: claims, and the
	// completions behind them, cost by the statement as well as by the job.
	claimGather  = 12 * time.Millisecond
	claimSeveral = 8
	// claimWorth is the number of free slots that a claim waits for under a backlog.
	claimWorth = claimMost / 2
	// claimPatience bounds the wait for claimWorth slots; then a single free slot is enough.
	claimPatience = 10 * time.Millisecond
)

// wake tells the claimer of possible work. The result reports whether this claimer has a free
// slot for the work, so that other processes need not be notified.
func (c *claimer) wake() bool {
	c.mu.Lock()
	capacity := c.busy < c.slots && !c.closed
	c.mu.Unlock()
	select {
	case c.woken <- struct{}{}:
	default:
	}
	// This process may lack the handler of a job under c.some: other processes are notified too.
	return capacity && c.some == nil && (c.ready == nil || c.ready() > 0)
}

// release frees n slots.
func (c *claimer) release(n int) {
	c.mu.Lock()
	c.busy -= n
	c.mu.Unlock()
	select {
	case c.slotFreed <- struct{}{}:
	default:
	}
}

func (c *claimer) freeSlots() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots - c.busy
}

// run claims until ctx ends.
func (c *claimer) run(ctx context.Context) {
	poll := time.NewTicker(c.r.cfg.Poll)
	defer poll.Stop()
	woken := false
	for ctx.Err() == nil { // select may have preferred another channel to ctx.Done
		var found int
		var more bool
		// claim has logged any error, and the next poll claims again.
		_ = c.r.tasks.retryWhileUnavailable(ctx, c.r.logRetry("claim"), func(ctx context.Context) (err error) {
			found, more, err = c.claim(ctx)
			return err
		})

		// Under a backlog there is nothing to gather: the next claim finds jobs at once.
		cooldown := claimCooldown
		if found >= claimSeveral && !more {
			cooldown = claimGather
		}
		if !pause(ctx, cooldown) {
			return
		}

		// A queue is notified once in notifyEvery: a job inserted shortly after the job that woke
		// this claimer sent no NOTIFY.
		var echo <-chan time.Time
		if woken {
			echo = time.After(notifyEvery)
		}

		woken = false
		if more {
			if !c.waitForCapacity(ctx) {
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

// waitForCapacity waits for claimWorth free slots, or after claimPatience for a single slot. The
// result is false if ctx has ended.
func (c *claimer) waitForCapacity(ctx context.Context) bool {
	patience := time.NewTimer(claimPatience)
	defer patience.Stop()

	for {
		free := c.freeSlots()
		if free >= min(claimWorth, c.slots) {
			return true
		}

		select {
		case <-ctx.Done():
			return false
		case <-c.slotFreed:
		case <-patience.C:
			if free > 0 {
				return true
			}
			patience.Reset(claimPatience)
		}
	}
}

// claim claims and runs jobs. found counts the claimed jobs; more reports a possible backlog. A
// claim with an error may have committed; the sweep finds the claimed jobs.
func (c *claimer) claim(ctx context.Context) (found int, more bool, err error) {
	if c.some == nil {
		return c.claimKind(ctx, c.kind)
	}

	kinds := c.some()
	if len(kinds) == 0 {
		return 0, false, nil
	}

	// A process may have hundreds of handlers: a claim for each would cost a statement each.
	waiting, err := c.waiting(ctx, kinds)
	if err != nil {
		return 0, false, err
	}

	for _, kind := range waiting {
		n, rest, err := c.claimKind(ctx, kind)
		if err != nil {
			return found, more, err
		}
		found, more = found+n, more || rest
	}

	return found, more, nil
}

// waiting returns the kinds with due jobs, in random order, by an index probe for each kind.
func (c *claimer) waiting(ctx context.Context, kinds []string) ([]string, error) {
	asked, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	waiting, err := c.r.tasks.q.LaneKinds(asked, db.LaneKindsParams{Lane: c.lane, Kinds: kinds})
	if err != nil {
		c.r.logTrouble("look for jobs", err)
		return nil, err
	}

	// Fairness: no handler is first each time.
	rand.Shuffle(len(waiting), func(i, j int) { waiting[i], waiting[j] = waiting[j], waiting[i] })
	return waiting, nil
}

// claimKind claims jobs of one kind, at most claimMost and at most the free slots.
func (c *claimer) claimKind(ctx context.Context, kind string) (found int, more bool, err error) {
	n := min(c.freeSlots(), claimMost)
	if n <= 0 {
		// No capacity: the caller waits for a slot, as under a backlog.
		return 0, true, nil
	}

	if c.ready != nil {
		// ready counts the busy slots too: ready - busy is left.
		if n = min(n, c.ready()-c.slots+c.freeSlots()); n <= 0 {
			return 0, false, nil // the executor is not ready; the next poll asks again
		}
	}

	// Slots are taken before the statement, so that wake does not report them as free.
	c.mu.Lock()
	c.busy += n
	c.mu.Unlock()
	// River's leader discards running jobs of kinds unknown to it: see waitingKind.
	becomes := kind
	if c.some != nil {
		becomes = KindAutomated
	}

	// A claim that ctx cut short could commit, and would leave its jobs to the sweep.
	asked, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	rows, err := c.r.tasks.q.LaneClaim(asked, db.LaneClaimParams{
		Lane: c.lane, Kind: kind, Becomes: becomes, Slots: int32(n), ExecutorID: c.r.tasks.cfg.ProcessID,
	})
	cancel()
	if err != nil {
		c.release(n)
		c.r.logTrouble("claim", err)
		return 0, false, err
	}

	if len(rows) < n {
		c.release(n - len(rows))
	}

	var heavy []db.LaneClaimRow
	var paused []int64
	for _, row := range rows {
		switch {
		case row.Paused:
			paused = append(paused, row.JobID)
		case row.DefinitionID != nil && row.Weight > lightest:
			heavy = append(heavy, row)
		default:
			c.r.dispatch(c, row)
		}
	}

	// Parking and loading take further statements: the claimer goes on meanwhile.
	if len(paused) > 0 {
		c.r.work.Go(func() { c.park(kind, paused) })
	}
	if len(heavy) > 0 {
		c.r.work.Go(func() { c.load(heavy) })
	}

	return len(rows), len(rows) == n, nil
}

// lightest is the size in bytes up to which LaneClaim returns a task's payload. The statement has
// the same number. LanePayloads reads larger payloads.
const lightest = 8192

// load reads the payloads of claimed tasks and runs the tasks, batch.MaxBytes at a time. Within
// the process only one read is under way, which bounds the memory of large payloads.
func (c *claimer) load(rows []db.LaneClaimRow) {
	r := c.r
	// In flight, for the sweep: these jobs are claimed and not begun, like orphaned jobs.
	r.loading.add(rows)
	defer r.loading.drop(rows)

	for len(rows) > 0 {
		// At least a single row, however large its payload.
		n, bytes := 0, int64(0)
		for n < len(rows) && (n == 0 || bytes+rows[n].Weight <= batch.MaxBytes) {
			bytes += rows[n].Weight
			n++
		}
		c.loadSome(rows[:n])
		rows = rows[n:]
	}
}

func (c *claimer) loadSome(rows []db.LaneClaimRow) {
	r := c.r
	r.loads <- struct{}{}
	defer func() { <-r.loads }()
	ids := make([]uuid.UUID, len(rows))
	for i, row := range rows {
		ids[i] = row.TaskID
	}

	var found []db.LanePayloadsRow
	err := r.tasks.retryWhileUnavailable(r.ctx, r.logRetry("read payloads"), func(ctx context.Context) (err error) {
		asked, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
		defer cancel()
		found, err = r.tasks.q.LanePayloads(asked, ids)
		return err
	})
	if err != nil {
		r.logTrouble("read payloads", err)
		c.release(len(rows)) // the sweep gives their tasks new jobs
		return
	}

	payloads := make(map[uuid.UUID]db.LanePayloadsRow, len(found))
	for _, one := range found {
		payloads[one.TaskID] = one
	}

	for _, row := range rows {
		row.Input, row.Context = payloads[row.TaskID].Input, payloads[row.TaskID].Context
		r.dispatch(c, row)
	}
}

// loading is the set of claimed jobs whose payloads are being read. These jobs have not begun, and
// the sweep must not treat them as orphaned.
type loading struct {
	mu   sync.Mutex
	jobs map[int64]bool // guarded by mu
}

func (l *loading) add(rows []db.LaneClaimRow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.jobs == nil {
		l.jobs = map[int64]bool{}
	}
	for _, row := range rows {
		l.jobs[row.JobID] = true
	}
}

func (l *loading) drop(rows []db.LaneClaimRow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, row := range rows {
		delete(l.jobs, row.JobID)
	}
}

// all returns the job ids. The result is never nil: nil would be NULL in a query.
func (l *loading) all() []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.AppendSeq([]int64{}, maps.Keys(l.jobs))
}

// pause waits for d and returns true, or returns false when ctx ends.
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
