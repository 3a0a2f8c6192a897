package jobs

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
)

// The channels of NOTIFY between the processes. A lost notification is found by polling, and a
// forged one changes nothing: see hear.go.
const (
	channelLane       = "tes_lane"
	channelCancel     = "tes_cancel"
	channelDefinition = "tes_definition"
	channelShutdown   = "tes_shutdown"
)

// wakeKinds lists where jobs can wait: a queue and a kind.
var wakeKinds = [...]struct{ lane, kind string }{
	{LaneAutomated, KindAutomated},
	{LaneIntegration, KindIntegration},
	{LaneManual, KindManual},
	{LaneRetry, KindAutomated},
	{LaneRetry, KindIntegration},
	{LaneRetry, KindManual},
	{LaneAutomated, kindSome},
	{LaneRetry, kindSome},
	{LaneAutomated, KindWorker},
	{LaneIntegration, KindWorker},
	{LaneRetry, KindWorker},
	{LaneDeadLetter, KindDeadLetter}, // and every other kind that only remote workers claim
}

// leasesFrom is the first of wakeKinds that only remote workers claim.
const leasesFrom = 8

func wakeIndex(lane, kind string) int {
	for i, w := range wakeKinds {
		if w.lane == lane && w.kind == kind {
			return i
		}
	}

	if (lane == LaneAutomated || lane == LaneRetry) && kind != kindSome {
		return wakeIndex(lane, kindSome)
	}

	return len(wakeKinds) - 1
}

// notifyEvery spaces the NOTIFYs for one queue: each takes a lock of the whole cluster at its
// commit. A listener that was woken looks again after the same time, so that the second of two
// inserts within it does not wait for the poll.
const notifyEvery = 10 * time.Millisecond

// wakes knows the claimers and the parked dequeues of this process.
type wakes struct {
	mu     sync.Mutex
	local  [len(wakeKinds)]*claimer  // guarded by mu
	last   [len(wakeKinds)]time.Time // guarded by mu
	parked chan struct{}             // closed when there may be something to lease; guarded by mu
}

// leasable returns a channel that is closed when a remote worker may find work. Call it before
// looking for work, or a job that comes in between is missed.
func (w *wakes) leasable() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.parked == nil {
		w.parked = make(chan struct{})
	}
	return w.parked
}

// unpark wakes every parked dequeue of this process. Hold mu.
func (w *wakes) unpark() {
	if w.parked != nil {
		close(w.parked)
		w.parked = nil
	}
}

// notifier tells this process and the others that work has come, or that an attempt was
// cancelled. NOTIFY only makes it soon: everything that it tells is found by polling.
type notifier struct {
	t     *Tasks
	wakes wakes
}

// wakeQueues wakes each queue and kind that is set.
func (n *notifier) wakeQueues(ctx context.Context, kinds [len(wakeKinds)]bool) {
	var lanes []string
	n.wakes.mu.Lock()

	for i, set := range kinds {
		if !set {
			continue
		}

		what := wakeKinds[i].lane
		if i >= leasesFrom {
			n.wakes.unpark()
			what = KindWorker
		}

		// A claimer of this process has a free slot: the others need not be notified.
		if c := n.wakes.local[i]; c != nil && c.wake() {
			continue
		}

		if at := time.Now(); at.Sub(n.wakes.last[i]) >= notifyEvery {
			n.wakes.last[i] = at
			lanes = append(lanes, what)
		}
	}

	n.wakes.mu.Unlock()
	if lanes == nil {
		return
	}

	if err := n.t.q.LaneNotify(ctx, lanes); err != nil {
		n.t.cfg.Logger.Debug("lanes were not notified; they poll", "error", err)
	}
}

// queueNotified handles a NOTIFY of another process: a queue has work.
func (n *notifier) queueNotified(lane string) {
	n.wakes.mu.Lock()
	defer n.wakes.mu.Unlock()
	if lane == KindWorker {
		n.wakes.unpark()
		return
	}

	for i, w := range wakeKinds {
		if c := n.wakes.local[i]; c != nil && w.lane == lane {
			c.wake()
		}
	}
}

// notify notifies the other processes.
func (n *notifier) notify(ctx context.Context, channel, what string) {
	if _, err := n.t.pool.Exec(ctx, "SELECT pg_notify($1, $2)", channel, what); err != nil {
		n.t.cfg.Logger.Debug("not notified", "channel", channel, "error", err)
	}
}

// attemptID identifies an attempt by its task and its job.
type attemptID struct {
	task uuid.UUID
	job  int64 // differs for the attempt that may have followed
}

// cancelEverywhere ends the contexts of cancelled attempts, in this process directly and in the
// others by NOTIFY.
func (n *notifier) cancelEverywhere(ctx context.Context, all []attemptID) {
	var elsewhere []string
	for _, c := range all {
		if !n.t.running.cancel(c, ErrCancelled) {
			elsewhere = append(elsewhere, fmt.Sprintf("%s %d", c.task, c.job))
		}
	}

	if elsewhere == nil {
		return
	}

	if err := n.t.q.CancelNotify(ctx, elsewhere); err != nil {
		n.t.cfg.Logger.Debug("cancellation was not notified; heartbeats will tell", "error", err)
	}
}
