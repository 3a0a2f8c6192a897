package api

import (
	"context"
	"encoding/json"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// StatusUpdate is the body of PUT …/status.
type StatusUpdate struct {
	Status jobs.Status     `json:"status" doc:"The new status."`
	Output json.RawMessage `json:"output,omitempty" doc:"The output, for COMPLETED. Validated against the definition's outputSchema."`
	Error  *TaskFailure    `json:"error,omitempty" doc:"The error, for FAILED and TIMED_OUT."`
	Reason string          `json:"reason,omitempty" maxLength:"1000" doc:"Kept in the audit trail."`
}

// TaskFailure is a task's error as an external caller reports it.
type TaskFailure struct {
	Code       string          `json:"code" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9_.:-]+$"`
	Message    string          `json:"message" maxLength:"2000"`
	Details    json.RawMessage `json:"details,omitempty"`
	StackTrace string          `json:"stackTrace,omitempty" maxLength:"16384"`
	Timestamp  *time.Time      `json:"timestamp,omitempty" doc:"Accepted and ignored. The service records the time of the transition itself."`
	Retryable  *bool           `json:"retryable,omitempty"`
}

type updateTaskStatusInput struct {
	TaskWrite
	Body StatusUpdate
}

var updateTaskStatusDoc = doc{
	id: "updateTaskStatus", tag: tagTasks, summary: "Set a task's status",
	description: "Changes the status of a task from outside: a person's result, or a decision of the orchestrator. A running attempt loses its " +
		"lease. A change that the current status does not allow is a 409 with the allowed ones.",
	errors:  []int{404, 409, 412, 413, 415},
	request: map[string]any{"status": "COMPLETED", "output": map[string]any{"approved": true, "reviewedBy": "jane"}},
	answer:  exampleTask,
}

func (h *taskHandlers) updateTaskStatus(ctx context.Context, in *updateTaskStatusInput) (*taskOutput, error) {
	id, match, err := in.target(ctx)
	if err != nil {
		return nil, err
	}

	to := jobs.Update{Status: in.Body.Status, Output: given(in.Body.Output)}
	if f := in.Body.Error; f != nil {
		to.Error = &jobs.Failure{Code: f.Code, Message: f.Message, Details: given(f.Details), StackTrace: f.StackTrace, Retryable: f.Retryable}
	}

	// Package jobs validates the transition; a member that the status cannot have is an error of the
	// body.
	switch {
	case to.Output != nil && to.Status != jobs.Completed:
		return nil, violation("body.output", "is allowed with status COMPLETED only")
	case to.Error != nil && to.Status != jobs.Failed && to.Status != jobs.TimedOut:
		return nil, violation("body.error", "is allowed with status FAILED and TIMED_OUT only")
	}
	row, err := h.write(ctx, id, match, in.Body.Reason, func(actor jobs.Actor) (db.Task, error) {
		return h.tasks.SetStatus(ctx, id, actor, to)
	})
	if err != nil {
		return nil, err
	}

	return answer(&row), nil
}

// actorOf returns the caller's part of a write for package jobs: tenant, actor, reason, idempotency key.
func actorOf(ctx context.Context, reason string) jobs.Actor {
	caller := callerOf(ctx)
	return jobs.Actor{Tenant: caller.Tenant, Name: caller.Name, Reason: reason, Call: callOf(ctx).keyed}
}
