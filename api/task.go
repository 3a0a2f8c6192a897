package api

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// taskHandlers serve /api/internal/tasks, but for the operations of people: see worklistHandlers.
type taskHandlers struct {
	*core
	gate     *gate  // a batch costs as many requests as it has items
	reader   reader // validates the items of a batch
	breakers func() []retry.Status
}

// Task is a task as the API returns it. The first members are always present, null if unknown; the
// others are omitted when empty. The request's executionConfig is not returned, because its
// securityContext is confidential.
type Task struct {
	TaskID           uuid.UUID       `json:"taskId" format:"uuid"`
	WorkflowID       string          `json:"workflowId"`
	StepID           *string         `json:"stepId"`
	TaskDefinitionID string          `json:"taskDefinitionId"`
	TaskType         jobs.Type       `json:"taskType"`
	Status           jobs.Status     `json:"status"`
	Priority         jobs.Priority   `json:"priority"`
	Input            json.RawMessage `json:"input" nullable:"true" doc:"The task's input. Null only if a list left it out: see truncated."`
	Output           json.RawMessage `json:"output" nullable:"true" doc:"The task's result. Null unless status is COMPLETED."`
	Error            json.RawMessage `json:"error" nullable:"true" doc:"The error of the last failed attempt: code, message, details, stackTrace, timestamp, retryable."`
	Assignee         *string         `json:"assignee" doc:"The person to whom the task is assigned."`
	CorrelationID    string          `json:"correlationId"`
	RetryCount       int32           `json:"retryCount" doc:"The number of failed attempts that a retry follows or followed."`
	NextRetryTime    *time.Time      `json:"nextRetryTime" doc:"The time of the next attempt; null if none is scheduled."`
	Attempt          int32           `json:"attempt" doc:"The number of the last attempt; 0 before the first attempt."`
	Version          int32           `json:"version" doc:"The version, which grows with every transition. The ETag contains it."`
	CreatedAt        time.Time       `json:"createdAt"`
	StartedAt        *time.Time      `json:"startedAt" doc:"The start of the last attempt."`
	EndedAt          *time.Time      `json:"endedAt"`
	ExecutionTime    *int64          `json:"executionTime" doc:"The duration of the last attempt in milliseconds; null until the task has ended."`

	Lane               db.TaskLane     `json:"lane" doc:"The queue in which the task waits, or from which it was taken."`
	Executor           string          `json:"executor"`
	DefinitionRevision int32           `json:"definitionRevision,omitempty" doc:"The revision of the task's definition; absent for a task without one."`
	AssigneeName       *string         `json:"assigneeName,omitempty"`
	GroupID            *string         `json:"groupId,omitempty"`
	Candidates         json.RawMessage `json:"candidates,omitempty" doc:"The users, roles and groups that can claim the task."`
	AssignedAt         *time.Time      `json:"assignedAt,omitempty"`
	DueDate            *time.Time      `json:"dueDate,omitempty"`
	Reference          *string         `json:"reference,omitempty"`
	CallbackURL        *string         `json:"callbackUrl,omitempty"`
	RequestID          *string         `json:"requestId,omitempty" doc:"The idempotency key of the request that created the task."`
	WorkflowContext    json.RawMessage `json:"workflowContext,omitempty" nullable:"true"`
	Truncated          []string        `json:"truncated,omitempty" enum:"input,output,workflowContext" doc:"The members that a list left out because they are longer than 4 KiB; they are null. Reading the single task returns them, and so does include=payloads."`
	Progress           json.RawMessage `json:"progress,omitempty" doc:"The progress that the last heartbeat of the running attempt reported. Only returned for a single task. A heartbeat does not change the version."`
}

// priorities maps the ranks of the table to names.
var priorities = [...]jobs.Priority{1: jobs.Critical, 2: jobs.High, 3: jobs.Medium, 4: jobs.Low}

// taskOf converts a row of the table task, with all payloads.
func taskOf(row *db.Task) *Task {
	t := &Task{
		TaskID: row.TaskID, WorkflowID: row.WorkflowID, StepID: row.StepID, TaskDefinitionID: row.DefinitionID,
		TaskType: jobs.Type(row.Type), Status: jobs.Status(row.Status), Priority: priorities[row.Priority],
		Input: row.Input, Output: row.Output, Error: row.Error, Assignee: row.AssigneeID, CorrelationID: row.CorrelationID,
		RetryCount: retries(row), NextRetryTime: utc(row.NextRetryAt), Attempt: row.Attempt, Version: row.Version,
		CreatedAt: row.CreatedAt.UTC(), StartedAt: utc(row.StartedAt), EndedAt: utc(row.EndedAt),
		Lane: row.Lane, Executor: row.Executor, DefinitionRevision: row.Revision, AssigneeName: row.AssigneeName, GroupID: row.GroupID,
		Candidates: row.Candidates, AssignedAt: utc(row.AssignedAt), DueDate: utc(row.DueAt), Reference: row.Reference,
		CallbackURL: row.CallbackUrl, RequestID: row.RequestID, WorkflowContext: row.Context,
	}

	// A task that ended without an attempt, such as a cancelled one, has no duration.
	if row.StartedAt != nil && row.EndedAt != nil {
		ms := row.EndedAt.Sub(*row.StartedAt).Milliseconds()
		t.ExecutionTime = &ms
	}

	return t
}

// retries counts the failed attempts that another attempt followed. No attempt follows the one that
// ended the task for good.
func retries(row *db.Task) int32 {
	// A crash is an attempt whose lease expired; it is retried like a failure.
	spent := row.Failures + row.Crashes
	if spent > 0 && (row.Status == db.TaskStatusFAILED || row.Status == db.TaskStatusTIMEDOUT) {
		spent--
	}
	return spent
}

// utc returns a time in UTC: pgx returns times in the zone of the process.
func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

// etag returns a version as a strong entity tag.
func etag(version int32) string { return `"` + strconv.Itoa(int(version)) + `"` }

// TaskPath is the path of a task. It is exported because huma ignores embedded unexported structs.
type TaskPath struct {
	TaskID string `path:"taskId" maxLength:"256" doc:"The task's id, a UUID."`
}

func (p TaskPath) id() (uuid.UUID, error) {
	id, err := uuid.Parse(p.TaskID)
	if err != nil || len(p.TaskID) != 36 {
		// For the caller an id is any string, so a malformed id means an unknown task.
		return uuid.Nil, fmt.Errorf("task %q: %w", p.TaskID, jobs.ErrNotFound)
	}
	return id, nil
}

// TaskWrite is the task of a write, and the version that the caller has seen.
type TaskWrite struct {
	TaskPath
	IfMatch string `header:"If-Match" maxLength:"1024" doc:"The last ETag that the caller has seen, a list of ETags, or *. A different current version is a 412."`
}

func (w TaskWrite) target(ctx context.Context) (uuid.UUID, ifMatch, error) {
	id, err := w.id()
	if err != nil {
		return id, ifMatch{}, err
	}
	// Before the header is parsed, so that the log names the task of a malformed request too.
	about(ctx, id)
	match, err := parseIfMatch(w.IfMatch)
	return id, match, err
}

// taskOutput is the response of every operation on one task.
type taskOutput struct {
	ETag string `header:"ETag" doc:"The task's version, for If-Match."`
	Body *Task
}

// answer is the response with a task.
func answer(row *db.Task) *taskOutput { return &taskOutput{ETag: etag(row.Version), Body: taskOf(row)} }
