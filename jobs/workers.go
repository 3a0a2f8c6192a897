package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// The bounds of the remembered workers between two writes. A worker chooses its own name, so that a
// tenant can make up any number: workers beyond a bound are not recorded until the next write.
const (
	mostWorkersSeen = 5000
	mostSeenOfOne   = 1000 // of one tenant
)

// workersSeen remembers the remote workers that have asked for work since the last write. GET
// /workers and why read what is written. The zero value is ready.
type workersSeen struct {
	mu         sync.Mutex
	all        map[workerKey]workerSeen // guarded by mu
	tenants    map[string]int           // how many of all are a tenant's; guarded by mu
	heartbeats map[workerKey]bool       // who sent heartbeats, in no lane; guarded by mu
}

type workerKey struct{ tenant, worker, lane string }

type workerSeen struct {
	definitions []string // that it knows; empty: all
	at          time.Time
}

// note remembers what a dequeue asks for.
func (w *workersSeen) note(req *LeaseRequest) {
	asked := map[string][]string{}
	for _, sel := range req.Select {
		before, again := asked[sel.Lane]
		switch {
		case !again:
			asked[sel.Lane] = sel.Definitions
		// An empty list means every definition, so that the union is empty too.
		case len(before) == 0 || len(sel.Definitions) == 0:
			asked[sel.Lane] = nil
		default:
			asked[sel.Lane] = slices.Concat(before, sel.Definitions)
		}
	}

	at := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all, w.tenants = map[workerKey]workerSeen{}, map[string]int{}
	}

	for lane, definitions := range asked {
		key := workerKey{req.Tenant, req.Worker, lane}
		if _, known := w.all[key]; !known {
			// Known workers stay known: only new names are bounded.
			if len(w.all) >= mostWorkersSeen || w.tenants[req.Tenant] >= mostSeenOfOne {
				continue
			}
			w.tenants[req.Tenant]++
		}

		w.all[key] = workerSeen{definitions, at}
	}
}

// noteHeartbeat remembers that a worker has sent a heartbeat: a busy worker does not ask for work.
func (w *workersSeen) noteHeartbeat(tenant, worker string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.heartbeats == nil {
		w.heartbeats = map[workerKey]bool{}
	}
	if len(w.heartbeats) < mostWorkersSeen {
		w.heartbeats[workerKey{tenant: tenant, worker: worker}] = true
	}
}

// take returns everything remembered and forgets it.
func (w *workersSeen) take() (asked map[workerKey]workerSeen, beats map[workerKey]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// The maps now belong to the caller; note makes new maps.
	asked, beats = w.all, w.heartbeats
	w.all, w.tenants, w.heartbeats = nil, nil, nil
	return asked, beats
}

// workersSeen writes at each tick which workers ask this process for work.
func (r *Runner) workersSeen(ctx context.Context) {
	r.every(ctx, 5*r.cfg.Tick, "record which workers asked for work", r.recordWorkers)
}

// recordWorkers writes the workers that this process has seen, and deletes some of those that were not
// seen for long.
func (r *Runner) recordWorkers(ctx context.Context) error {
	// Forgotten even if a write fails: the next dequeues and heartbeats name the workers again.
	asked, beats := r.tasks.workers.take()
	if len(asked) > 0 {
		p := db.WorkersSeenParams{}
		for key, one := range asked {
			definitions, err := json.Marshal(append([]string{}, one.definitions...))
			if err != nil {
				return fmt.Errorf("write what a worker asked for: %w", err)
			}
			p.TenantIds, p.WorkerIds, p.Queues = append(p.TenantIds, key.tenant), append(p.WorkerIds, key.worker), append(p.Queues, key.lane)
			p.Definitions, p.Agos = append(p.Definitions, string(definitions)), append(p.Agos, time.Since(one.at).Microseconds())
		}

		if err := r.tasks.q.WorkersSeen(ctx, p); err != nil {
			return fmt.Errorf("record which workers asked for work: %w", err)
		}
	}

	if len(beats) > 0 {
		p := db.WorkersBeatParams{}
		for key := range beats {
			p.TenantIds, p.WorkerIds = append(p.TenantIds, key.tenant), append(p.WorkerIds, key.worker)
		}
		if err := r.tasks.q.WorkersBeat(ctx, p); err != nil {
			return fmt.Errorf("record which workers sent heartbeats: %w", err)
		}
	}

	// Every process deletes; the statement takes a page, so that no tick takes long.
	if _, err := r.tasks.q.WorkersForget(ctx); err != nil {
		return fmt.Errorf("forget workers: %w", err)
	}

	return nil
}
