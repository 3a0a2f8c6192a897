package automated

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Handlers is the executor "go": it calls the Go code that is registered under the handler
// name of the definition. The zero value is ready to use. Safe for concurrent use.
type Handlers struct {
	mu     sync.RWMutex
	byName map[string]jobs.Executor
}

// Register registers an executor under a name. Like http.Handle, it panics on an empty name,
// a nil executor and a name that is taken: all are mistakes in the program, and a definition
// would run the wrong code.
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

// Names returns the registered names, sorted.
func (h *Handlers) Names() []string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Sorted(maps.Keys(h.byName))
}

// Execute calls the handler of the job. An unknown handler is a HANDLER_UNKNOWN failure
// without retries. A runner claims only jobs whose handler is in Names, so the failure
// happens only if a handler is removed between claim and execution.
func (h *Handlers) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	h.mu.RLock()
	// Unlocked before the call: Register must not wait for a running handler.
	ex := h.byName[job.Config.Handler]
	h.mu.RUnlock()
	if ex == nil {
		return jobs.Result{}, permanent("HANDLER_UNKNOWN", fmt.Sprintf("no handler is registered as %q", job.Config.Handler))
	}

	return ex.Execute(ctx, job)
}
