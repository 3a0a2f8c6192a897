package api

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/jobs"
)

// leasesPath is the path of dequeues, which may be parked.
const leasesPath = "/api/internal/leases"

// longestWait bounds a parked dequeue.
const longestWait = time.Minute

// leaseHandlers serve the worker protocol: dequeues, the calls about a held lease, and the list of
// workers.
type leaseHandlers struct {
	*core
	gate *gate // a bulk heartbeat costs as many requests as it has leases
}

// Dequeue is the body of POST /api/internal/leases.
type Dequeue struct {
	WorkerID  string             `json:"workerId" minLength:"1" maxLength:"128" pattern:"^[!-~]+$" doc:"The worker's name in attempts and events (executorId)."`
	RequestID string             `json:"requestId,omitempty" minLength:"1" maxLength:"128" pattern:"^[!-~]+$" doc:"An idempotency key: a repeated request with the same workerId and requestId gets the same leases, so that a lost response loses no task. Use a new one for each dequeue."`
	WaitMs    int64              `json:"waitMs,omitempty" minimum:"0" maximum:"60000" doc:"How long to wait for work if there is none, in milliseconds: a long poll that ends early when work arrives."`
	MaxTasks  int                `json:"maxTasks,omitempty" minimum:"1" maximum:"100" default:"1" doc:"The largest number of leases in the response, over all selections."`
	Select    []DequeueSelection `json:"select,omitempty" minItems:"1" maxItems:"16" doc:"The queues to take from: dead letters first, then retries, then the standard queues, each in the order of this list. Default: both standard queues, every definition; for a token with tasks:deadletter alone, the dead-letter queue."`
}

// DequeueSelection selects tasks of one queue.
type DequeueSelection struct {
	Queue             string   `json:"queue" enum:"task-execution-automated,task-execution-integration,task-execution-retry,task-execution-deadletter" doc:"A standard queue includes the retries of its tasks, which go first. The retry queue alone has the retries of both standard queues. The dead-letter queue requires the scope tasks:deadletter and goes before all others."`
	TaskDefinitionIDs []string `json:"taskDefinitionIds,omitempty" maxItems:"100" doc:"The definitions that the worker can run. Default: all."`
	MaxTasks          int      `json:"maxTasks,omitempty" minimum:"1" maximum:"100" doc:"The largest number of leases of this selection. Default: the request's maxTasks."`
	VisibilityTimeout int64    `json:"visibilityTimeout,omitempty" minimum:"1000" maximum:"43200000" doc:"How long a lease lasts without a heartbeat, in milliseconds. Default: the task's own visibility timeout, else 30000."`
}

// LeaseList is the response to a dequeue. It is empty if no task was available.
type LeaseList struct {
	ServerTime time.Time `json:"serverTime"`
	Leases     []Lease   `json:"leases"`
}

// Lease is one attempt that a worker holds.
type Lease struct {
	LeaseToken     string           `json:"leaseToken" doc:"The credential of this attempt, part of the path of every call about the attempt. Keep it secret."`
	Attempt        int              `json:"attempt"`
	LeaseExpiresAt time.Time        `json:"leaseExpiresAt" doc:"The end of the lease. After it, another worker gets the task, unless a heartbeat arrived before."`
	Message        TaskQueueMessage `json:"message"`
	Checkpoint     json.RawMessage  `json:"checkpoint,omitempty" doc:"The checkpoint that the last attempt saved; absent without any."`
	Status         jobs.Status      `json:"status" doc:"RUNNING; for a dead letter, the task's final status."`
	Error          json.RawMessage  `json:"error,omitempty" doc:"For a dead letter: the task's error."`
	Traceparent    string           `json:"traceparent,omitempty" doc:"The span of the attempt, the parent of the worker's spans. If the attempt is not sampled, or without tracing, the span of the request that created the task."`
}

