package api

import (
	"context"
	"encoding/json"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// worklistHandlers serve the operations of people on manual tasks: claim, unclaim, complete,
// reassign.
type worklistHandlers struct {
	*core
	gate *gate // verifies the person's own token
}

// PersonNamed is the person of a claim. It is exported because huma ignores embedded unexported
// structs.
type PersonNamed struct {
	UserID string   `json:"userId" minLength:"1" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The person."`
	Groups []string `json:"groups,omitempty" maxItems:"200" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The person's groups. With X-User-Token a subset of the token's groups; default: all of them."`
	Roles  []string `json:"roles,omitempty" maxItems:"200" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The person's roles. With X-User-Token a subset of the token's roles; default: all of them."`
}

func (p PersonNamed) person() jobs.Person {
	return jobs.Person{ID: p.UserID, Groups: p.Groups, Roles: p.Roles}
}

// Unclaim is the body of POST …/unclaim.
type Unclaim struct {
	UserID string `json:"userId" minLength:"1" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The person who claimed the task."`
	Reason string `json:"reason,omitempty" maxLength:"1000" doc:"Kept in the audit trail, and published with task.manual.assigned."`
}

// Completion is the body of POST …/complete.
type Completion struct {
	UserID  string          `json:"userId" minLength:"1" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The person who claimed the task, or to whom the task is assigned."`
	Output  json.RawMessage `json:"output,omitempty" doc:"Validated against the definition's outputSchema."`
	Comment string          `json:"comment,omitempty" maxLength:"2000" doc:"Kept in the audit trail."`
}

type claimTaskInput struct {
	TaskWrite
	OnBehalf
	Body PersonNamed
}

type unclaimTaskInput struct {
	TaskWrite
	OnBehalf
	Body Unclaim
}

type completeTaskInput struct {
	TaskWrite
	OnBehalf
	Body Completion
}

type claimNextTaskInput struct {
	OnBehalf
	Body PersonNamed
}

type claimNextTaskOutput struct {
	ETag string `header:"ETag" doc:"The task's version, for If-Match; absent without a task."`
	Body NextTask
}

// NextTask is the response of claim-next.
type NextTask struct {
	Task MaybeTask `json:"task" doc:"The claimed task; null if no task is waiting for the person."`
}

// MaybeTask is a task or null.
type MaybeTask struct{ *Task }

// MarshalJSON writes the task or null.
func (m MaybeTask) MarshalJSON() ([]byte, error) { return json.Marshal(m.Task) }

// Schema implements huma.SchemaProvider.
func (MaybeTask) Schema(r huma.Registry) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{r.Schema(reflect.TypeFor[Task](), true, ""), {Type: "null"}}}
}

var claimTaskDoc = doc{
	id: "claimTask", tag: tagTasks, summary: "Claim a manual task",
	description: "Claims an ASSIGNED manual task for a person who may work on it: the assignee, one of the candidates, or anyone if nobody is " +
		"named. The task becomes RUNNING. Claiming it again changes nothing. A task that another person has claimed is a 409 with " +
		"that person and the time; a person who may not claim it gets a 403.",
	errors:  []int{404, 409, 412, 413, 415},
	request: map[string]any{"userId": "jane", "groups": []any{"accounting"}, "roles": []any{"approver"}},
	answer:  exampleManualTask("RUNNING"),
}

var unclaimTaskDoc = doc{
	id: "unclaimTask", tag: tagTasks, summary: "Return a claimed task",
	description: "Returns a claimed task to the assignee or the candidates that it had before, with the status ASSIGNED. Only the person who " +
		"claimed the task may do this; others get a 403.",
	errors:  []int{404, 409, 412, 413, 415},
	request: map[string]any{"userId": "jane", "reason": "not my customer"},
	answer:  exampleManualTask("ASSIGNED"),
}

