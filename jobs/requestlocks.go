package jobs

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/seed-3f7a0631/tes/db"
)

// A dequeue with an ID may be repeated while it is under way, in another process too. All of its
// calls must get the same leases, so only one of them claims:
//
//   - within a process, requestLocks lets one call of a request look for work at a time;
//   - between processes, a call that has found work writes its turn into table dequeue_turn and
//     reads the request's leases again. The commit that writes the leases ends the turn, and
//     writes none if another call has written its own turn since. The next turn waits for a
//     commit of a killed process that is still under way.
//
// A call that has lost its turn frees the jobs that it had claimed, and finds the other call's
// leases when it looks again.

// requestKey identifies a dequeue that can be repeated.
type requestKey struct{ tenant, worker, id string }

// dequeueTurn is a call's right to claim for its request. n is random, and no other call's.
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

// takeTurn writes the call's turn, once. given are the leases that another call of the request
// has got already.
func (l *Leases) takeTurn(ctx context.Context, req *LeaseRequest) (given []Lease, err error) {
	if !req.shared || req.turn != nil {
		return nil, nil
	}

	mine := &dequeueTurn{requestKey: requestKey{req.Tenant, req.Worker, req.ID}, n: rand.Int64N(math.MaxInt64)}
	if err := l.t.q.LeaseTurn(ctx, db.LeaseTurnParams{TenantID: req.Tenant, Owner: req.Worker, RequestID: req.ID, Turn: mine.n}); err != nil {
		return nil, readError("turn of a dequeue", err)
	}

	// From here on, a call that wrote its turn earlier can no longer commit leases.
	req.turn = mine
	given, err = l.held(ctx, *req)
	if len(given) > 0 {
		// A turn that stays behind is deleted by the sweep.
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

// endTurns ends the turns of a batch. A transition whose turn is lost will not be applied.
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

	// A rejected start has one of two reasons: another call of the request has the turn, or the task has
	// gone on, and its job is an orphan.
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
