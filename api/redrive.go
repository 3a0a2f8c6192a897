package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/tidwall/gjson"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// DeadLetterFilter selects dead letters.
type DeadLetterFilter struct {
	Fingerprint      string    `json:"fingerprint,omitempty" maxLength:"64"`
	TaskDefinitionID string    `json:"taskDefinitionId,omitempty" maxLength:"128"`
	ErrorCode        string    `json:"errorCode,omitempty" maxLength:"128"`
	Queue            string    `json:"queue,omitempty" enum:"task-execution-automated,task-execution-integration,task-execution-manual"`
	Since            time.Time `json:"since,omitzero" doc:"Only dead letters that ended at this time or later. From year 2000 to 8999, in UTC."`
}

// PatchOperation is one operation of RFC 6902, for the document only: the handler takes the patch
// from the body unchanged.
type PatchOperation struct {
	Op    string     `json:"op" enum:"add,remove,replace,move,copy,test"`
	Path  string     `json:"path" maxLength:"1024" doc:"A JSON pointer into the task's input."`
	From  string     `json:"from,omitempty" maxLength:"1024" doc:"The source of move and copy."`
	Value patchValue `json:"value,omitempty" doc:"The value of add, replace and test: any JSON."`
}

type patchValue struct{ json.RawMessage }

// Schema implements huma.SchemaProvider.
func (patchValue) Schema(huma.Registry) *huma.Schema { return &huma.Schema{} }

// RedriveCanary holds back the rest of a redrive until the first tasks have ended.
type RedriveCanary struct {
	Count           int32   `json:"count" minimum:"1" maximum:"1000" doc:"The number of tasks that are redriven first."`
	MaxFailureRatio float64 `json:"maxFailureRatio" minimum:"0" maximum:"1" doc:"The largest share of them that may fail. Above it the operation stops."`
}

// RedriveRequest is the body of POST /api/internal/dead-letters/redrive.
type RedriveRequest struct {
	Filter        *DeadLetterFilter `json:"filter,omitempty" doc:"The dead letters to redrive. Exactly one of filter and taskIds is required. Empty: all. At most 10000 are taken, 1000 with an inputPatch."`
	TaskIDs       []string          `json:"taskIds,omitempty" minItems:"1" maxItems:"1000" pattern:"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$" doc:"The dead letters to redrive. Exactly one of filter and taskIds is required."`
	DryRun        bool              `json:"dryRun,omitempty" doc:"true: return the number of matches and change nothing."`
	InputPatch    []PatchOperation  `json:"inputPatch,omitempty" minItems:"1" maxItems:"100" doc:"A patch of each task's input (RFC 6902). Tasks whose patched input the definition's schema rejects are not redriven."`
	RatePerSecond int32             `json:"ratePerSecond,omitempty" minimum:"1" maximum:"1000" default:"20" doc:"The number of tasks redriven per second."`
	Canary        *RedriveCanary    `json:"canary,omitempty"`
	Reason        string            `json:"reason" minLength:"1" maxLength:"1000" doc:"Kept in the audit trail."`
}

// RejectedTask is a task that is not redriven, with the reason.
type RejectedTask struct {
	TaskID uuid.UUID `json:"taskId" format:"uuid"`
	Code   string    `json:"code" enum:"NOT_FOUND,NOT_DEAD_LETTER,VALIDATION_ERROR"`
}

// RedriveAnswer is the response to a redrive.
type RedriveAnswer struct {
	OperationID *uuid.UUID     `json:"operationId" format:"uuid" nullable:"true" doc:"The id of the operation; null for a dry run."`
	Matched     int            `json:"matched" doc:"The number of tasks that are redriven, or would be."`
	Complete    bool           `json:"complete" doc:"false: more dead letters match, or some were not examined. Send the request again when this operation is done."`
	Rejected    []RejectedTask `json:"rejected"`
}

type (
	redriveInput  struct{ Body RedriveRequest }
	redriveOutput struct{ Body *RedriveAnswer }
)