var completeTaskDoc = doc{
	id: "completeTask", tag: tagTasks, summary: "Complete a manual task",
	description: "Completes a manual task with a person's result. Only the person who claimed the task may do this, or the assignee of an " +
		"unclaimed task; others get a 403. An output that does not match the definition's schema is a 422 with each invalid place, " +
		"and changes nothing. The same result of the same person again gets the same response.",
	errors:  []int{404, 409, 412, 413, 415},
	request: map[string]any{"userId": "jane", "output": map[string]any{"approved": true}, "comment": "called the customer"},
	answer:  exampleManualTask("COMPLETED"),
}

var claimNextTaskDoc = doc{
	id: "claimNextTask", tag: tagTasks, summary: "Claim the next manual task",
	description: "Claims the most urgent task that a person may claim: by priority, then by due date, then by age. Two callers never get the " +
		"same task. Without any such task, task is null.",
	errors:  []int{409, 413, 415},
	request: map[string]any{"userId": "jane", "groups": []any{"accounting"}},
	answer:  map[string]any{"task": exampleManualTask("RUNNING")},
}

func (h *worklistHandlers) claimTask(ctx context.Context, in *claimTaskInput) (*taskOutput, error) {
	id, match, err := in.target(ctx)
	if err != nil {
		return nil, err
	}

	// With the person's own token the roles and groups are the token's, not the body's.
	who, _, err := h.gate.forUser(ctx, in.OnBehalf, in.Body.person())
	if err != nil {
		return nil, err
	}

	row, err := h.write(ctx, id, match, "", func(actor jobs.Actor) (db.Task, error) { return h.tasks.Worklist.Claim(ctx, id, actor, who) })
	if err != nil {
		return nil, err
	}

	return answer(&row), nil
}

func (h *worklistHandlers) unclaimTask(ctx context.Context, in *unclaimTaskInput) (*taskOutput, error) {
	id, match, err := in.target(ctx)
	if err != nil {
		return nil, err
	}

	// Only the claimant may unclaim, whatever the roles and groups are: the id alone is verified.
	if _, _, err := h.gate.forUser(ctx, in.OnBehalf, jobs.Person{ID: in.Body.UserID}); err != nil {
		return nil, err
	}

	row, err := h.write(ctx, id, match, in.Body.Reason, func(actor jobs.Actor) (db.Task, error) {
		return h.tasks.Worklist.Unclaim(ctx, id, actor, in.Body.UserID)
	})
	if err != nil {
		return nil, err
	}

	return answer(&row), nil
}

func (h *worklistHandlers) completeTask(ctx context.Context, in *completeTaskInput) (*taskOutput, error) {
	id, match, err := in.target(ctx)
	if err != nil {
		return nil, err
	}

	if _, _, err := h.gate.forUser(ctx, in.OnBehalf, jobs.Person{ID: in.Body.UserID}); err != nil {
		return nil, err
	}

	row, err := h.write(ctx, id, match, "", func(actor jobs.Actor) (db.Task, error) {
		return h.tasks.Worklist.Complete(ctx, id, actor, in.Body.UserID, given(in.Body.Output), in.Body.Comment)
	})
	if err != nil {
		return nil, err
	}

	return answer(&row), nil
}

func (h *worklistHandlers) claimNextTask(ctx context.Context, in *claimNextTaskInput) (*claimNextTaskOutput, error) {
	who, _, err := h.gate.forUser(ctx, in.OnBehalf, in.Body.person())
	if err != nil {
		return nil, err
	}

	row, err := h.tasks.Worklist.ClaimNext(ctx, actorOf(ctx, ""), who)
	switch {
	case err != nil:
		return nil, err
	case row == nil:
		// No task is no error: a person's list may be empty.
		return &claimNextTaskOutput{}, nil
	}
	about(ctx, row.TaskID)
	return claimedNext(row), nil
}

func claimedNext(row *db.Task) *claimNextTaskOutput {
	return &claimNextTaskOutput{ETag: etag(row.Version), Body: NextTask{MaybeTask{taskOf(row)}}}
}
