package peer

import (
	"cmp"
	"context"
	"net/http"
)

// The resources of a task whose definition names none.
const (
	DefaultCPU    = "0.1"
	DefaultMemory = "128Mi"
	DefaultDisk   = "500Mi"
)

// Resources calls the Resource Service.
type Resources struct{ caller *caller }

// AllocateRequest asks for the resources that a definition requires.
type AllocateRequest struct {
	TaskID string `json:"taskId"`
	CPU    string `json:"cpu"`    // default DefaultCPU
	Memory string `json:"memory"` // default DefaultMemory
	Disk   string `json:"disk"`   // default DefaultDisk
}

// Allocation is the granted resources of a task.
type Allocation struct {
	ID     string `json:"allocationId"` // empty in a fallback
	CPU    string `json:"cpu"`
	Memory string `json:"memory"`
	Disk   string `json:"disk"`

	Fallback bool `json:"-"` // the service was unavailable: these are the requested resources
}

// Defaults is the allocation without a Resource Service: the required resources, and defaults for
// the others. Nothing is reserved.
func (req AllocateRequest) Defaults() Allocation {
	return Allocation{
		CPU: cmp.Or(req.CPU, DefaultCPU), Memory: cmp.Or(req.Memory, DefaultMemory), Disk: cmp.Or(req.Disk, DefaultDisk), Fallback: true,
	}
}

// Allocate reserves resources for a task. During an outage it falls back to the required resources,
// unreserved, and returns no error. An error is a *jobs.Failure: the service refused.
func (c *Resources) Allocate(ctx context.Context, req AllocateRequest) (Allocation, error) {
	fallback := req.Defaults()
	req.CPU, req.Memory, req.Disk = fallback.CPU, fallback.Memory, fallback.Disk
	// Members that the response leaves out are granted as requested.
	granted := Allocation{CPU: req.CPU, Memory: req.Memory, Disk: req.Disk}
	err := c.caller.call(ctx, question{
		method: http.MethodPost,
		path:   "/api/resources/allocations",
		body:   req,
	}, &granted)
	switch {
	case outage(err):
		return fallback, nil
	case err != nil:
		return Allocation{}, err
	}
	return granted, nil
}
