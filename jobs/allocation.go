package jobs

import (
	"context"
	"fmt"
)

// Allocation is the resources that an attempt may use: granted by the Resource Service or,
// during an outage of the service, as the definition requires them.
type Allocation struct {
	ID     string // of the reservation; empty: nothing is reserved
	CPU    string
	Memory string
	Disk   string
}

// allocates reports whether the attempt asks for resources before its start. The executor of
// manual tasks asks for no resources, and remote workers bring their own.
func (r *run) allocates() bool {
	return r.r.cfg.Allocate != nil && r.settings.config.ResourceRequirements != nil && !r.exec.Assigns
}

// allocate asks for the resources that the definition requires; nil if the definition
// requires no resources. The timeout begins afterwards, so a slow Resource Service costs the
// attempt no time.
func (r *run) allocate(ctx context.Context) (*Allocation, error) {
	if !r.allocates() {
		return nil, nil //nolint:nilnil // most need none
	}

	job := r.job()
	var got Allocation
	// A panic in Config.Allocate fails the attempt, not the process.
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
