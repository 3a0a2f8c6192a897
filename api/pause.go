package api

import (
	"context"
	"encoding/binary"
	"math"
	"net/http"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// pauseHandlers serve the pauses of queues, definitions and tasks.
type pauseHandlers struct{ *core }

// scopePause is the scope that pauses and resumes.
const scopePause = "tasks:pause"

// PauseReason is the body of pause and resume.
type PauseReason struct {
	Reason string `json:"reason" minLength:"1" maxLength:"500" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The reason in one line, shown in lists of pauses and by the why operation."`
}

// Pause is a pause of a queue, a definition or a task.
type Pause struct {
	Scope        jobs.PauseScope `json:"scope" enum:"queue,definition,task" doc:"The kind of thing that is paused."`
	Name         string          `json:"name" doc:"The queue's name, or the id of the definition or the task."`
	PausedAt     time.Time       `json:"pausedAt"`
	PausedBy     string          `json:"pausedBy" doc:"The caller that paused; river-ui: and a caller for River UI; role: and a database role for SQL."`
	Reason       string          `json:"reason" doc:"The reason for the pause. Empty if none was given, as in River UI."`
	ResumedAt    *time.Time      `json:"resumedAt" doc:"The end of the pause; null while the pause is in force."`
	ResumedBy    *string         `json:"resumedBy" doc:"The caller that resumed; null while the pause is in force."`
	ResumeReason *string         `json:"resumeReason" doc:"The reason for resuming; null while the pause is in force."`
}

// PausePage is a page of pauses, the newest first.
type PausePage struct {
	Items      []Pause `json:"items"`
	NextCursor *string `json:"nextCursor" doc:"The cursor of the next page; null on the last page."`
}

// QueuePath is the path of a queue. It is exported because huma ignores embedded unexported structs.
type QueuePath struct {
	Queue string `path:"queue" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"The name of a queue, such as task-execution-automated."`
}

type (
	pauseQueueInput struct {
		QueuePath
		Body PauseReason
	}
	pauseDefinitionInput struct {
		DefinitionPath
		Body PauseReason
	}
	pauseTaskInput struct {
		TaskPath
		Body PauseReason
	}
	pauseOutput struct{ Body *Pause }

	listPausesInput struct {
		All    bool   `query:"all" doc:"true: include the pauses that were resumed. Default: only the pauses in force."`
		Limit  int32  `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"The largest number of items on a page."`
		Cursor string `query:"cursor" maxLength:"512" pattern:"^[A-Za-z0-9_-]+$" doc:"nextCursor of the previous page, with the same all."`
	}
	listPausesOutput struct{ Body *PausePage }
)

func examplePause(scope, name string, resumed bool) map[string]any {
	p := map[string]any{
		"scope": scope, "name": name, "pausedAt": "2026-11-02T10:00:00Z", "pausedBy": "workflow-orchestrator", "reason": "the tax table is wrong",
		"resumedAt": nil, "resumedBy": nil, "resumeReason": nil,
	}
	if resumed {
		p["resumedAt"], p["resumedBy"], p["resumeReason"] = "2026-11-02T10:20:00Z", "workflow-orchestrator", "the tax table is right again"
	}
	return p
}

const (
	pauseHolds = "No further attempt begins, retries and redrives included. A running attempt continues, and an ASSIGNED manual task stays with its " +
		"people. Pausing again changes nothing and returns the pause in force."
	resumeAgain = "Resuming again changes nothing and returns the last pause. Without any pause the response is a 404."
)

func pauseDoc(id, summary, description, scope, name string, errors ...int) doc {
	return doc{
		id: id, tag: tagPauses, summary: summary, description: description, errors: append(errors, 404, 413, 415),
		request: map[string]any{"reason": "the tax table is wrong"}, answer: examplePause(scope, name, false),
	}
}

func resumeDoc(id, summary, description, scope, name string) doc {
	d := pauseDoc(id, summary, description, scope, name)
	d.request, d.answer = map[string]any{"reason": "the tax table is right again"}, examplePause(scope, name, true)
	return d
}

var (
	pauseQueueDoc = pauseDoc("pauseQueue", "Pause a queue",
		"Stops a queue for all tenants, as River UI does. Requires a token without a tenant. "+pauseHolds, "queue", jobs.LaneAutomated)
	resumeQueueDoc = resumeDoc("resumeQueue", "Resume a queue",
		"Ends the pause of a queue, also a pause by River UI or SQL. Maintenance is not ended. Requires a token without a tenant. "+resumeAgain, "queue", jobs.LaneAutomated)
	pauseDefinitionDoc = pauseDoc("pauseTaskDefinition", "Pause a task definition",
		"Holds back the tasks of a definition. With a tenant's token: the tasks of the tenant, whether the definition is the tenant's or the "+
			"platform's. With a token without a tenant: the tasks of every tenant that use the platform's definition. "+pauseHolds, "definition", "calculate-order-total")
	resumeDefinitionDoc = resumeDoc("resumeTaskDefinition", "Resume a task definition",
		"Ends the pause that a token of the same tenant began. Tasks that another pause holds back continue to wait. "+resumeAgain, "definition", "calculate-order-total")
	pauseTaskDoc = pauseDoc("pauseTask", "Pause a task",
		"Holds back the next attempt of one task. A task that has ended is a 409. "+pauseHolds, "task", exampleTask["taskId"].(string), 409)
	resumeTaskDoc = resumeDoc("resumeTask", "Resume a task",
		"Ends the pause of a task. A task whose definition is paused continues to wait. "+resumeAgain, "task", exampleTask["taskId"].(string))
)

var listPausesDoc = doc{
	id: "listPauses", tag: tagPauses, summary: "List pauses",
	description: "Lists the pauses in force, or with all=true all pauses, newest first: the pauses of the token's tenant, and the pauses of queues and of " +
		"the platform's definitions, which hold back the tasks of every tenant.",
	answer: map[string]any{"items": []any{examplePause("definition", "calculate-order-total", false)}, "nextCursor": nil},
}

func (h *pauseHandlers) pauseQueue(ctx context.Context, in *pauseQueueInput) (*pauseOutput, error) {
	return h.ofQueue(ctx, in, h.tasks.Pauses.PauseQueue)
}

func (h *pauseHandlers) resumeQueue(ctx context.Context, in *pauseQueueInput) (*pauseOutput, error) {
	return h.ofQueue(ctx, in, h.tasks.Pauses.ResumeQueue)
}

// ofQueue refuses tenants: all tenants share the queues.
func (h *pauseHandlers) ofQueue(ctx context.Context, in *pauseQueueInput, do func(context.Context, string, jobs.Actor) (jobs.Pause, error)) (*pauseOutput, error) {
	if callerOf(ctx).Tenant != "" {
		return nil, problem(http.StatusForbidden, codeForbidden, "all tenants share the queues: pausing and resuming them requires a token without a tenant")
	}
	return pauseDone(do(ctx, in.Queue, actorOf(ctx, in.Body.Reason)))
}

func (h *pauseHandlers) pauseDefinition(ctx context.Context, in *pauseDefinitionInput) (*pauseOutput, error) {
	return pauseDone(h.tasks.Pauses.PauseDefinition(ctx, in.ID, actorOf(ctx, in.Body.Reason)))
}

func (h *pauseHandlers) resumeDefinition(ctx context.Context, in *pauseDefinitionInput) (*pauseOutput, error) {
	return pauseDone(h.tasks.Pauses.ResumeDefinition(ctx, in.ID, actorOf(ctx, in.Body.Reason)))
}

func (h *pauseHandlers) pauseTask(ctx context.Context, in *pauseTaskInput) (*pauseOutput, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	about(ctx, id)
	return pauseDone(h.tasks.Pauses.PauseTask(ctx, id, actorOf(ctx, in.Body.Reason)))
}

func (h *pauseHandlers) resumeTask(ctx context.Context, in *pauseTaskInput) (*pauseOutput, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	about(ctx, id)
	return pauseDone(h.tasks.Pauses.ResumeTask(ctx, id, actorOf(ctx, in.Body.Reason)))
}

func pauseDone(p jobs.Pause, err error) (*pauseOutput, error) {
	if err != nil {
		return nil, err
	}
	return pauseAnswer(p), nil
}

func pauseAnswer(p jobs.Pause) *pauseOutput {
	out := pauseOf(p)
	return &pauseOutput{&out}
}

func pauseOf(p jobs.Pause) Pause {
	out := Pause{Scope: p.Scope, Name: p.Name, PausedAt: p.PausedAt, PausedBy: p.PausedBy, Reason: p.Reason}
	// The three members are null together.
	if p.ResumedAt != nil {
		out.ResumedAt, out.ResumedBy, out.ResumeReason = p.ResumedAt, &p.ResumedBy, &p.ResumeReason
	}
	return out
}

func (h *pauseHandlers) listPauses(ctx context.Context, in *listPausesInput) (*listPausesOutput, error) {
	tenant := callerOf(ctx).Tenant
	// Both lists page by the ids of one table: only the filter distinguishes their cursors.
	filters := []string{"pauses in force", tenant}
	if in.All {
		filters[0] = "all pauses"
	}
	last, err := after(in.Cursor, filters...)
	if err != nil {
		return nil, err
	}

	// Newest first, so the first page has everything below the largest id.
	before := int64(math.MaxInt64)
	switch {
	case len(last) == 8:
		before = int64(binary.BigEndian.Uint64(last))
	case last != nil:
		return nil, violation("query.cursor", "the cursor is not valid")
	}

	out := &PausePage{Items: []Pause{}}
	err = h.read(ctx, func(q *db.Queries) error {
		rows, err := q.PauseList(ctx, db.PauseListParams{TenantID: tenant, ResumedToo: in.All, Before: before, Page: in.Limit + 1})
		if err != nil {
			return err
		}
		if len(rows) > int(in.Limit) {
			rows = rows[:in.Limit]
			next := cursor(binary.BigEndian.AppendUint64(nil, uint64(rows[len(rows)-1].ID)), filters...)
			out.NextCursor = &next
		}
		for _, row := range rows {
			out.Items = append(out.Items, pauseOf(jobs.PauseOf(row)))
		}
		return nil
	})
	if err != nil {
		return nil, readFailed("list pauses", err)
	}
	return &listPausesOutput{out}, nil
}
