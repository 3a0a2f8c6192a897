package automated

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Handlers is the executor "go": it passes a job to the Go code registered under
// its definition's handler. The zero value is ready. Safe for concurrent use.
type Handlers struct {
	mu     sync.RWMutex
	byName map[string]jobs.Executor
}

// Register gives a name to an executor. Like http.Handle it panics on an empty
// name, on nil and on a name already taken: these are mistakes of the program,
// and a definition would find the wrong code behind its name.
func (h *Handlers) Register(name string, ex jobs.Executor) {
	if name == "" || ex == nil {
		panic("automated: a handler needs a name and an executor")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, taken := h.byName[name]; taken {
		panic(fmt.Sprintf("automated: handler %q is registered twice", name))
	}
	if h.byName == nil {
		h.byName = make(map[string]jobs.Executor)
	}
	h.byName[name] = ex
}

// Names lists what is registered, in order.
func (h *Handlers) Names() []string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Sorted(maps.Keys(h.byName))
}

// Execute calls the job's handler. A handler that is not registered is a HANDLER_UNKNOWN
// failure without retries. A runner that knows the Names leaves such jobs to others, so that
// it comes to this only where one is taken away while its job is on the way.
func (h *Handlers) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	h.mu.RLock()
	ex := h.byName[job.Config.Handler]
	h.mu.RUnlock()
	if ex == nil {
		return jobs.Result{}, final("HANDLER_UNKNOWN", fmt.Sprintf("no handler is registered as %q", job.Config.Handler))
	}
	return ex.Execute(ctx, job)
}
