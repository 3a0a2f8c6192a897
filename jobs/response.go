package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// ErrNotYet reports a response that came before the wait for the response was written. Deliver the
// response again a little later.
var ErrNotYet = errors.New("the task does not wait for this response yet")

// ResponseMapper converts the responses of other systems.
type ResponseMapper interface {
	// Output maps the data of a success to an output; an error is a *Failure.
	Output(call IntegrationCall, data json.RawMessage) (json.RawMessage, error)
	// Failure maps a failure to one that may be stored and published.
	Failure(f *Failure) *Failure
}

type defaultResponseMapper struct{}

func (defaultResponseMapper) Output(_ IntegrationCall, data json.RawMessage) (json.RawMessage, error) {
	return OutputOf(data), nil
}
func (defaultResponseMapper) Failure(f *Failure) *Failure { return f }

// Respond ends the attempt that waits for a response. The result is completed, failed, late (the task
// has ended or runs again) or unknown; only completed and failed have changed the task.
func (t *Tasks) Respond(ctx context.Context, in outbox.IntegrationResponse) (string, error) {
	id, err := uuid.Parse(in.TaskID)
	if err != nil {
		return "unknown", nil //nolint:nilerr // no task has such an id, and that is all there is to say
	}

	task, err := t.q.TaskGet(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return "unknown", nil
	}
	if err != nil {
		return "", readError("task "+in.TaskID, err)
	}

	if task.Status != db.TaskStatusRUNNING {
		// Not begun, or released because the answer of the integration was lost: the next attempt asks
		// under the same key, and may learn no more than the end of the work.
		if task.Status == db.TaskStatusPENDING && task.NextRetryAt == nil {
			return "", ErrNotYet
		}
		return "late", nil
	}

	lease, err := t.q.LeaseGet(ctx, id)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "late", nil
	case err != nil:
		return "", readError("lease of task "+in.TaskID, err)
	case lease.Kind == db.LeaseKindProcess:
		return "", ErrNotYet // its 202 is still on the way to us
	case lease.Kind != db.LeaseKindResponse:
		return "late", nil
	case in.InvocationID != "" && lease.InvocationID != nil && *lease.InvocationID != in.InvocationID:
		return "late", nil // the answer to an attempt before this one
	}

	s, err := t.settings(ctx, task.Type, taskDefinition(task.TenantID, task.OwnDefinition, task.DefinitionID, task.Revision), task.Config)
	if err != nil {
		return "", err
	}

	m, err := t.responseTransition(ctx, task, s, in)
	if err != nil {
		return "", err
	}

	m.callerWaits = true // the bus keeps the response, and tells it again
	if out := t.apply(ctx, m); !out.applied {
		if out.err != nil {
			return "", fmt.Errorf("task %s: %w", id, out.err)
		}
		return "late", nil
	}

	if m.to == Completed {
		return "completed", nil
	}

	return "failed", nil
}

// responseTransition returns the transition for a response. An error is the error of ctx.
func (t *Tasks) responseTransition(ctx context.Context, task db.Task, s *settings, in outbox.IntegrationResponse) (*transition, error) {
	h := attemptRef{
		task: task.TaskID, job: task.JobID, attempt: task.Attempt, kind: Type(task.Type), executor: task.Executor,
		failures: task.Failures, crashes: task.Crashes, settings: s, actor: answeredBy(s),
		span: runningSpan(task),
	}

	no := false
	if in.Status != "SUCCESS" {
		f := &Failure{Code: "INTEGRATION_ERROR", Message: "the integration failed and said no more", Retryable: in.Retryable}
		if in.Error != nil {
			f.Message, f.Details = in.Error.Message, in.Error.Details
			if in.Error.Code != "" {
				f.Code = in.Error.Code
			}
		}

		// Without a word of the integration, the code decides; an unknown code is final.
		if f.Retryable == nil && !RetryableCode(f.Code) {
			f.Retryable = &no
		}

		return failTransition(h, t.mapFailure(f), t.cfg.Clock()), nil
	}

	var call IntegrationCall
	if s.config.Integration != nil {
		call = *s.config.Integration
	}

	var output json.RawMessage
	// A panic of the mapper fails the attempt, and not the consumer of the bus.
	err := isolated(func() (err error) {
		output, err = t.cfg.ResponseMapper.Output(call, in.Data)
		return err
	})
	if err != nil {
		return failTransition(h, failureOf(err), t.cfg.Clock()), nil
	}

	if s.def != nil {
		err := badOutput(ctx, s.def.output, "response", output)
		// An invalid output fails the attempt. After the end of ctx the bus delivers the response
		// again.
		if bad := (*Failure)(nil); errors.As(err, &bad) {
			return failTransition(h, bad, t.cfg.Clock()), nil
		}
		if err != nil {
			return nil, err
		}
	}

	return completeTransition(h, output, t.cfg.Clock()), nil
}

// mapFailure calls ResponseMapper.Failure. After a panic, the failure of the panic replaces the failure
// of the response, which may hold a secret.
func (t *Tasks) mapFailure(f *Failure) (told *Failure) {
	err := isolated(func() error {
		told = t.cfg.ResponseMapper.Failure(f)
		return nil
	})
	if err != nil {
		return failureOf(err)
	}
	return told
}

// answeredBy returns the actor of a response: the integration of the task, and never a name from the
// message.
func answeredBy(s *settings) string {
	if s.config.Integration == nil {
		return "bus:" + outbox.SubjectIntegrationResponse
	}
	return "integration:" + s.config.Integration.Instance
}

// RetryableCode reports whether an integration's error code is retryable by default.
func RetryableCode(code string) bool {
	switch code {
	case "CONNECTION_ERROR", "TIMEOUT_ERROR", "RATE_LIMIT_ERROR", "SERVICE_UNAVAILABLE":
		return true
	}
	return false
}

// OutputOf converts the data of an integration to an output, which must be an object.
func OutputOf(data json.RawMessage) json.RawMessage {
	data = bytes.TrimSpace(data)
	if len(data) == 0 || data[0] == '{' {
		return data
	}
	return json.RawMessage(`{"data":` + string(data) + `}`)
}
