package api

import (
	"context"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// PageOf is what every list of tasks takes. Exported, or huma would not look into it.
type PageOf struct {
	Limit   int32         `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many at most."`
	Cursor  string        `query:"cursor" maxLength:"512" pattern:"^[A-Za-z0-9_-]+$" doc:"nextCursor of the page before, with the same filters."`
	Status  []jobs.Status `query:"status,explode" maxItems:"16" doc:"Only those in this status; given several times, in any of them."`
	Type    []jobs.Type   `query:"type,explode" maxItems:"16" doc:"Only those of this type; given several times, of any of them."`
	Include string        `query:"include" enum:"payloads" doc:"payloads: with every input, output and workflowContext, however long."`
}

// TaskPage is a page of tasks, in the order in which they were made. It ends at its limit
// or at 4 MiB, and has one task at least if there is one.
type TaskPage struct {
	Items      []*Task `json:"items"`
	NextCursor *string `json:"nextCursor" doc:"Ask with it for the next page; null on the last. A page can be shorter than its limit and have another behind it."`
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

const listedText = " An input, output or workflowContext of more than 4 KiB is null, and named in truncated, unless include=payloads asks for it. A page ends at 4 MiB."

var listTasksByWorkflowDoc = doc{
	id: "listTasksByWorkflow", tag: tagTasks, summary: "List a workflow's tasks",
	description: "Pages through the tasks of a workflow, oldest first. A workflow that is not known has none." + listedText,
	answer:      map[string]any{"items": []any{exampleTask}, "nextCursor": nil},
}

var listTasksByUserDoc = doc{
	id: "listTasksByUser", tag: tagTasks, summary: "List a user's tasks",
	description: "Pages through the tasks that are, or last were, assigned to a person, oldest first. With claimable=true also through those " +
		"that wait for a person like them: by name, by group, by role, or for anyone." + listedText,
	answer: map[string]any{"items": []any{exampleTask}, "nextCursor": nil},
}

func (a *API) listTasksByWorkflow(ctx context.Context, in *listTasksByWorkflowInput) (*taskPageOutput, error) {
	tenant := callerOf(ctx).Tenant
	return a.page(ctx, in.PageOf, "workflow", in.WorkflowID, tenant, func(q *db.Queries, after uuid.UUID) ([]uuid.UUID, error) {
		return q.TaskListByWorkflow(ctx, db.TaskListByWorkflowParams{
			WorkflowID: in.WorkflowID, After: after, TenantID: tenant, Statuses: names(in.Status), Types: names(in.Type), Page: in.Limit + 1,
		})
	})
}

func (a *API) listTasksByUser(ctx context.Context, in *listTasksByUserInput) (*taskPageOutput, error) {
	tenant := callerOf(ctx).Tenant
	if !in.Claimable {
		if in.Groups != nil || in.Roles != nil {
			return nil, violation("query.claimable", "groups and roles say something with claimable=true only")
		}
		return a.page(ctx, in.PageOf, "user", in.UserID, tenant, func(q *db.Queries, after uuid.UUID) ([]uuid.UUID, error) {
			return q.TaskListByUser(ctx, db.TaskListByUserParams{
				UserID: &in.UserID, After: after, TenantID: tenant, Statuses: names(in.Status), Types: names(in.Type), Page: in.Limit + 1,
			})
		})
	}
	principals := jobs.Person{ID: in.UserID, Groups: in.Groups, Roles: in.Roles}.Principals()
	return a.page(ctx, in.PageOf, "claimable", in.UserID, tenant, func(q *db.Queries, after uuid.UUID) ([]uuid.UUID, error) {
		return q.TaskListForUser(ctx, db.TaskListForUserParams{
			UserID: &in.UserID, Principals: principals, After: after, TenantID: tenant, Statuses: names(in.Status), Types: names(in.Type), Page: in.Limit + 1,
		})
	}, principals...)
}

// names are the values of a filter, each once and in order: never nil, which would be NULL
// in a query.
func names[T ~string](values []T) []string {
	out := make([]string, 0, len(values))
	for _, v := range values {
		out = append(out, string(v))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// page reads one id more than it shows, to know whether there is another page.
func (a *API) page(ctx context.Context, p PageOf, list, of, tenant string, read func(q *db.Queries, after uuid.UUID) ([]uuid.UUID, error), more ...string) (*taskPageOutput, error) {
	filters := append([]string{list, of, tenant, strings.Join(names(p.Status), ","), strings.Join(names(p.Type), ",")}, more...)
	last, err := after(p.Cursor, filters...)
	if err != nil {
		return nil, err
	}
	var from uuid.UUID
	if last != nil {
		if from, err = uuid.FromBytes(last); err != nil {
			return nil, violation("query.cursor", "this is no cursor of ours")
		}
	}
	out := &TaskPage{}
	next := uuid.Nil
	err = a.read(ctx, func(q *db.Queries) error { // all of it in one snapshot
		ids, err := read(q, from)
		if err != nil {
			return err
		}
		if len(ids) > int(p.Limit) {
			ids = ids[:p.Limit]
			next = ids[len(ids)-1]
		}
		var all bool
		if out.Items, all, err = show(ctx, q, ids, p); err == nil && !all {
			next = out.Items[len(out.Items)-1].TaskID
		}
		return err
	})
	if err != nil {
		return nil, readFailed("list tasks of "+list+" "+of, err)
	}
	if next != uuid.Nil {
		text := cursor(next[:], filters...)
		out.NextCursor = &text
	}
	return &taskPageOutput{Body: out}, nil
}
