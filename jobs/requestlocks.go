package jobs

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/seed-3f7a0631/tes/db"
)

// A dequeue with an ID may be repeated while the first call is under way, also in another process. All
// calls of the request must get the same leases, so only one call claims:
//
//   - within a process, requestLocks lets one call of a request look for work at a time;
//   - between processes, a call with claimed jobs writes its turn into table dequeue_turn and reads the
//     leases of the request again. The commit of the leases ends the turn, and writes no leases if
//     another call has written its own turn since. The next turn waits for a commit under way, even of
//     a killed process.
//
// A call that has lost its turn frees its claimed jobs, and finds the leases of the other call at its
// next look.

// requestKey identifies a repeatable dequeue.
type requestKey struct{ tenant, worker, id string }

// dequeueTurn is the right of a call to claim for its request. n is random: no other call has the same
// n.
type dequeueTurn struct {
	requestKey
	n    int64
	lost bool // another call has written its turn
}

// requestLocks lets one call of a request at a time look for work in this process.
type requestLocks struct {
	mu    sync.Mutex
	taken map[requestKey]chan struct{} // closed when the turn is over; guarded by mu
}

// lock waits until no other call of the request looks for work. done unlocks.
func (t *requestLocks) lock(ctx context.Context, which requestKey) (done func(), err error) {
	mine := make(chan struct{})
	for {
		// Each waiting call competes again after an unlock: several may wait for the same call.
		t.mu.Lock()
		other := t.taken[which]
		if other == nil {
			t.taken[which] = mine
		}

		t.mu.Unlock()
		if other == nil {
			return func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				delete(t.taken, which)
				close(mine)
			}, nil
		}

		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-other:
		}
	}
}

// takeTurn writes the turn of a call, once. given are the leases of another call of the request, if
// there are any.
func (l *Leases) takeTurn(ctx context.Context, req *LeaseRequest) (given []Lease, err error) {
	// A request without an ID of its caller is never repeated, and needs no turn.
	if !req.shared || req.turn != nil {
		return nil, nil
	}

	mine := &dequeueTurn{requestKey: requestKey{req.Tenant, req.Worker, req.ID}, n: rand.Int64N(math.MaxInt64)}
	if err := l.t.q.LeaseTurn(ctx, db.LeaseTurnParams{TenantID: req.Tenant, Owner: req.Worker, RequestID: req.ID, Turn: mine.n}); err != nil {
		return nil, readError("turn of a dequeue", err)
	}

	// From here on, a call with an earlier turn can no longer commit leases.
	req.turn = mine
	given, err = l.held(ctx, *req)
	if len(given) > 0 {
		// The request has its answer. The sweep deletes the turn if this statement fails.
		_, _ = l.t.q.LeaseTurnsEnd(ctx, turnsEndParams([]*transition{{leaseTurn: mine}}))
	}

	return given, err
}

// turnsEndParams returns the turns of a batch, each once.
func turnsEndParams(round []*transition) (p db.LeaseTurnsEndParams) {
	var last *dequeueTurn
	for _, m := range round { // the transitions of a call are neighbours
		if mine := m.leaseTurn; mine != nil && mine != last {
			p.TenantIds, p.Owners = append(p.TenantIds, mine.tenant), append(p.Owners, mine.worker)
			p.RequestIds, p.Turns = append(p.RequestIds, mine.id), append(p.Turns, mine.n)
			last = mine
		}
	}

	return p
}

// endTurns ends the turns of a batch. A transition with a lost turn gets the expected job noJob, and
// TaskMove rejects the transition.
func endTurns(ctx context.Context, q *db.Queries, round []*transition, p db.LeaseTurnsEndParams, wantJobs []int64) error {
	if len(p.Turns) == 0 {
		return nil
	}

	// In the transaction of the leases: a rolled-back batch has its turns again.
	held, err := q.LeaseTurnsEnd(ctx, p)
	if err != nil {
		return err
	}

	kept := make(map[int64]bool, len(held))
	for _, n := range held {
		kept[n] = true
	}

	for i, m := range round {
		if m.leaseTurn == nil {
			continue
		}
		if m.leaseTurn.lost = !kept[m.leaseTurn.n]; m.leaseTurn.lost {
			wantJobs[i] = noJob
		}
	}

	return nil
}

// start writes the starts of a call, which share a commit. Jobs whose tasks have gone on are ended;
// jobs of a call whose turn is lost are freed. given are the leases of the other call, if already
// known.
func (l *Leases) start(ctx context.Context, req *LeaseRequest, begun []*transition) (given []Lease, err error) {
	if len(begun) == 0 {
		return nil, nil
	}

	if given, err = l.takeTurn(ctx, req); err != nil || len(given) > 0 {
		l.freeClaimed(ctx, begun)
		return given, err
	}

	for _, m := range begun {
		m.leaseTurn = req.turn
	}

	// A start is rejected for one of two reasons: another call of the request has the turn, or the task
	// has gone on, and the job is an orphan.
	var stale, overtaken []*transition
	outcomes := l.t.applyAll(begun)
	for i, m := range begun {
		switch out := outcomes[i]; {
		case out.err != nil:
			err = out.err
		case out.applied:
		case m.leaseTurn != nil && m.leaseTurn.lost:
			overtaken = append(overtaken, m)
		default:
			stale = append(stale, m)
		}
	}

	l.freeClaimed(ctx, overtaken)
	if len(stale) > 0 {
		if err := l.t.q.JobsEnd(ctx, jobIDsOf(stale)); err != nil {
			l.t.cfg.Logger.Warn("orphaned jobs were not ended; the sweep finds them", "jobs", len(stale), "error", err)
		}
	}

	return nil, err
}

// freeClaimed makes claimed jobs available again.
func (l *Leases) freeClaimed(ctx context.Context, claimed []*transition) {
	if len(claimed) == 0 {
		return
	}
	if err := l.t.q.JobsFree(ctx, jobIDsOf(claimed)); err != nil {
		l.t.cfg.Logger.Warn("claimed jobs were not freed; the sweep finds them", "jobs", len(claimed), "error", err)
	}
}

func jobIDsOf(all []*transition) []int64 {
	jobs := make([]int64, len(all))
	for i, m := range all {
		jobs[i] = m.expect.job
	}
	return jobs
}
