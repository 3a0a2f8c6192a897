package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// A dequeue without work waits. A commit with a new ready job wakes a single dequeue: a thousand
// waiting workers cost nothing while other tenants' tasks come and go.
//
//   - In this process, the commit's goroutine wakes one dequeue for each job.
//   - If no dequeue of this process can take the job, NOTIFY tells the other processes the place of the
//     job, and each process wakes one dequeue.
//   - A woken dequeue with leases wakes the next dequeue: a notification may stand for many jobs.
//   - Once a second, one dequeue of each process looks on behalf of all, by an index probe for each
//     place. The look finds due retries, and jobs whose notification was lost.
//   - The calls of a request get the same answer: a call with leases wakes the others.
//
// A wake decides nothing: the woken dequeue reads table ready.

// leaseKey is a place of table ready: where a job waits for remote workers, or where a dequeue looks.
type leaseKey struct {
	place      string // see readyPlaces
	tenant     string
	definition string // empty: all
}

// readyPlaces returns the values of the SQL function ready_place for a queue. t is the type of the
// tasks in the retry queue; empty: both types.
func readyPlaces(lane string, t Type) []string {
	switch {
	case lane != LaneRetry:
		return []string{lane}
	case t != "":
		return []string{lane + " " + string(t)}
	}
	return []string{lane + " " + string(Automated), lane + " " + string(Integration)}
}

// id names the key in notifications. The id is a hash, because PostgreSQL bounds the size of a
// notification.
func (k leaseKey) id() string {
	sum := sha256.Sum256([]byte(k.place + "\x00" + k.tenant + "\x00" + k.definition))
	return hex.EncodeToString(sum[:12])
}

// lane returns the queue of the key.
func (k leaseKey) lane() string {
	lane, _, _ := strings.Cut(k.place, " ")
	return lane
}

// ids returns the ids of the dequeues that can lease a job at k: of the job's definition, then of all
// definitions.
func (k leaseKey) ids() [2]string {
	all := leaseKey{place: k.place, tenant: k.tenant}
	return [2]string{k.id(), all.id()}
}

// waiter is a waiting dequeue.
type waiter struct {
	keys    []leaseKey
	ids     []string   // of keys
	request requestKey // the zero value if the request cannot be repeated

	woken    chan struct{} // holds one
	wokenFor string        // the id that woke it; guarded by waiters.mu
}

// waitingFor returns the waiter of a request.
func waitingFor(req *LeaseRequest) *waiter {
	w := &waiter{woken: make(chan struct{}, 1)}
	if req.shared {
		// Only a caller with an ID of its own can repeat the request.
		w.request = requestKey{req.Tenant, req.Worker, req.ID}
	}

	for _, from := range sources(req.Select) {
		sel := req.Select[from.selection]
		definitions := sel.Definitions
		if len(definitions) == 0 {
			// The empty definition stands for all: see ids.
			definitions = []string{""}
		}

		for _, place := range readyPlaces(from.lane, typeOf(sel.Lane)) {
			for _, definition := range definitions {
				key := leaseKey{place, req.Tenant, definition}
				w.keys, w.ids = append(w.keys, key), append(w.ids, key.id())
			}
		}
	}
	return w
}

// waiters are the waiting dequeues of this process. The zero value is ready.
type waiters struct {
	mu       sync.Mutex
	at       map[string]map[*waiter]bool     // by the ids of their keys; guarded by mu
	requests map[requestKey]map[*waiter]bool // those whose requests can be repeated; guarded by mu
	looked   time.Time                       // when one of them looked for all; guarded by mu
}

// add registers w for one wake. Call add before looking for work, or a job inserted in between wakes no
// dequeue.
func (a *waiters) add(w *waiter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at == nil {
		a.at, a.requests = map[string]map[*waiter]bool{}, map[requestKey]map[*waiter]bool{}
	}

	w.wokenFor = ""
	for _, id := range w.ids {
		addTo(a.at, id, w)
	}
	if w.request.id != "" {
		addTo(a.requests, w.request, w)
	}
}

func addTo[K comparable](sets map[K]map[*waiter]bool, key K, w *waiter) {
	if sets[key] == nil {
		sets[key] = map[*waiter]bool{}
	}
	sets[key][w] = true
}

func removeFrom[K comparable](sets map[K]map[*waiter]bool, key K, w *waiter) {
	delete(sets[key], w)
	if len(sets[key]) == 0 {
		delete(sets, key)
	}
}

