package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
)

// Request asks for a task. Its JSON members are the body of POST /api/internal/tasks, and the data of
// workflow.task_requested. The handler sets the remaining fields.
type Request struct {
	TaskDefinitionID string          `json:"taskDefinitionId" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"The task definition. If no such definition is registered, taskType and executionConfig.executor are required."`
	WorkflowID       string          `json:"workflowId" minLength:"1" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$"`
	StepID           string          `json:"stepId,omitempty" minLength:"1" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$"`
	TaskType         Type            `json:"taskType,omitempty" doc:"Must be the type of the definition, if there is one."`
	Priority         Priority        `json:"priority,omitempty" doc:"Default: MEDIUM."`
	Input            json.RawMessage `json:"input" doc:"Validated against the definition's inputSchema."`
	Config           *RequestConfig  `json:"executionConfig,omitempty" doc:"Overrides of the definition: timeout, retryPolicy, executor, securityContext, visibilityTimeout. Without a definition, the whole configuration."`
	Context          json.RawMessage `json:"workflowContext,omitempty" doc:"The workflow's variables, passed to the executor."`
	CorrelationID    string          `json:"correlationId,omitempty" minLength:"1" maxLength:"128" pattern:"^[!-~]+$" doc:"Default: a new UUID."`
	Key              string          `json:"requestId,omitempty" minLength:"1" maxLength:"255" pattern:"^[ -~]+$" doc:"An idempotency key, like the header Idempotency-Key. If both are given, they must be equal."`
	DueDate          *time.Time      `json:"dueDate,omitempty" doc:"The due date of a manual task. From year 2000 to 8999, in UTC."`
	CallbackURL      string          `json:"callbackUrl,omitempty" minLength:"8" maxLength:"2048" pattern:"^https?://[!-~]+$" doc:"Status updates are posted to this URL, signed and in order: see docs/events.md. http or https, without a user name; private addresses only where they are allowed."`
	Reference        string          `json:"reference,omitempty" minLength:"1" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$" doc:"The client's own name for the task."`

	// Body is the request as it was sent. Two requests with one Key must have the same Body.
	Body []byte `json:"-"`
	// Tenant is the tenant that the task will belong to; empty for the platform.
	Tenant string `json:"-"`
	// Actor is the caller's name, for the event.
	Actor string `json:"-"`
	// Traceparent is the caller's span; empty without one.
	Traceparent string `json:"-"`
}

// Create creates a task and returns after the commit. A repeated key with the same body returns the
// first task (created is false), even if the request would be rejected by now. A repeated key with a
// different body is ErrKeyReused.
func (t *Tasks) Create(ctx context.Context, req Request) (task db.Task, created bool, err error) {
	out := t.CreateMany(ctx, []Request{req})[0]
	return out.Task, out.Fresh, out.Err
}

// Created is the result of one request.
type Created struct {
	Task  db.Task
	Fresh bool // false: an earlier request with the same key created the task
	Err   error
}

// CreateMany is Create for many requests, which share commits. Each request has its own result, in
// the order of reqs. Two requests with the same key are treated like two consecutive calls.
func (t *Tasks) CreateMany(ctx context.Context, reqs []Request) []Created {
	out := make([]Created, len(reqs))
	creations := make([]*creation, len(reqs)) // nil: the request is rejected
	for i, req := range reqs {
		creations[i], out[i].Err = t.prepare(ctx, req)
	}

	t.creates.Add(slices.DeleteFunc(slices.Clone(creations), func(c *creation) bool { return c == nil })...)

	// A rejected request with a key may repeat a request from before the definition or the settings
	// changed. The lookup runs while the flusher writes the others.
	var repeats []repeat
	for i, req := range reqs {
		if creations[i] != nil || req.Key == "" || errors.Is(out[i].Err, ErrUnavailable) {
			continue
		}
		if hash, err := req.hash(); err == nil { // otherwise the body itself is broken
			repeats = append(repeats, repeat{tenantKey{req.Tenant, req.Key}, hash, &out[i]})
		}
	}
	t.findTasks(ctx, repeats)

	repeats = nil
	for i, c := range creations {
		if c == nil {
			continue
		}

		out[i].Err = c.wait(ctx)
		switch {
		case out[i].Err != nil:
		case c.created:
			out[i].Task, out[i].Fresh = c.task, true
		default:
			out[i].Err = errKeyUnknown
			repeats = append(repeats, repeat{tenantKey{c.task.TenantID, stringOf(c.task.RequestID)}, c.hash, &out[i]})
		}
	}
	t.findTasks(ctx, repeats)

	return out
}

