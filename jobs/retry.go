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

// poisonAfter is how many expired leases a task may have: the next ends it, or a
// task that kills its worker would kill them all.
const poisonAfter = 5

// outageDelay is how long a task waits in its lane when a neighbour is away.
const outageDelay = 5 * time.Second

// attemptRef names the attempt that a result belongs to.
type attemptRef struct {
	task     uuid.UUID
	job      int64
	attempt  int32
	kind     Type
	executor string // the task's, for the kind of its next job
	failures int32
	crashes  int32
	settings *settings
	by       string       // who ran it: a process, a worker, a person
	crashed  bool         // its lease ran out, which the engine alone can say
	span     *attemptSpan // for its span; nil where the run has it
}

func (h attemptRef) waitingKind() string {
	return waitingKind(h.kind, h.executor, h.settings.config.Handler)
}

// failTransition is the move after an attempt that did not succeed: another attempt, if
// the policy allows, or the end and a dead letter.
func failTransition(h attemptRef, f *Failure, at time.Time) *transition {
	m := &transition{
		task: h.task, expect: atAttempt(h.job, h.attempt, Running),
		actor: h.by, executor: h.by, at: at, endJob: db.RiverJobStateDiscarded, timeout: h.settings.timeout, span: h.span,
	}
	policy := h.settings.retry
	retry := policy.Retryable(f) && int(h.failures) < policy.MaxRetries
	switch {
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
			delay = 0 // it was nobody's fault but the worker's
		}
		delay = max(delay, min(f.After, time.Duration(policy.longest())))
		delay = delay.Truncate(time.Millisecond) // as it is told
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

// releaseTransition is the move that gives an attempt back: it spends nothing, and the next
// one has the same number. A neighbour that did hear of it, though no answer came,
// knows the next by the same idempotency key.
func releaseTransition(h attemptRef, at time.Time, delay time.Duration) *transition {
	return &transition{
		task: h.task, expect: atAttempt(h.job, h.attempt, Running),
		to: Pending, event: db.TaskEventTypeReleased, actor: h.by, executor: h.by, at: at,
		notCounted: true, outcome: db.AttemptOutcomeRELEASED, endJob: db.RiverJobStateCancelled, timeout: h.settings.timeout,
		next: &nextJob{lane: laneOf(h.kind), kind: h.waitingKind(), delay: delay},
	}
}

// The bounds of what is kept of an error.
const (
	longestCode    = 128
	longestMessage = 2000
	longestStack   = 16 << 10
)

// problemJSON is the document's error, as the tables keep it: the one place where a failure
// is written, and so where it is redacted. The statement that writes it puts its timestamp in.
func problemJSON(f *Failure, retryable bool) json.RawMessage {
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

// storableText makes text fit for jsonb: valid UTF-8, no NUL, not endless.
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

// failureOf reads what an executor returned.
func failureOf(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		if f.Code == "" {
			f.Code = CodeExecution
		}
		return f
	}
	if errors.Is(err, context.DeadlineExceeded) {
		// Its own deadline: the attempt's is written by timeOut.
		return &Failure{Code: "TIMEOUT_ERROR", Message: err.Error()}
	}
	return &Failure{Code: CodeExecution, Message: err.Error()}
}
