package api

import "context"

// Cancellation is the body of POST …/cancel.
type Cancellation struct {
	Reason string `json:"reason,omitempty" maxLength:"1000" doc:"For the audit trail, and told with task.canceled."`
}

type cancelTaskInput struct {
	TaskWrite
	Body *Cancellation `required:"false"`
}

var cancelTaskDoc = doc{
	id: "cancelTask", tag: tagTasks, summary: "Cancel a task",
	description: "Ends a task at once, and stops what executes it. A cancelled task answers 200 again; one that ended otherwise 409.",
	errors:      []int{404, 409, 412, 413, 415},
	request:     map[string]any{"reason": "the order was withdrawn"}, optional: true,
	answer: exampleTask,
}

func (a *API) cancelTask(ctx context.Context, in *cancelTaskInput) (*taskOutput, error) {
	id, match, err := in.target(ctx)
	if err != nil {
		return nil, err
	}
	reason := ""
	if in.Body != nil {
		reason = in.Body.Reason
	}
	row, err := a.cfg.Tasks.Cancel(ctx, id, ask(ctx, match, reason))
	if err != nil {
		return nil, err
	}
	return answer(&row), nil
}
