package jobs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// The channels of NOTIFY between the processes. Polls make up for a lost notification, and a forged
// notification changes nothing: see listen.go.
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
}

// wakeIndex returns the index of a queue and kind in wakeKinds. An unlisted kind is claimed by only
// some processes, and counts as kindSome.
func wakeIndex(lane, kind string) int {
	for i, w := range wakeKinds {
		if w.lane == lane && w.kind == kind {
			return i
		}
	}

	// The last two entries of wakeKinds are those of kindSome.
	if lane == LaneRetry {
		return len(wakeKinds) - 1
	}
	return len(wakeKinds) - 2
}

// wakeSet lists the places of newly ready jobs.
type wakeSet struct {
	kinds  [len(wakeKinds)]bool
	leases map[leaseKey]int // jobs that remote workers lease
}

// add adds a job of a task with this type, tenant and definition.
func (s *wakeSet) add(lane, kind string, t Type, tenant, definition string) {
	// Claimers take the jobs of executors; dequeues lease worker jobs and dead letters.
	if kind != KindWorker && kind != KindDeadLetter {
		s.kinds[wakeIndex(lane, kind)] = true
		return
	}

	if s.leases == nil {
		s.leases = map[leaseKey]int{}
	}
	s.leases[leaseKey{readyPlaces(lane, t)[0], tenant, definition}]++
}

// notifyEvery is the least time between two NOTIFYs for a queue: each takes a lock of the whole cluster
// at its commit. A woken listener looks again after notifyEvery, so that the second of two quick
// inserts does not wait for the poll.
const notifyEvery = 10 * time.Millisecond

// wakes holds the claimers of this process, and the times of the last NOTIFYs.
type wakes struct {
	mu           sync.Mutex
	local        [len(wakeKinds)]*claimer  // guarded by mu
	last         [len(wakeKinds)]time.Time // guarded by mu
	pending      map[string]bool           // notifications about leases that wait for notifyEvery; guarded by mu
	leasesSentAt time.Time                 // when the last ones were sent; guarded by mu
}

// notifier announces new work and cancelled attempts, to this process and to the others. NOTIFY only
// saves time: polls and heartbeats find the same changes.
type notifier struct {
	t       *Tasks
	wakes   wakes
	waiters waiters
}

// wakeFor wakes claimers and dequeues for the work.
func (n *notifier) wakeFor(ctx context.Context, work wakeSet) {
	// This process first: only work without a free slot or a dequeue here costs a NOTIFY.
	lanes := n.wakeClaimers(work.kinds)
	n.notifyLanes(ctx, append(lanes, n.wakeWaiters(work.leases)...))
}

func (n *notifier) notifyLanes(ctx context.Context, lanes []string) {
	if len(lanes) == 0 {
		return
	}
	if err := n.t.q.LaneNotify(ctx, lanes); err != nil {
		n.t.cfg.Logger.Debug("lanes were not notified; they poll", "error", err)
	}
}

// wakeClaimers wakes the claimers of this process, and returns the queues for a NOTIFY to the other
// processes.
func (n *notifier) wakeClaimers(kinds [len(wakeKinds)]bool) (lanes []string) {
	n.wakes.mu.Lock()
	defer n.wakes.mu.Unlock()
	for i, set := range kinds {
		if !set {
			continue
		}

		// A claimer of this process has a free slot: the others need not be notified.
		if c := n.wakes.local[i]; c != nil && c.wake() {
			continue
		}

		// No NOTIFY within notifyEvery: claimers look again after that time.
		if at := time.Now(); at.Sub(n.wakes.last[i]) >= notifyEvery {
			n.wakes.last[i] = at
			lanes = append(lanes, wakeKinds[i].lane)
		}
	}
	return lanes
}

// mostLeaseNotifications bounds the notifications about leases in one NOTIFY statement. Beyond the
// bound a single notification without ids makes the other processes look for work for all their waiting
// dequeues.
const mostLeaseNotifications = 16

// wakeWaiters wakes waiting dequeues of this process, one for each job, and returns the notifications
// for the other processes. Within notifyEvery of the last notifications, a timer sends the new ones
// later.
func (n *notifier) wakeWaiters(leases map[leaseKey]int) []string {
	var payloads []string
	for key, jobs := range leases {
		// Fewer dequeues here than jobs: another process may have more.
		if n.waiters.wakeFor(key, jobs) < jobs {
			ids := key.ids()
			payloads = append(payloads, KindWorker+" "+ids[0]+" "+ids[1])
		}
	}

	if len(payloads) == 0 {
		return nil
	}

	n.wakes.mu.Lock()
	defer n.wakes.mu.Unlock()
	timed := n.wakes.pending != nil // a timer will send them
	if !timed {
		n.wakes.pending = map[string]bool{}
	}

	for _, one := range payloads {
		// Up to one more than the bound, by which takePending sees the excess.
		if len(n.wakes.pending) <= mostLeaseNotifications {
			n.wakes.pending[one] = true
		}
	}

	// The timer of an earlier commit sends these as well.
	if timed {
		return nil
	}

	rest := notifyEvery - time.Since(n.wakes.leasesSentAt)
	if rest <= 0 {
		return n.takePending()
	}

	time.AfterFunc(rest, func() {
		// The context of the commit has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), flushTime)
		defer cancel()
		n.wakes.mu.Lock()
		payloads := n.takePending()
		n.wakes.mu.Unlock()
		n.notifyLanes(ctx, payloads)
	})
	return nil
}

// takePending returns the pending notifications about leases, and counts them as sent. Hold wakes.mu.
func (n *notifier) takePending() []string {
	// Without ids: each process looks for work for all its dequeues.
	payloads := []string{KindWorker}
	if len(n.wakes.pending) <= mostLeaseNotifications {
		payloads = slices.Sorted(maps.Keys(n.wakes.pending))
	}
	n.wakes.leasesSentAt, n.wakes.pending = time.Now(), nil
	return payloads
}

// queueNotified wakes the claimers of a queue, after a NOTIFY about new work.
func (n *notifier) queueNotified(lane string) {
	n.wakes.mu.Lock()
	defer n.wakes.mu.Unlock()
	for i, w := range wakeKinds {
		if c := n.wakes.local[i]; c != nil && w.lane == lane {
			c.wake()
		}
	}
}

// leasesNotified wakes a waiting dequeue, after a NOTIFY about work for remote workers. ids name the
// place of the work; none: anywhere.
func (n *notifier) leasesNotified(ctx context.Context, ids []string) {
	if len(ids) == 0 {
		n.wakeReady(ctx)
		return
	}
	n.waiters.wakeNotified(ids)
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
		// An attempt of this process needs no NOTIFY.
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
