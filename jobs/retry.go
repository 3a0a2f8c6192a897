package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
	"github.com/seed-3f7a0631/tes/outbox"
)

// Codes of failures that the engine itself names.
const (
	CodeTimeout      = "TIMEOUT"
	CodeLeaseExpired = "LEASE_EXPIRED"
	CodePoison       = "POISON"
	CodeExecution    = "EXECUTION_ERROR"
	CodeOutput       = "OUTPUT_INVALID"
	CodeAssignment   = "ASSIGNMENT_ERROR"
)

// poisonAfter is the number of expired leases of a task: the last of them ends the task. A task that
// kills its worker would otherwise kill every worker.
const poisonAfter = 5

// outageDelay is the wait of a task in its queue after a peer service was unreachable.
const outageDelay = 5 * time.Second

// attemptRef is the attempt of a result, with the columns of the task that decide about the next step.
type attemptRef struct {
	task     uuid.UUID
	job      int64
	attempt  int32
	kind     Type
	executor string // the task's, for the kind of its next job
	failures int32
	crashes  int32
	settings *settings
	actor    string       // who ran it: a process, a worker, a person
	crashed  bool         // its lease ran out, which the engine alone can say
	span     *attemptSpan // for its span; nil where the run has it
}

func (h attemptRef) waitingKind() string {
	return waitingKind(h.kind, h.executor, h.settings.config.Handler)
}

// failTransition ends a failed attempt: another attempt follows if the retry policy allows, else
// the task ends and becomes a dead letter.
func failTransition(h attemptRef, f *Failure, at time.Time) *transition {
	m := &transition{
		task: h.task, expect: atAttempt(h.job, h.attempt, Running),
		actor: h.actor, executor: h.actor, at: at, endJob: db.RiverJobStateDiscarded, timeout: h.settings.timeout, span: h.span,
	}
	policy := h.settings.retry
	retry := policy.Retryable(f) && int(h.failures) < policy.MaxRetries
	switch {
	// Expired leases have a count of their own, whatever the retry policy says.
	case h.crashed:
		m.outcome, m.crashes = db.AttemptOutcomeLEASEEXPIRED, 1
		if retry = h.crashes+1 < poisonAfter; !retry {
			f = &Failure{Code: CodePoison, Message: "the lease expired in five attempts: whoever ran the task was gone each time", Retryable: new(bool)}
		}
	case f.Code == CodeTimeout:
		m.outcome, m.failures = db.AttemptOutcomeTIMEDOUT, 1
	default:
		m.outcome, m.failures = db.AttemptOutcomeFAILED, 1
	}

	m.failureCode = redactedText(f.Code, longestCode)
	m.problem = problemJSON(f, policy.Retryable(f))
	if retry {
		count := int(h.failures) + 1
		if m.crashes > 0 {
			count = int(h.crashes) + 1
		}

		delay := policy.Delay(count, rand.Float64())
		if m.crashes > 0 {
			delay = 0 // the worker crashed, not the task
		}

		// The Retry-After of a peer service, up to the longest wait of the policy.
		delay = max(delay, min(f.After, time.Duration(policy.longest())))
		delay = delay.Truncate(time.Millisecond) // as the event says
		m.to, m.event = Pending, db.TaskEventTypeRetry
		m.next = &nextJob{lane: LaneRetry, kind: h.waitingKind(), delay: delay}
		m.payload = outbox.RetryNote{
			RetryCount: int(h.failures) + int(h.crashes) + 1, MaxRetries: policy.MaxRetries, RetryDelay: delay.Milliseconds(),
		}
		return m
	}

	m.to, m.event = Failed, db.TaskEventTypeFailed
	if m.outcome == db.AttemptOutcomeTIMEDOUT {
		m.to = TimedOut
	}

	m.next = &nextJob{lane: LaneDeadLetter, kind: KindDeadLetter}
	return m
}

// releaseTransition ends an attempt that does not count: the next attempt reuses its number, and so its
// idempotency key. A peer service with the request of this attempt, whose answer was lost, recognizes
// the next request.
func releaseTransition(h attemptRef, at time.Time, delay time.Duration) *transition {
	return &transition{
		task: h.task, expect: atAttempt(h.job, h.attempt, Running),
		to: Pending, event: db.TaskEventTypeReleased, actor: h.actor, executor: h.actor, at: at,
		notCounted: true, outcome: db.AttemptOutcomeRELEASED, endJob: db.RiverJobStateCancelled, timeout: h.settings.timeout,
		next: &nextJob{lane: laneOf(h.kind), kind: h.waitingKind(), delay: delay},
	}
}

// The bounds of a stored error.
const (
	longestCode    = 128
	longestMessage = 2000
	longestStack   = 16 << 10
)

// problemJSON encodes a failure as the error of the interface document, redacted: every stored failure
// passes here. TaskMove adds the timestamp.
func problemJSON(f *Failure, retryable bool) json.RawMessage {
	// jsonb would refuse such details: the failure is stored without them.
	if len(f.Details) > longestStack || len(f.Details) > 0 && jsonguard.Check(f.Details) != nil {
		f = &Failure{Code: f.Code, Message: f.Message, StackTrace: f.StackTrace}
	}

	f = f.Redacted()
	p := outbox.Problem{
		Code: f.Code, Message: f.Message, StackTrace: f.StackTrace, Details: f.Details, Retryable: retryable,
	}
	text, err := json.Marshal(p)
	if err != nil {
		return json.RawMessage(`{"code": "` + CodeExecution + `"}`)
	}

	return text
}

// storableText converts text for jsonb: valid UTF-8 without NUL, at most longest characters.
func storableText(s string, longest int) string {
	out := make([]rune, 0, min(len(s), longest))
	for _, r := range s {
		if len(out) == longest {
			break
		}
		if r == 0 {
			r = '\uFFFD'
		}
		out = append(out, r)
	}

	return string(out)
}

// failureOf converts the error of an executor to a *Failure.
func failureOf(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		if f.Code == "" {
			f.Code = CodeExecution
		}
		return f
	}

	if errors.Is(err, context.DeadlineExceeded) {
		// A deadline of the executor itself: onTimeout writes the timeout of the attempt.
		return &Failure{Code: "TIMEOUT_ERROR", Message: err.Error()}
	}

	return &Failure{Code: CodeExecution, Message: err.Error()}
}