// prepare validates a request, fills in defaults, and gives the task an id.
func (t *Tasks) prepare(ctx context.Context, req Request) (*creation, error) {
	def, err := t.defs.get(ctx, req.Tenant, req.TaskDefinitionID)
	if err != nil {
		return nil, err
	}

	if err := defaults(&req, def); err != nil {
		return nil, err
	}

	if err := t.checkCallback(req.CallbackURL); err != nil {
		return nil, err
	}

	// The request's overrides win over the definition's settings.
	settings := combine(req.TaskType, def, req.Config)
	config := &settings.config
	if config.Executor, err = executorFor(req.TaskType, config.Executor); err != nil {
		return nil, err
	}

	if err := t.checkSettings(ctx, req, def, *config); err != nil {
		return nil, err
	}

	// Hashed as sent, so that a repetition matches after defaults or definition have changed.
	hash, err := req.hash()
	if err != nil {
		return nil, err
	}

	row, err := newTask(req, def, config.Executor)
	if err != nil {
		return nil, err
	}

	return &creation{
		task: row, kind: waitingKind(req.TaskType, config.Executor, config.Handler), timeout: settings.timeout, actor: req.Actor,
		hash: hash, answer: make(chan error, 1), callerGone: ctx.Done(),
	}, nil
}

// checkSettings checks the input and the task's settings. A definition's settings were checked at its
// registration, so CheckDefinition is called only without a definition.
func (t *Tasks) checkSettings(ctx context.Context, req Request, def *definition, config ExecutionConfig) error {
	if err := checkConfig(config); err != nil {
		return err
	}

	if def == nil {
		if err := checkRequestHeaders(config.HTTP); err != nil {
			return err
		}
		if t.cfg.CheckDefinition != nil {
			if err := t.cfg.CheckDefinition(config); err != nil {
				return invalid("/executionConfig", "%v", err)
			}
		}
	} else if err := checkDocument(ctx, def.input, "input", req.Input); err != nil {
		return err
	}

	if req.Config != nil && req.Config.Timeout != 0 {
		return checkTimeout("/executionConfig/timeout", req.Config.Timeout)
	}

	return nil
}

// newTask returns the row of a new task, still without the job's id and the time of its creation.
func newTask(req Request, def *definition, executor string) (db.Task, error) {
	task := db.Task{
		Version: 1, Status: db.TaskStatusPENDING, DueAt: req.DueDate, Type: db.TaskType(req.TaskType), Lane: db.TaskLane(laneOf(req.TaskType)),
		Priority: req.Priority.Rank(), TenantID: req.Tenant, WorkflowID: req.WorkflowID, DefinitionID: req.TaskDefinitionID,
		Executor: executor, CorrelationID: req.CorrelationID, StepID: orNil(req.StepID), RequestID: orNil(req.Key),
		Reference: orNil(req.Reference), CallbackUrl: orNil(req.CallbackURL), Traceparent: orNil(req.Traceparent),
		Input: req.Input, Context: req.Context,
	}
	// The task keeps this revision: later revisions change no existing task.
	if def != nil {
		task.Revision, task.OwnDefinition = def.Revision, def.TenantID != ""
	}

	// Only the request's overrides are stored. The definition's settings are looked up by its revision.
	var err error
	if req.Config != nil {
		if task.Config, err = storedConfig(req.Config, req.Config.HTTP); err != nil {
			return task, fmt.Errorf("write executionConfig: %w", err)
		}
	}

	// UUIDv7 begins with the time: OpenTasks selects recent tasks by id.
	if task.TaskID, err = uuid.NewV7(); err != nil {
		return task, fmt.Errorf("make a task id: %w", err)
	}

	return task, nil
}

// defaults checks the request against its definition, and fills in missing members.
func defaults(req *Request, def *definition) error {
	switch {
	case def == nil && (req.TaskType == "" || req.Config == nil || req.Config.Executor == ""):
		return invalid("/taskDefinitionId", "no task definition %q: register it (PUT /api/internal/task-definitions/{id}), or give taskType and executionConfig.executor", req.TaskDefinitionID)
	case def != nil && req.TaskType != "" && req.TaskType != def.Type:
		return invalid("/taskType", "the definition %s is %s, not %s", def.ID, def.Type, req.TaskType)
	case def != nil && req.Config != nil && overridesTooMuch(req.Config.ExecutionConfig):
		return invalid("/executionConfig", "a request may override timeout, retryPolicy, executor, securityContext and visibilityTimeout; the rest belongs to the definition")
	case def != nil:
		req.TaskType = def.Type
	}

	if req.Priority == "" {
		req.Priority = Medium
	}
	if req.CorrelationID == "" {
		req.CorrelationID = uuid.NewString()
	}
	if len(req.Input) == 0 {
		req.Input = json.RawMessage("{}")
	}

	var err error
	req.DueDate, err = timeAt("/dueDate", req.DueDate)
	return err
}

func overridesTooMuch(c ExecutionConfig) bool {
	return c.Expression != nil || c.HTTP != nil || c.Handler != "" || c.Integration != nil || c.AssignmentRules != nil ||
		c.Notifications != nil || c.Escalation != nil || c.SLA != nil || c.ResourceRequirements != nil
}

// prefixPaths moves violations under a member of the body.
func prefixPaths(member string, list []Violation) []Violation {
	out := make([]Violation, len(list))
	for i, v := range list {
		out[i] = Violation{Path: member + v.Path, Message: v.Message}
	}
	return out
}

func orNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
