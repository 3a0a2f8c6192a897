package jobs

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/seed-3f7a0631/tes/db"
)

// A dequeue that has an ID may be asked again while it is under way, of another process
// too. All of its calls must be answered with the same leases, so one of them takes:
//
//   - in a process, one call at a time looks (turns);
//   - between processes, a call that has found work writes its turn into dequeue_turn, and
//     looks again at what the request has. The commit that brings the leases ends the turn,
//     and brings none if another call has written its own since. A killed process's commit
//     that is still on its way is waited for by who writes the next turn.
//
// Who lost its turn frees what it had claimed, and finds the other's leases at its next look.

// requestKey names a dequeue that can be asked again.
type requestKey struct{ tenant, worker, id string }

// dequeueTurn is a call's right to take for its request; n is a number that no other call has.
type dequeueTurn struct {
	requestKey
	n    int64
	lost bool // another call has written its own
}

// requestLocks lets one call of a request at a time look for work, in this process.
type requestLocks struct {
	mu    sync.Mutex
	taken map[requestKey]chan struct{} // closed when the turn is over; guarded by mu
}

// lock waits for a turn. done ends it.
func (t *requestLocks) lock(ctx context.Context, which requestKey) (done func(), err error) {
	mine := make(chan struct{})
	for {
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

// takeTurn makes this call the one that takes. given is what another call has been given.
func (l *Leases) takeTurn(ctx context.Context, req *LeaseRequest) (given []Lease, err error) {
	if !req.shared || req.turn != nil {
		return nil, nil
	}
	mine := &dequeueTurn{requestKey: requestKey{req.Tenant, req.Worker, req.ID}, n: rand.Int64N(math.MaxInt64)}
	if err := l.t.q.LeaseTurn(ctx, db.LeaseTurnParams{TenantID: req.Tenant, Owner: req.Worker, RequestID: req.ID, Turn: mine.n}); err != nil {
		return nil, readError("turn of a dequeue", err)
	}
	req.turn = mine
	given, err = l.held(ctx, *req)
	if len(given) > 0 {
		// Left behind, the turn would be forgotten later.
		_, _ = l.t.q.LeaseTurnsEnd(ctx, dequeueTurnsOf([]*transition{{leaseTurn: mine}}))
	}
	return given, err
}

// dequeueTurnsOf are the turns that a round needs, each once.
func dequeueTurnsOf(round []*transition) (p db.LeaseTurnsEndParams) {
	var last *dequeueTurn
	for _, m := range round { // the moves of a call stand together
		if mine := m.leaseTurn; mine != nil && mine != last {
			p.TenantIds, p.Owners = append(p.TenantIds, mine.tenant), append(p.Owners, mine.worker)
			p.RequestIds, p.Turns = append(p.RequestIds, mine.id), append(p.Turns, mine.n)
			last = mine
		}
	}
	return p
}

// endTurns ends the turns of a round, and keeps the moves of a lost one from being made.
func endTurns(ctx context.Context, q *db.Queries, round []*transition, p db.LeaseTurnsEndParams, wantJobs []int64) error {
	if len(p.Turns) == 0 {
		return nil
	}
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

// start writes the starts, which share a commit, ends the tokens whose tasks have gone on
// without them, and frees what was claimed for a call that another one has overtaken. given
// is what that one was given, where it is known already.
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
	var stale, overtaken []*transition
	outcomes := l.t.applyAll(begun)
	for i, m := range begun {
		switch out := outcomes[i]; {
		case out.err != nil:
			err = out.err
		case out.made:
		case m.leaseTurn != nil && m.leaseTurn.lost:
			overtaken = append(overtaken, m)
		default:
			stale = append(stale, m)
		}
	}
	l.freeClaimed(ctx, overtaken)
	if len(stale) > 0 {
		if err := l.t.q.JobsEnd(ctx, jobIDsOf(stale)); err != nil {
			l.t.cfg.Logger.Warn("stale jobs were not ended; the sweep finds them", "jobs", len(stale), "error", err)
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
