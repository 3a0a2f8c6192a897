package api

import (
	"context"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// PageOf is what every list of tasks takes. Exported, or huma would not look into it.
type PageOf struct {
	Limit  int32       `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many at most."`
	Cursor string      `query:"cursor" maxLength:"512" pattern:"^[A-Za-z0-9_-]+$" doc:"nextCursor of the page before, with the same filters."`
	Status jobs.Status `query:"status" doc:"Only those in this status."`
	Type   jobs.Type   `query:"type" doc:"Only those of this type."`
}

// TaskPage is a page of tasks, in the order in which they were made.
type TaskPage struct {
	Items      []*Task `json:"items"`
	NextCursor *string `json:"nextCursor" doc:"Ask with it for the next page; null on the last."`
}

type taskPageOutput struct{ Body *TaskPage }

type listTasksByWorkflowInput struct {
	WorkflowID string `path:"workflowId" minLength:"1" maxLength:"256"`
	PageOf
}

type listTasksByUserInput struct {
	UserID    string   `path:"userId" minLength:"1" maxLength:"256"`
	Claimable bool     `query:"claimable" doc:"Also what waits to be claimed by the user."`
	Groups    []string `query:"groups" maxItems:"200" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"With claimable: the groups that the user is in, with commas between them."`
	Roles     []string `query:"roles" maxItems:"200" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"With claimable: the roles that the user has, with commas between them."`
	PageOf
}

var listTasksByWorkflowDoc = doc{
	id: "listTasksByWorkflow", tag: tagTasks, summary: "List a workflow's tasks",
	description: "Pages through the tasks of a workflow, oldest first. A workflow that is not known has none.",
	answer:      map[string]any{"items": []any{exampleTask}, "nextCursor": nil},
}

var listTasksByUserDoc = doc{
	id: "listTasksByUser", tag: tagTasks, summary: "List a user's tasks",
	description: "Pages through the tasks that are, or last were, assigned to a person, oldest first. With claimable=true also through those " +
		"that wait for a person like them: by name, by group, by role, or for anyone.",
	answer: map[string]any{"items": []any{exampleTask}, "nextCursor": nil},
}

func (a *API) listTasksByWorkflow(ctx context.Context, in *listTasksByWorkflowInput) (*taskPageOutput, error) {
	tenant := callerOf(ctx).Tenant
	return in.page("workflow", in.WorkflowID, tenant, func(after uuid.UUID) ([]db.Task, error) {
		return fetch(ctx, a, (*db.Queries).TaskListByWorkflow, db.TaskListByWorkflowParams{
			WorkflowID: in.WorkflowID, After: after, TenantID: tenant, Status: string(in.Status), Type: string(in.Type), Page: in.Limit + 1,
		})
	})
}

func (a *API) listTasksByUser(ctx context.Context, in *listTasksByUserInput) (*taskPageOutput, error) {
	tenant := callerOf(ctx).Tenant
	if !in.Claimable {
		if in.Groups != nil || in.Roles != nil {
			return nil, flawed("query.claimable", "groups and roles say something with claimable=true only")
		}
		return in.page("user", in.UserID, tenant, func(after uuid.UUID) ([]db.Task, error) {
			return fetch(ctx, a, (*db.Queries).TaskListByUser, db.TaskListByUserParams{
				UserID: &in.UserID, After: after, TenantID: tenant, Status: string(in.Status), Type: string(in.Type), Page: in.Limit + 1,
			})
		})
	}
	names := jobs.Person{ID: in.UserID, Groups: in.Groups, Roles: in.Roles}.Principals()
	return in.page("claimable", in.UserID, tenant, func(after uuid.UUID) ([]db.Task, error) {
		return fetch(ctx, a, (*db.Queries).TaskListForUser, db.TaskListForUserParams{
			UserID: &in.UserID, Principals: names, After: after, TenantID: tenant, Status: string(in.Status), Type: string(in.Type), Page: in.Limit + 1,
		})
	}, names...)
}

// page reads one row more than it shows, to know whether there is another page.
func (p PageOf) page(list, of, tenant string, read func(after uuid.UUID) ([]db.Task, error), more ...string) (*taskPageOutput, error) {
	filters := append([]string{list, of, tenant, string(p.Status), string(p.Type)}, more...)
	last, err := after(p.Cursor, filters...)
	if err != nil {
		return nil, err
	}
	var from uuid.UUID
	if last != nil {
		if from, err = uuid.FromBytes(last); err != nil {
			return nil, flawed("query.cursor", "this is no cursor of ours")
		}
	}
	rows, err := read(from)
	if err != nil {
		return nil, readFailed("list tasks of "+list+" "+of, err)
	}
	out := &TaskPage{Items: make([]*Task, 0, min(len(rows), int(p.Limit)))}
	if len(rows) > int(p.Limit) {
		rows = rows[:p.Limit]
		id := rows[len(rows)-1].TaskID
		next := cursor(id[:], filters...)
		out.NextCursor = &next
	}
	for i := range rows {
		out.Items = append(out.Items, taskOf(&rows[i]))
	}
	return &taskPageOutput{Body: out}, nil
}
