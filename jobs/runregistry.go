package jobs

import (
	"sync"

	"github.com/google/uuid"
)

// runRegistry holds the running attempts of this process, by task.
type runRegistry struct {
	mu   sync.Mutex
	runs map[uuid.UUID]*run // guarded by mu
}

// get returns the run of an attempt; nil if this process does not run it.
func (g *runRegistry) get(id attemptID) *run {
	g.mu.Lock()
	defer g.mu.Unlock()

	r := g.runs[id.task]
	if r == nil || r.claim.JobID != id.job {
		return nil
	}
	return r
}

func (g *runRegistry) has(id attemptID) bool { return g.get(id) != nil }

// cancel ends the context of the executor of an attempt. The result is false if this process does not
// run the attempt.
func (g *runRegistry) cancel(id attemptID, cause error) bool {
	r := g.get(id)
	if r == nil {
		return false
	}
	r.cancel(cause)
	return true
}

// all lists the runs.
func (g *runRegistry) all() []*run {
	g.mu.Lock()
	defer g.mu.Unlock()

	all := make([]*run, 0, len(g.runs))
	for _, r := range g.runs {
		all = append(all, r)
	}
	return all
}

// enter registers a run.
func (g *runRegistry) enter(r *run) {
	g.mu.Lock()
	defer g.mu.Unlock()

	// Another process has reaped an earlier attempt of the task here, and this process has claimed the
	// next job. The executor of the earlier attempt must end.
	if before := g.runs[r.id()]; before != nil {
		before.cancel(ErrLeaseLost)
	}

	g.runs[r.id()] = r
}

// leave removes a run, unless a later attempt has taken its place.
func (g *runRegistry) leave(r *run) {
	g.mu.Lock()
	defer g.mu.Unlock()

	if g.runs[r.id()] == r {
		delete(g.runs, r.id())
	}
}