// OperationPath is the path of a redrive.
type OperationPath struct {
	OperationID string `path:"operationId" maxLength:"256" doc:"The operation's id, a UUID."`
}

func (p OperationPath) id() (uuid.UUID, error) {
	id, err := uuid.Parse(p.OperationID)
	if err != nil || len(p.OperationID) != 36 {
		return uuid.Nil, fmt.Errorf("operation %q: %w", p.OperationID, jobs.ErrNotFound)
	}
	return id, nil
}

// ActReason is the body of stop and undo.
type ActReason struct {
	Reason string `json:"reason,omitempty" maxLength:"1000" doc:"Kept in the audit trail."`
}

type (
	operationInput struct{ OperationPath }
	// actInput has an optional body.
	actInput struct {
		OperationPath
		Body *ActReason `required:"false"`
	}
)

// RedriveAct is the end of an operation: caller, time and reason.
type RedriveAct struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// RedriveOperation is a redrive and its progress.
type RedriveOperation struct {
	OperationID   uuid.UUID         `json:"operationId" format:"uuid"`
	State         string            `json:"state" enum:"CANARY,RUNNING,STOPPED,DONE,UNDONE" doc:"CANARY: the first tasks are redriven and watched. DONE: every task was redriven or rejected."`
	Actor         string            `json:"actor" doc:"The caller that started the operation."`
	Reason        string            `json:"reason"`
	CreatedAt     time.Time         `json:"createdAt"`
	EndedAt       *time.Time        `json:"endedAt"`
	RatePerSecond int32             `json:"ratePerSecond"`
	Canary        *RedriveCanary    `json:"canary,omitempty"`
	Filter        *DeadLetterFilter `json:"filter,omitempty" doc:"The filter of the request; absent for a request with taskIds."`
	InputPatch    []PatchOperation  `json:"inputPatch,omitempty"`
	Stopped       *RedriveAct       `json:"stopped,omitempty" doc:"The caller that stopped the operation, or the process that stopped it because of the canary."`
	Undone        *RedriveAct       `json:"undone,omitempty"`
	Counts        RedriveCounts     `json:"counts"`
	Rejected      []RejectedTask    `json:"rejected" doc:"The tasks that were not dead letters any more when their turn came: the first 1000."`
}

// RedriveCounts counts the tasks of a redrive.
type RedriveCounts struct {
	Matched   int32 `json:"matched"`
	Waiting   int32 `json:"waiting" doc:"Tasks that are not redriven yet."`
	Redriven  int32 `json:"redriven" doc:"Tasks that were redriven. The following three are part of this number."`
	Completed int32 `json:"completed"`
	Failed    int32 `json:"failed" doc:"Redriven tasks that became dead letters again."`
	Cancelled int32 `json:"cancelled"`
	Rejected  int32 `json:"rejected"`
	Undone    int32 `json:"undone" doc:"Redriven tasks that an undo made dead letters again before an attempt began."`
}

type operationOutput struct{ Body *RedriveOperation }

const exampleOperationID = "0198f2a4-9b11-7d22-8c44-1b7d8a0e2b01"

var exampleOperation = map[string]any{
	"operationId": exampleOperationID, "state": "CANARY", "actor": "error-handler", "reason": "fixed in v1.4.2",
	"createdAt": "2026-11-02T10:00:00Z", "endedAt": nil, "ratePerSecond": 20, "canary": map[string]any{"count": 5, "maxFailureRatio": 0.2},
	"filter":   map[string]any{"fingerprint": "5b1d0c6f2a9e4477"},
	"counts":   map[string]any{"matched": 120, "waiting": 115, "redriven": 5, "completed": 3, "failed": 0, "cancelled": 0, "rejected": 0, "undone": 0},
	"rejected": []any{},
}

