// Package integration does a task by asking the Integration Service for it. Each type
// of integration is a file: what becomes of the task's input on the way there, and of
// the answer on the way back.
package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/redact"
)

// Call is one request to the Integration Service. IdempotencyKey is the same for
// every try of one attempt.
type Call struct {
	Method         string
	Parameters     json.RawMessage
	Connection     string
	CredentialRef  string // a reference; the secret itself never passes here
	Async          bool   // an acceptance is wanted, and the answer by event
	IdempotencyKey string
	CorrelationID  string
}

// Answer is what came back: Data at once, or an InvocationID under which the
// answer will come by event.
type Answer struct {
	Data         json.RawMessage
	InvocationID string
}

// Service is the Integration Service. An error is a *jobs.Failure when it
// answered, a *jobs.Outage when it did not.
type Service interface {
	Invoke(ctx context.Context, integration string, call Call) (Answer, error)
	// Connection says how a connection stands; an empty name is the integration's own.
	Connection(ctx context.Context, integration, connection string) (status string, err error)
}

// New makes the executor "integration".
func New(service Service) jobs.Executor { return &executor{service: service} }

type executor struct {
	service     Service
	connections connections
}

func (e *executor) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	call := job.Config.Integration
	if call == nil {
		return jobs.Result{}, refuse("the definition names no integration")
	}
	m, err := mappingOf(*call)
	if err != nil {
		return jobs.Result{}, err
	}
	parameters, err := m.request(*call, job.Input)
	if err != nil {
		return jobs.Result{}, err
	}
	if err := e.connections.check(ctx, e.service, call.Instance, call.Connection); err != nil {
		return jobs.Result{}, fmt.Errorf("connection of %s: %w", call.Instance, err)
	}
	answer, err := e.service.Invoke(ctx, call.Instance, Call{
		Method:         call.Method,
		Parameters:     parameters,
		Connection:     call.Connection,
		CredentialRef:  call.CredentialRef,
		Async:          call.Async,
		IdempotencyKey: fmt.Sprintf("%s:%d", job.TaskID, job.Attempt),
		CorrelationID:  job.CorrelationID,
	})
	var refused *jobs.Failure
	switch {
	case errors.As(err, &refused):
		return jobs.Result{}, Answers{}.Failure(refused)
	case err != nil:
		return jobs.Result{}, fmt.Errorf("invoke %s: %w", call.Instance, err)
	case answer.InvocationID != "":
		return jobs.Result{Await: &jobs.Await{InvocationID: answer.InvocationID}}, nil
	}
	output, err := Answers{}.Output(*call, answer.Data)
	return jobs.Result{Output: output}, err
}

// Answers reads what the Integration Service answers, at once or by event, in the same
// way: by the type of the integration, and without the credentials that may be in it.
type Answers struct{}

// Output is a success's data as the task's output; an error is a *jobs.Failure.
func (Answers) Output(call jobs.IntegrationCall, data json.RawMessage) (json.RawMessage, error) {
	m, err := mappingOf(call)
	if err != nil {
		return nil, err
	}
	output, err := m.answer(call, data)
	var refused *jobs.Failure
	if errors.As(err, &refused) {
		return nil, Answers{}.Failure(refused)
	}
	return redact.JSON(output), err
}

// Failure is a failure as it may be kept and told.
func (Answers) Failure(f *jobs.Failure) *jobs.Failure { return f.Redacted() }
