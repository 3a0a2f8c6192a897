package jobs

import (
	"context"
	"fmt"
)

// Allocation is what an attempt may use: granted by the Resource Service, or, where it
// was away, what the definition asked for.
type Allocation struct {
	ID     string // of the reservation; empty: nothing is reserved
	CPU    string
	Memory string
	Disk   string
}

// allocates says whether an attempt asks for resources before it begins to work. Only
// what runs here does: a remote worker brings its own.
func (r *run) allocates() bool {
	return r.r.cfg.Allocate != nil && r.settings.config.ResourceRequirements != nil && !r.exec.Assigns
}

// allocate asks for what the definition requires before the attempt begins: the time that
// a Resource Service takes, or the fallback for it, is not the attempt's. nil where the
// definition requires nothing.
func (r *run) allocate(ctx context.Context) (*Allocation, error) {
	if !r.allocates() {
		return nil, nil //nolint:nilnil // most need none
	}

	job := r.job()
	var got Allocation
	err := r.foreign(ctx, func() (err error) {
		got, err = r.r.cfg.Allocate(ContextWithTraceparent(ctx, stringOf(r.claim.Traceparent)), job)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("allocate resources: %w", err)
	}

	r.r.tasks.cfg.Logger.Info("resources of an attempt", "task", job.TaskID, "attempt", job.Attempt,
		"cpu", got.CPU, "memory", got.Memory, "disk", got.Disk, "allocation", got.ID)
	return &got, nil
}