func exampleEnded(state, act string) map[string]any {
	out := map[string]any{}
	for name, v := range exampleOperation {
		out[name] = v
	}
	out["state"], out["endedAt"] = state, "2026-11-02T10:01:00Z"
	out[act] = map[string]any{"at": "2026-11-02T10:01:00Z", "by": "error-handler", "reason": "not fixed after all"}
	return out
}

var redriveDoc = doc{
	id: "redriveDeadLetters", tag: tagDeadLetters, summary: "Redrive dead letters",
	description: "Puts dead letters back into their queues at a given rate. The tasks keep their ids, attempts and events. With a canary the " +
		"first few go alone, and the operation stops if too many of them fail. A dry run only returns the number of matches, and its " +
		"operationId is null.",
	status: http.StatusAccepted, errors: []int{413, 415},
	request: map[string]any{
		"filter": map[string]any{"fingerprint": "5b1d0c6f2a9e4477"}, "inputPatch": []any{map[string]any{"op": "replace", "path": "/taxRate", "value": 0.08}},
		"ratePerSecond": 20, "canary": map[string]any{"count": 5, "maxFailureRatio": 0.2}, "reason": "fixed in v1.4.2",
	},
	answer: map[string]any{
		"operationId": exampleOperationID, "matched": 120, "complete": true,
		"rejected": []any{map[string]any{"taskId": exampleTask["taskId"], "code": "VALIDATION_ERROR"}},
	},
}

var getRedriveDoc = doc{
	id: "getRedriveOperation", tag: tagDeadLetters, summary: "Get a redrive operation",
	description: "Returns the progress of a redrive, and how its tasks have ended.", errors: []int{404}, answer: exampleOperation,
}

var stopRedriveDoc = doc{
	id: "stopRedriveOperation", tag: tagDeadLetters, summary: "Stop a redrive operation",
	description: "After the response no further task of the operation is redriven; tasks that were redriven continue. An operation that has " +
		"ended does not change.",
	errors: []int{404, 413, 415}, optional: true,
	request: map[string]any{"reason": "not fixed after all"}, answer: exampleEnded("STOPPED", "stopped"),
}

var undoRedriveDoc = doc{
	id: "undoRedriveOperation", tag: tagDeadLetters, summary: "Undo a redrive operation",
	description: "Stops the operation, and turns the redriven tasks whose attempt has not begun into dead letters again, with their old input " +
		"and error. Undoing again changes nothing.",
	errors: []int{404, 413, 415}, optional: true,
	request: map[string]any{"reason": "not fixed after all"}, answer: exampleEnded("UNDONE", "undone"),
}

func (h *deadLetterHandlers) redriveDeadLetters(ctx context.Context, in *redriveInput) (*redriveOutput, error) {
	// An empty filter selects everything, so a forgotten one must not count as empty.
	if (in.Body.Filter == nil) == (in.Body.TaskIDs == nil) {
		return nil, violation("body", "exactly one of filter and taskIds is required")
	}

	r := jobs.Redrive{DryRun: in.Body.DryRun, Rate: in.Body.RatePerSecond}
	if f := in.Body.Filter; f != nil {
		r.Filter = &jobs.DeadLetterFilter{
			Fingerprint: f.Fingerprint, TaskDefinitionID: f.TaskDefinitionID, ErrorCode: f.ErrorCode, Lane: f.Queue, Since: f.Since.UTC(),
		}
	}

	for _, text := range in.Body.TaskIDs {
		id, err := uuid.Parse(text)
		if err != nil {
			return nil, violation("body.taskIds", "must be UUIDs")
		}
		r.TaskIDs = append(r.TaskIDs, id)
	}

	if in.Body.InputPatch != nil {
		// From the raw body: null and absent are different values of a patch.
		r.InputPatch = json.RawMessage(gjson.GetBytes(callOf(ctx).body, "inputPatch").Raw)
	}

	if c := in.Body.Canary; c != nil {
		r.Canary = &jobs.Canary{Count: c.Count, MaxFailureRatio: c.MaxFailureRatio}
	}

	found, err := h.tasks.DeadLetters.Redrive(ctx, actorOf(ctx, in.Body.Reason), r)
	if err != nil {
		return nil, err
	}

	return redriveAnswer(found, in.Body.DryRun), nil
}

