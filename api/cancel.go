package api

import (
	"context"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// Cancellation is the body of POST …/cancel.
type Cancellation struct {
	Reason string `json:"reason,omitempty" maxLength:"1000" doc:"Kept in the audit trail, and published with task.canceled."`
}

type cancelTaskInput struct {
	TaskWrite
	Body *Cancellation `required:"false"`
}

var cancelTaskDoc = doc{
	id: "cancelTask", tag: tagTasks, summary: "Cancel a task",
	description: "Cancels a task at once and stops its attempt. A task that is already cancelled returns 200 again; a task that ended " +
		"otherwise is a 409.",
	errors:  []int{404, 409, 412, 413, 415},
	request: map[string]any{"reason": "the order was withdrawn"}, optional: true,
	answer: exampleTask,
}

func (h *taskHandlers) cancelTask(ctx context.Context, in *cancelTaskInput) (*taskOutput, error) {
	id, match, err := in.target(ctx)
	if err != nil {
		return nil, err
	}

	// The body is optional, and its reason too.
	reason := ""
	if in.Body != nil {
		reason = in.Body.Reason
	}

	row, err := h.write(ctx, id, match, reason, func(actor jobs.Actor) (db.Task, error) { return h.tasks.Cancel(ctx, id, actor) })
	if err != nil {
		return nil, err
	}

	return answer(&row), nil
}