// leave ends the wait of w; found reports whether w has leases. leave passes the wake on if w has not
// used the wake, or if more jobs may be waiting.
func (a *waiters) leave(w *waiter, found bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(w)
	if found {
		// The repeated calls of the request read the same leases now.
		for same := range a.requests[w.request] {
			a.wakeOne(same, "")
		}
	}

	// A wake in the channel came too late for w. A wake that w has used may stand for more jobs than w
	// has leased.
	select {
	case <-w.woken:
		a.wake(w.wokenFor, 1)
	default:
		if found && w.wokenFor != "" {
			a.wake(w.wokenFor, 1)
		}
	}
}

// remove takes w out of the sets of wakeable dequeues. Hold mu.
func (a *waiters) remove(w *waiter) {
	for _, id := range w.ids {
		removeFrom(a.at, id, w)
	}
	removeFrom(a.requests, w.request, w)
}

// wakeOne wakes a registered dequeue. Hold mu.
func (a *waiters) wakeOne(w *waiter, wokenFor string) {
	a.remove(w)
	w.wokenFor = wokenFor
	w.woken <- struct{}{} // there is room: a waiter that was woken is in no set
}

// wake wakes up to n dequeues under id, and returns their number. Hold mu.
func (a *waiters) wake(id string, n int) (woken int) {
	for w := range a.at[id] {
		if woken == n {
			break
		}
		a.wakeOne(w, id)
		woken++
	}
	return woken
}

// wakeFor wakes up to n dequeues for jobs at k, and returns their number.
func (a *waiters) wakeFor(k leaseKey, n int) (woken int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range k.ids() {
		woken += a.wake(id, n-woken)
	}
	return woken
}

// wakeNotified wakes one dequeue for a notification with these ids.
func (a *waiters) wakeNotified(ids []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range ids {
		// One wake is enough: with leases, the woken dequeue wakes the next.
		if a.wake(id, 1) > 0 {
			return
		}
	}
}

// lookDue reports whether the last look was leasePoll ago, and if so, makes the caller the one to look
// for all waiting dequeues.
func (a *waiters) lookDue() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.looked) < leasePoll {
		return false
	}
	// Before the look, so that no second dequeue looks at the same time.
	a.looked = time.Now()
	return true
}

// keys returns the keys of the wakeable dequeues, each once, by id.
func (a *waiters) keys() map[string]leaseKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make(map[string]leaseKey, len(a.at))
	for id, set := range a.at {
		for w := range set {
			all[id] = w.keys[slices.Index(w.ids, id)]
			break // the key is the same for every waiter of the set
		}
	}
	return all
}

// repeatable returns the repeatable requests of the waiting dequeues.
func (a *waiters) repeatable() []requestKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Keys(a.requests))
}

// wakeRequest wakes all dequeues of a request.
func (a *waiters) wakeRequest(tenant, worker, id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for w := range a.requests[requestKey{tenant, worker, id}] {
		a.wakeOne(w, "")
	}
}

// wakeReady looks for work for the waiting dequeues of this process, and wakes one dequeue for each key
// with work.
func (n *notifier) wakeReady(ctx context.Context) {
	var p db.ReadyForParams
	var ids []string
	for id, key := range n.waiters.keys() {
		p.Numbers = append(p.Numbers, int32(len(ids))) //nolint:gosec // as many as there are dequeues
		p.Lanes, p.Places = append(p.Lanes, key.lane()), append(p.Places, key.place)
		p.TenantIds, p.DefinitionIds = append(p.TenantIds, key.tenant), append(p.DefinitionIds, key.definition)
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return
	}

	asked, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	// One statement for all keys; ReadyFor returns the numbers of the keys with work.
	found, err := n.t.q.ReadyFor(asked, p)
	if err != nil {
		n.t.cfg.Logger.Debug("no look for the work of waiting dequeues; the next one follows", "error", err)
		return
	}

	for _, i := range found {
		n.waiters.wakeNotified([]string{ids[i]})
	}

	// Work is not the only end of a wait: another process may have answered the request.
	n.wakeAnswered(asked)
}

// wakeAnswered wakes the dequeues whose requests have leases through another process.
func (n *notifier) wakeAnswered(ctx context.Context) {
	var p db.WorkerAnsweredParams
	for _, key := range n.waiters.repeatable() {
		p.Owners, p.RequestIds = append(p.Owners, key.worker), append(p.RequestIds, key.id)
	}
	if len(p.Owners) == 0 {
		return
	}

	found, err := n.t.q.WorkerAnswered(ctx, p)
	if err != nil {
		n.t.cfg.Logger.Debug("no look for the leases of waiting dequeues; the next one follows", "error", err)
		return
	}

	for _, row := range found {
		n.waiters.wakeRequest(row.TenantID, row.Owner, row.RequestID)
	}
}
