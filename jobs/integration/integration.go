// Package integration does a task by asking the Integration Service for it.
package integration

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Call is one request to the Integration Service. IdempotencyKey is the same for
// every try of one attempt.
type Call struct {
	Method         string
	Parameters     json.RawMessage
	Connection     string
	CredentialRef  string // a reference; the secret itself never passes here
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
}

// New makes the executor "integration".
func New(service Service) jobs.Executor { return executor{service} }

type executor struct{ service Service }

func (e executor) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	call := job.Config.Integration
	if call == nil {
		no := false
		return jobs.Result{}, &jobs.Failure{Code: "VALIDATION_ERROR", Message: "the definition names no integration", Retryable: &no}
	}
	answer, err := e.service.Invoke(ctx, call.Instance, Call{
		Method:         call.Method,
		Parameters:     job.Input,
		Connection:     call.Connection,
		CredentialRef:  call.CredentialRef,
		IdempotencyKey: fmt.Sprintf("%s:%d", job.TaskID, job.Attempt),
		CorrelationID:  job.CorrelationID,
	})
	if err != nil {
		return jobs.Result{}, fmt.Errorf("invoke %s: %w", call.Instance, err)
	}
	if answer.InvocationID != "" {
		return jobs.Result{Await: &jobs.Await{InvocationID: answer.InvocationID}}, nil
	}
	return jobs.Result{Output: jobs.OutputOf(answer.Data)}, nil
}
