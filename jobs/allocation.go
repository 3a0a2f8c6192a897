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

// allocate asks for what the definition requires, under the lease of the attempt.
func (r *run) allocate(ctx context.Context, job *Job) error {
	if !r.allocates() {
		return nil
	}
	got, err := r.r.cfg.Allocate(ctx, *job)
	if err != nil {
		return fmt.Errorf("allocate resources: %w", err)
	}
	job.Allocation = &got
	r.r.tasks.cfg.Logger.Info("resources of an attempt", "task", job.TaskID, "attempt", job.Attempt,
		"cpu", got.CPU, "memory", got.Memory, "disk", got.Disk, "allocation", got.ID)
	return nil
}
