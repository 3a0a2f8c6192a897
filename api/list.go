package api

import (
	"context"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// PageOf selects a page of a list of tasks. It is exported because huma ignores embedded unexported
// structs.
type PageOf struct {
	Limit   int32         `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"The largest number of items on a page."`
	Cursor  string        `query:"cursor" maxLength:"512" pattern:"^[A-Za-z0-9_-]+$" doc:"nextCursor of the previous page, with the same filters."`
	Status  []jobs.Status `query:"status,explode" maxItems:"16" doc:"Only tasks with this status. Given several times: with any of them."`
	Type    []jobs.Type   `query:"type,explode" maxItems:"16" doc:"Only tasks of this type. Given several times: of any of them."`
	Include string        `query:"include" enum:"payloads" doc:"payloads: return every input, output and workflowContext in full, however long."`
}

// TaskPage is a page of tasks in the order of their creation. A page ends at the limit or at 4 MiB, and
// is empty only if no task follows.
type TaskPage struct {
	Items      []*Task `json:"items"`
	NextCursor *string `json:"nextCursor" doc:"The cursor of the next page; null on the last page. A page may have fewer items than limit although another page follows."`
}

type taskPageOutput struct{ Body *TaskPage }

type listTasksByWorkflowInput struct {
	WorkflowID string `path:"workflowId" minLength:"1" maxLength:"256"`
	PageOf
}

type listTasksByUserInput struct {
	UserID    string   `path:"userId" minLength:"1" maxLength:"256"`
	Claimable bool     `query:"claimable" doc:"true: include tasks that the user can claim."`
	Groups    []string `query:"groups" maxItems:"200" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"With claimable: the groups of the user, separated by commas."`
	Roles     []string `query:"roles" maxItems:"200" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"With claimable: the roles of the user, separated by commas."`
	PageOf
}

const listedText = " An input, output or workflowContext of more than 4 KiB is null and named in truncated, unless include=payloads is given. A " +
	"page ends at 4 MiB."

var listTasksByWorkflowDoc = doc{
	id: "listTasksByWorkflow", tag: tagTasks, summary: "List a workflow's tasks",
	description: "Lists the tasks of a workflow, oldest first, page by page. An unknown workflow has no tasks." + listedText,
	answer:      map[string]any{"items": []any{exampleTask}, "nextCursor": nil},
}

var listTasksByUserDoc = doc{
	id: "listTasksByUser", tag: tagTasks, summary: "List a user's tasks",
	description: "Lists the tasks that are, or were last, assigned to a person, oldest first, page by page. With claimable=true also the tasks " +
		"that the person can claim: by name, by group, by role, or because anyone can." + listedText,
	answer: map[string]any{"items": []any{exampleTask}, "nextCursor": nil},
}

func (h *taskHandlers) listTasksByWorkflow(ctx context.Context, in *listTasksByWorkflowInput) (*taskPageOutput, error) {
	tenant := callerOf(ctx).Tenant
	return h.page(ctx, in.PageOf, "workflow", in.WorkflowID, tenant, func(q *db.Queries, after uuid.UUID) ([]uuid.UUID, error) {
		return q.TaskListByWorkflow(ctx, db.TaskListByWorkflowParams{
			WorkflowID: in.WorkflowID, After: after, TenantID: tenant, Statuses: names(in.Status), Types: names(in.Type), Page: in.Limit + 1,
		})
	})
}

func (h *taskHandlers) listTasksByUser(ctx context.Context, in *listTasksByUserInput) (*taskPageOutput, error) {
	tenant := callerOf(ctx).Tenant
	if !in.Claimable {
		if in.Groups != nil || in.Roles != nil {
			return nil, violation("query.claimable", "groups and roles require claimable=true")
		}
		return h.page(ctx, in.PageOf, "user", in.UserID, tenant, func(q *db.Queries, after uuid.UUID) ([]uuid.UUID, error) {
			return q.TaskListByUser(ctx, db.TaskListByUserParams{
				UserID: &in.UserID, After: after, TenantID: tenant, Statuses: names(in.Status), Types: names(in.Type), Page: in.Limit + 1,
			})
		})
	}

	// The principals are part of the cursor's hash: other groups make another list.
	principals := jobs.Person{ID: in.UserID, Groups: in.Groups, Roles: in.Roles}.Principals()
	return h.page(ctx, in.PageOf, "claimable", in.UserID, tenant, func(q *db.Queries, after uuid.UUID) ([]uuid.UUID, error) {
		return q.TaskListForUser(ctx, db.TaskListForUserParams{
			UserID: &in.UserID, Principals: principals, After: after, TenantID: tenant, Statuses: names(in.Status), Types: names(in.Type), Page: in.Limit + 1,
		})
	}, principals...)
}

// names returns the distinct values of a filter, sorted, and never nil: nil would be NULL in a query.
func names[T ~string](values []T) []string {
	out := make([]string, 0, len(values))
	for _, v := range values {
		out = append(out, string(v))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// page reads one page of a list: ids by the query read, then the tasks of these ids. read is asked for
// one id more than the page has, to know whether another page follows.
func (h *taskHandlers) page(ctx context.Context, p PageOf, list, of, tenant string, read func(q *db.Queries, after uuid.UUID) ([]uuid.UUID, error), more ...string) (*taskPageOutput, error) {
	filters := append([]string{list, of, tenant, strings.Join(names(p.Status), ","), strings.Join(names(p.Type), ",")}, more...)
	last, err := after(p.Cursor, filters...)
	if err != nil {
		return nil, err
	}

	var from uuid.UUID
	if last != nil {
		if from, err = uuid.FromBytes(last); err != nil {
			return nil, violation("query.cursor", "the cursor is not valid")
		}
	}

	out := &TaskPage{}
	next := uuid.Nil
	// Ids and tasks come from the same snapshot, so that every task still matches the filters.
	err = h.read(ctx, func(q *db.Queries) error {
		ids, err := read(q, from)
		if err != nil {
			return err
		}
		if len(ids) > int(p.Limit) {
			ids = ids[:p.Limit]
			next = ids[len(ids)-1]
		}
		// A page of long tasks ends before its limit: its last task is where the next page begins.
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
