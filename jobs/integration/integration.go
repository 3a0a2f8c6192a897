// Package integration executes tasks by calling the Integration Service. Each type of
// integration has a file with two mappings: from the input of the task to the request, and
// from the answer to the output.
package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/redact"
)

// Call is a request to the Integration Service. All tries of one attempt have the same
// IdempotencyKey.
type Call struct {
	Method         string
	Parameters     json.RawMessage
	Connection     string
	CredentialRef  string // a reference; the secret itself is never part of a call
	Async          bool   // the result is expected by event, after an acknowledgement
	IdempotencyKey string
	CorrelationID  string
}

// Answer is the response: Data, or the InvocationID of the event that will bring the data.
type Answer struct {
	Data         json.RawMessage
	InvocationID string
}

// Service is the client of the Integration Service. An error is a *jobs.Failure if the
// service answered, and a *jobs.Outage if not.
type Service interface {
	Invoke(ctx context.Context, integration string, call Call) (Answer, error)
	// Connection returns the status of a connection; "" is the integration's default one.
	Connection(ctx context.Context, integration, connection string) (status string, err error)
}

// New returns the executor "integration".
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

	// A disconnected connection must not use up the attempts of its tasks.
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
	// The service answered. Failures may quote credentials.
	case errors.As(err, &refused):
		return jobs.Result{}, ResponseMapper{}.Failure(refused)
	case err != nil:
		return jobs.Result{}, fmt.Errorf("invoke %s: %w", call.Instance, err)
	// The answer will come by event; until then no worker is occupied.
	case answer.InvocationID != "":
		return jobs.Result{Await: &jobs.Await{InvocationID: answer.InvocationID}}, nil
	}

	output, err := ResponseMapper{}.Output(*call, answer.Data)
	return jobs.Result{Output: output}, err
}

// ResponseMapper converts the answers of the Integration Service, immediate ones and events, in the
// same way: by the type of the integration, and with credentials removed.
type ResponseMapper struct{}

// Output converts the data of a success into the output of the task. An error is a
// *jobs.Failure.
func (ResponseMapper) Output(call jobs.IntegrationCall, data json.RawMessage) (json.RawMessage, error) {
	m, err := mappingOf(call)
	if err != nil {
		return nil, err
	}

	output, err := m.answer(call, data)
	var refused *jobs.Failure
	if errors.As(err, &refused) {
		return nil, ResponseMapper{}.Failure(refused)
	}

	return redact.JSON(output), err
}

// Failure returns the failure without credentials.
func (ResponseMapper) Failure(f *jobs.Failure) *jobs.Failure { return f.Redacted() }
