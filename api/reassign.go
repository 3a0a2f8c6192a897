package api

import (
	"context"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// Reassignment is the body of POST …/reassign: a person or a group.
type Reassignment struct {
	AssigneeID string     `json:"assigneeId,omitempty" minLength:"1" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The person; give this or groupId."`
	GroupID    string     `json:"groupId,omitempty" minLength:"1" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The group; give this or assigneeId."`
	Reason     string     `json:"reason,omitempty" maxLength:"1000" doc:"For the audit trail, and told with task.manual.assigned."`
	DueDate    *time.Time `json:"dueDate,omitempty" doc:"Default: as it was. From 2000 to 8999, in UTC."`
}

type reassignTaskInput struct {
	TaskWrite
	OnBehalf
	Body Reassignment
}

var reassignTaskDoc = doc{
	id: "reassignTask", tag: tagTasks, summary: "Reassign a manual task",
	description: "Gives a manual task to somebody else, whether it was begun or not. A task of another type answers 409. " +
		"With X-User-Token the task must be the person's to give: assigned to them, waiting for them as a candidate, or of a definition whose assignmentRules.reassignRoles name a role of theirs; else 403.",
	errors:  []int{404, 409, 412, 413, 415},
	request: map[string]any{"assigneeId": "jane", "reason": "on leave"},
	answer:  exampleTask,
}

func (a *API) reassignTask(ctx context.Context, in *reassignTaskInput) (*taskOutput, error) {
	id, match, err := in.target(ctx)
	if err != nil {
		return nil, err
	}
	to := jobs.Reassignment{AssigneeID: in.Body.AssigneeID, GroupID: in.Body.GroupID, DueDate: in.Body.DueDate}
	who, proven, err := a.forUser(ctx, in.OnBehalf, jobs.Person{})
	if err != nil {
		return nil, err
	}
	row, err := a.write(ctx, id, match, in.Body.Reason, func(asks jobs.Ask) (db.Task, error) {
		if proven {
			to.Who = &who
			asks.By = who.ID // the audit trail names who is known to have done it
		}
		return a.cfg.Tasks.Worklist.Reassign(ctx, id, asks, to)
	})
	if err != nil {
		return nil, err
	}
	return answer(&row), nil
}