// TaskQueueMessage is the interface document's, with the definition's id added, by which a worker
// chooses its code.
type TaskQueueMessage struct {
	TaskID            uuid.UUID          `json:"taskId" format:"uuid"`
	WorkflowID        string             `json:"workflowId"`
	StepID            string             `json:"stepId,omitempty"`
	TaskDefinitionID  string             `json:"taskDefinitionId"`
	TaskType          jobs.Type          `json:"taskType"`
	Priority          jobs.Priority      `json:"priority"`
	ExecutionConfig   QueueMessageConfig `json:"executionConfig"`
	Input             json.RawMessage    `json:"input"`
	WorkflowContext   json.RawMessage    `json:"workflowContext,omitempty"`
	CorrelationID     string             `json:"correlationId"`
	EnqueueTime       time.Time          `json:"enqueueTime"`
	VisibilityTimeout int64              `json:"visibilityTimeout" doc:"Milliseconds."`
	DequeueCount      int                `json:"dequeueCount" doc:"The number of the attempt."`
}

// QueueMessageConfig is the part of executionConfig that a worker gets.
type QueueMessageConfig struct {
	Timeout         int64                `json:"timeout" doc:"The timeout of the attempt, in milliseconds."`
	RetryPolicy     jobs.RetryPolicy     `json:"retryPolicy"`
	SecurityContext jobs.SecurityContext `json:"securityContext"`
}

type dequeueInput struct {
	Key  string `header:"Idempotency-Key" minLength:"1" maxLength:"128" pattern:"^[!-~]+$" doc:"The same as requestId. If both are given, they must be equal."`
	Body Dequeue
}

type dequeueOutput struct{ Body *LeaseList }

// exampleToken has the length of a lease token and is never valid.
var exampleToken = strings.Repeat("A", jobs.LeaseTokenLength)

var exampleLease = map[string]any{
	"leaseToken": exampleToken, "attempt": 1, "leaseExpiresAt": "2026-01-15T10:30:30Z", "status": "RUNNING",
	"message": map[string]any{
		"taskId": "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", "workflowId": "order-workflow-123", "taskDefinitionId": "render-report",
		"taskType": "AUTOMATED", "priority": "MEDIUM",
		"executionConfig": map[string]any{"timeout": 300000, "retryPolicy": map[string]any{"maxRetries": 3, "retryInterval": 5000, "backoffMultiplier": 2.0}, "securityContext": map[string]any{}},
		"input":           map[string]any{"month": "2026-01"}, "correlationId": "7d5c1b52-8d1e-4f0a-9a57-3c1c0f0a9e11",
		"enqueueTime": "2026-01-15T10:30:00Z", "visibilityTimeout": 30000, "dequeueCount": 1,
	},
}

var dequeueTasksDoc = doc{
	id: "dequeueTasks", tag: tagLeases, summary: "Lease tasks",
	description: "Hands out tasks whose executor is worker: retries first, then by priority, then by age. Each comes with a lease: a token and " +
		"an end, until which no other worker gets the task. If a worker closes the connection before the response, its leases are " +
		"released, unless it gave a requestId, with which it can ask again. The task of a dead letter has ended and keeps its status: " +
		"complete discards the dead letter (output.reason is the reason), fail and release put it back.",
	errors:  []int{403, 413, 415},
	ownKey:  true,
	request: map[string]any{"workerId": "w-7", "requestId": "5f3c1b52-8d1e-4f0a-9a57-3c1c0f0a9e11", "waitMs": 20000, "maxTasks": 10, "select": []any{map[string]any{"queue": jobs.LaneAutomated, "taskDefinitionIds": []any{"render-report"}, "maxTasks": 8, "visibilityTimeout": 30000}}},
	answer:  map[string]any{"serverTime": "2026-01-15T10:30:00Z", "leases": []any{exampleLease}},
}

