package api

import (
	"context"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// Reassignment is the body of POST …/reassign: a person or a group.
type Reassignment struct {
	AssigneeID string     `json:"assigneeId,omitempty" minLength:"1" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The new assignee. Exactly one of assigneeId and groupId is required."`
	GroupID    string     `json:"groupId,omitempty" minLength:"1" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The group that can claim the task. Exactly one of assigneeId and groupId is required."`
	Reason     string     `json:"reason,omitempty" maxLength:"1000" doc:"Kept in the audit trail, and published with task.manual.assigned."`
	DueDate    *time.Time `json:"dueDate,omitempty" doc:"Default: unchanged. From year 2000 to 8999, in UTC."`
}

type reassignTaskInput struct {
	TaskWrite
	OnBehalf
	Body Reassignment
}

var reassignTaskDoc = doc{
	id: "reassignTask", tag: tagTasks, summary: "Reassign a manual task",
	description: "Assigns a manual task to another person or group, whether it is claimed or not. A task of another type is a 409. With " +
		"X-User-Token the person must be allowed to reassign the task: as its assignee, as one of its candidates, or by a role named " +
		"in the definition's assignmentRules.reassignRoles; otherwise the response is a 403.",
	errors:  []int{404, 409, 412, 413, 415},
	request: map[string]any{"assigneeId": "jane", "reason": "on leave"},
	answer:  exampleTask,
}

func (h *worklistHandlers) reassignTask(ctx context.Context, in *reassignTaskInput) (*taskOutput, error) {
	id, match, err := in.target(ctx)
	if err != nil {
		return nil, err
	}

	to := jobs.Reassignment{AssigneeID: in.Body.AssigneeID, GroupID: in.Body.GroupID, DueDate: in.Body.DueDate}
	// The person in the token decides here, so the body names none.
	who, proven, err := h.gate.forUser(ctx, in.OnBehalf, jobs.Person{})
	if err != nil {
		return nil, err
	}

	row, err := h.write(ctx, id, match, in.Body.Reason, func(actor jobs.Actor) (db.Task, error) {
		// Without the person's token the calling service is responsible, and may reassign every task.
		if proven {
			to.Person = &who
			// The audit trail names the person if the token proves who it is.
			actor.Name = who.ID
		}
		return h.tasks.Worklist.Reassign(ctx, id, actor, to)
	})
	if err != nil {
		return nil, err
	}

	return answer(&row), nil
}