func redriveAnswer(found jobs.Matched, dry bool) *redriveOutput {
	out := &RedriveAnswer{Matched: found.Tasks, Complete: found.Complete, Rejected: rejected(found.Rejected)}
	if !dry {
		out.OperationID = &found.OperationID
	}
	return &redriveOutput{out}
}

func rejected(list []jobs.Rejected) []RejectedTask {
	out := make([]RejectedTask, 0, len(list))
	for _, r := range list {
		out = append(out, RejectedTask{r.TaskID, r.Code})
	}
	return out
}

func (h *deadLetterHandlers) getRedrive(ctx context.Context, in *operationInput) (*operationOutput, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}

	var op jobs.Operation
	err = h.read(ctx, func(q *db.Queries) (err error) {
		op, err = jobs.ReadOperation(ctx, q, callerOf(ctx).Tenant, id)
		return err
	})
	if err != nil {
		return nil, readFailed("get operation "+in.OperationID, err)
	}

	return operationAnswer(op, nil)
}

func (h *deadLetterHandlers) stopRedrive(ctx context.Context, in *actInput) (*operationOutput, error) {
	return act(ctx, in, h.tasks.DeadLetters.StopRedrive)
}

func (h *deadLetterHandlers) undoRedrive(ctx context.Context, in *actInput) (*operationOutput, error) {
	return act(ctx, in, h.tasks.DeadLetters.UndoRedrive)
}

// act stops or undoes an operation.
func act(ctx context.Context, in *actInput, do func(context.Context, uuid.UUID, jobs.Actor) (jobs.Operation, error)) (*operationOutput, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}

	var reason string
	if in.Body != nil {
		reason = in.Body.Reason
	}

	op, err := do(ctx, id, actorOf(ctx, reason))
	return operationAnswer(op, err)
}

func operationAnswer(op jobs.Operation, err error) (*operationOutput, error) {
	if err != nil {
		return nil, err
	}

	out := &RedriveOperation{
		OperationID: op.OperationID, State: string(op.State), Actor: op.Actor, Reason: op.Reason, CreatedAt: op.CreatedAt.UTC(),
		RatePerSecond: op.Rate, Rejected: rejected(op.RejectedTasks),
		Counts: RedriveCounts{
			Matched: op.Matched, Waiting: op.Waiting, Redriven: op.Redriven, Completed: op.Completed, Failed: op.Failed,
			Cancelled: op.Cancelled, Rejected: op.Rejected, Undone: op.Undone,
		},
		Stopped: actOf(op.StoppedAt, op.StoppedBy, op.StopReason), Undone: actOf(op.UndoneAt, op.UndoneBy, op.UndoReason),
	}

	if op.EndedAt != nil {
		at := op.EndedAt.UTC()
		out.EndedAt = &at
	}

	if op.CanaryCount > 0 {
		out.Canary = &RedriveCanary{op.CanaryCount, op.CanaryRatio}
	}

	// The operation keeps the request's selection as JSON: a filter or a list of ids.
	var selection struct{ Filter *DeadLetterFilter }
	if err := json.Unmarshal(op.Selection, &selection); err != nil {
		return nil, fmt.Errorf("read operation %s: %w", op.OperationID, err)
	}

	out.Filter = selection.Filter
	if op.InputPatch != nil {
		if err := json.Unmarshal(op.InputPatch, &out.InputPatch); err != nil {
			return nil, fmt.Errorf("read operation %s: %w", op.OperationID, err)
		}
	}

	return &operationOutput{Body: out}, nil
}

func actOf(at *time.Time, by, reason *string) *RedriveAct {
	// The three columns are set together.
	if at == nil || by == nil || reason == nil {
		return nil
	}
	return &RedriveAct{at.UTC(), *by, *reason}
}