func (h *leaseHandlers) dequeueTasks(ctx context.Context, in *dequeueInput) (*dequeueOutput, error) {
	switch {
	case in.Body.RequestID == "":
		in.Body.RequestID = in.Key
	case in.Key != "" && in.Key != in.Body.RequestID:
		return nil, violation("body.requestId", "differs from the header Idempotency-Key: send one of them, or the same value twice")
	}
	req := jobs.LeaseRequest{
		Tenant: callerOf(ctx).Tenant, Worker: in.Body.WorkerID, ID: in.Body.RequestID, Wait: milliseconds(in.Body.WaitMs), Most: in.Body.MaxTasks,
	}

	for _, s := range in.Body.Select {
		req.Select = append(req.Select, jobs.Selection{
			Lane: s.Queue, Definitions: s.TaskDefinitionIDs, Most: s.MaxTasks, Visibility: milliseconds(s.VisibilityTimeout),
		})
	}

	caller := callerOf(ctx)
	switch {
	// A token with both scopes is a worker's, which does not expect dead letters by default.
	case req.Select == nil && caller.Holds("tasks:work"):
		req.Select = []jobs.Selection{{Lane: jobs.LaneAutomated}, {Lane: jobs.LaneIntegration}}
	case req.Select == nil:
		req.Select = []jobs.Selection{{Lane: jobs.LaneDeadLetter}}
	}
	// Before the first lease: a request with a forbidden selection is refused as a whole.
	for _, s := range req.Select {
		if err := mayWork(ctx, s.Lane == jobs.LaneDeadLetter, "leasing from "+s.Lane); err != nil {
			return nil, err
		}
	}

	found, err := h.tasks.Leases.Acquire(ctx, req)
	if err != nil {
		return nil, err
	}

	// A worker with a wrong clock computes the end of a lease from ServerTime.
	out := &LeaseList{ServerTime: h.tasks.Now(ctx), Leases: make([]Lease, len(found))}
	for i := range found {
		out.Leases[i] = leaseOf(&found[i])
	}

	return &dequeueOutput{out}, nil
}

// mayWork restricts dead letters to the error handler, and the error handler to dead letters.
func mayWork(ctx context.Context, deadLetters bool, what string) error {
	// Two scopes share the paths, so the access check of the route cannot decide.
	who := anyone("tasks:work")
	if deadLetters {
		who = deadLetterAccess
	}

	if who.allows(callerOf(ctx)) {
		return nil
	}

	callOf(ctx).refused = "not allowed"
	return who.forbidden(callerOf(ctx), what)
}

// mayHold is mayWork for an existing lease.
func (h *leaseHandlers) mayHold(ctx context.Context, token string) error {
	deadLetter, err := h.tasks.Leases.IsDeadLetter(ctx, token)
	if err != nil {
		return err
	}

	what := "holding the lease of a task"
	if deadLetter {
		what = "holding the lease of a dead letter"
	}

	return mayWork(ctx, deadLetter, what)
}

func leaseOf(l *jobs.Lease) Lease {
	// The interface document's message has the member always, empty without a context.
	var security jobs.SecurityContext
	if l.Security != nil {
		security = *l.Security
	}

	return Lease{
		LeaseToken: l.Token, Attempt: l.Attempt, LeaseExpiresAt: l.ExpiresAt, Checkpoint: l.Checkpoint, Traceparent: l.Traceparent,
		Status: l.Status, Error: l.Error,
		Message: TaskQueueMessage{
			TaskID: l.TaskID, WorkflowID: l.WorkflowID, StepID: l.StepID, TaskDefinitionID: l.DefinitionID, TaskType: l.Type,
			Priority: l.Priority, Input: l.Input, WorkflowContext: l.Context, CorrelationID: l.CorrelationID, EnqueueTime: l.EnqueuedAt,
			VisibilityTimeout: l.Visibility.Milliseconds(), DequeueCount: l.Attempt,
			ExecutionConfig: QueueMessageConfig{Timeout: l.Timeout.Milliseconds(), RetryPolicy: l.Retry, SecurityContext: security},
		},
	}
}

func milliseconds(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
