package jobs

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
)

// The channels on which processes tell each other. What is lost is found by
// polling; they only make it soon, and nothing that they say is believed: see hear.go.
const (
	channelLane       = "tes_lane"
	channelCancel     = "tes_cancel"
	channelDefinition = "tes_definition"
	channelShutdown   = "tes_shutdown"
)

// wakeKinds are the places work can be waiting: a lane and a kind.
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
	{LaneDeadLetter, KindDeadLetter}, // and whatever else only leases take
}

// leasesFrom is the first of wakeKinds that only leases take.
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

// notifyEvery spaces the NOTIFYs of one lane: each takes a lock of the whole
// cluster at its commit. Listeners look again after about as long, so the second
// of two inserts within it is not left to the poll.
const notifyEvery = 10 * time.Millisecond

// wakes tells lanes that work has come: those of this process directly, those of
// others by NOTIFY.
type wakes struct {
	mu     sync.Mutex
	local  [len(wakeKinds)]*claimer  // guarded by mu
	last   [len(wakeKinds)]time.Time // guarded by mu
	parked chan struct{}             // closed when there may be something to lease; guarded by mu
}

// leasable is closed when there may be something to lease. Ask for it before you
// look, or what comes between is missed.
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
		// Who has room here will claim it; no need to tell the others.
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

// queueNotified is a NOTIFY from another process.
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

// notify tells one thing to the other processes.
func (n *notifier) notify(ctx context.Context, channel, what string) {
	if _, err := n.t.pool.Exec(ctx, "SELECT pg_notify($1, $2)", channel, what); err != nil {
		n.t.cfg.Logger.Debug("not notified", "channel", channel, "error", err)
	}
}

// attemptID is an attempt that was ended under its executor.
type attemptID struct {
	task uuid.UUID
	job  int64 // by which it is told from the attempt that may have followed already
}

// cancelEverywhere ends what runs here, and tells the other processes.
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
