package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// The calls of a remote worker to end an attempt. Each call names its lease by the token. An expired
// lease still counts until the reaper ends the attempt.
//
// A repeated call gets the first answer again, however the task has gone on; the same call with a
// different body is a *Conflict. If another worker has the lease, the error is ErrLeaseLost; if the
// task has ended, a *TaskEnded; for an unknown token, ErrNotFound.

// Complete ends the task with an output. An output that breaks the schema of the definition is an
// *Invalid, and the worker keeps the lease.
func (l *Leases) Complete(ctx context.Context, tenant, token string, output json.RawMessage) (db.Task, error) {
	w, err := l.openCall(ctx, tenant, token)
	if err != nil {
		return db.Task{}, err
	}
	if w.id.deadLetter {
		return l.acknowledgeDeadLetter(ctx, w, output)
	}
	if !w.holds() {
		return l.replay(ctx, w, output, nil, 0)
	}

	if w.settings.def != nil {
		if err := checkDocument(ctx, w.settings.def.output, "output", orEmpty(output)); err != nil {
			return db.Task{}, err
		}
	}

	m := completeTransition(w.ref(), output, l.t.cfg.Clock())
	m.callerWaits = true
	return l.submit(ctx, w, m, output, nil, 0)
}

// Fail ends the attempt; the retry policy of the task decides about another attempt. later is the least
// delay before the next attempt; 0: the delay of the policy.
func (l *Leases) Fail(ctx context.Context, tenant, token string, f *Failure, later time.Duration) (db.Task, error) {
	w, err := l.openCall(ctx, tenant, token)
	if err != nil {
		return db.Task{}, err
	}
	if w.id.deadLetter {
		return l.requeueDeadLetter(ctx, w, f.Error(), max(later, requeueDelay))
	}
	if !w.holds() {
		return l.replay(ctx, w, nil, f, later)
	}

	m := failTransition(w.ref(), f, l.t.cfg.Clock())
	// The job and the event must have the same delay.
	if note, ok := m.payload.(outbox.RetryNote); ok && later > time.Duration(note.RetryDelay)*time.Millisecond {
		m.next.delay = later.Truncate(time.Millisecond)
		note.RetryDelay = later.Milliseconds()
		m.payload = note
	}

	m.callerWaits = true
	return l.submit(ctx, w, m, nil, f, later)
}

// Release returns the task to the queue of the lease; the attempt does not count.
func (l *Leases) Release(ctx context.Context, tenant, token string, delay time.Duration, reason string) (db.Task, error) {
	w, err := l.openCall(ctx, tenant, token)
	if err != nil {
		return db.Task{}, err
	}
	if w.id.deadLetter {
		return l.requeueDeadLetter(ctx, w, "", delay)
	}

	said := releasedNote{Reason: redactedText(reason, longestMessage), DelayMs: delay.Milliseconds(), JobID: w.id.job}
	if !w.holds() {
		return l.replayRelease(ctx, w, said)
	}

	m := releaseTransition(w.ref(), l.t.cfg.Clock(), delay)
	// releaseTransition would choose the standard queue, also for a retry.
	m.next.lane = string(w.task.Lane)
	m.payload = said
	m.callerWaits = true
	out := l.t.apply(ctx, m)
	// Another write came first, perhaps this call, sent twice.
	if !out.applied && out.err == nil {
		if w.task, err = l.t.Get(ctx, tenant, w.id.task); err != nil {
			return db.Task{}, err
		}
		return l.replayRelease(ctx, w, said)
	}

	return l.t.readBack(ctx, tenant, m, out)
}

// releasedNote is the payload of the release in the audit trail; it is not published. A repeated call
// is recognized by the job.
type releasedNote struct {
	Reason  string `json:"reason,omitempty"`
	DelayMs int64  `json:"delayMs,omitempty"`
	JobID   int64  `json:"jobId"`
}

func (l *Leases) replayRelease(ctx context.Context, w *leaseCall, said releasedNote) (db.Task, error) {
	before, err := l.t.q.WorkerReleased(ctx, db.WorkerReleasedParams{JobID: w.id.job, TaskID: w.id.task})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return db.Task{}, leaseLostError(w.task)
	case err != nil:
		return db.Task{}, readError("events of task "+w.id.task.String(), err)
	}

	var then releasedNote
	if err := json.Unmarshal([]byte(before.Payload), &then); err != nil {
		return db.Task{}, fmt.Errorf("read a release of task %s: %w", w.id.task, err)
	}

	if then != said {
		return db.Task{}, &Conflict{Message: fmt.Sprintf("attempt %d was already released, with a different body", w.id.attempt)}
	}

	return w.asOf(before.Seq, db.TaskStatusPENDING, w.id.attempt-1, nil), nil
}

// leaseCall is a call about one lease: its verified token, and its task as it is now.
type leaseCall struct {
	id       leaseID
	tenant   string
	task     db.Task
	settings *settings
	actor    string // who leased the attempt that runs
}

func (l *Leases) openCall(ctx context.Context, tenant, token string) (*leaseCall, error) {
	id, err := l.tokens.read(ctx, token)
	if err != nil {
		return nil, err
	}

	w := &leaseCall{id: id, tenant: tenant}
	if w.task, w.actor, err = l.t.getWithHolder(ctx, tenant, id.task); err != nil {
		return nil, err
	}

	if w.settings, err = l.t.settings(ctx, w.task.Type, taskDefinition(w.task.TenantID, w.task.OwnDefinition, w.task.DefinitionID, w.task.Revision), w.task.Config); err != nil {
		return nil, err
	}

	return w, nil
}

// holds reports whether the token's attempt is the running one.
func (w *leaseCall) holds() bool {
	return w.task.Status == db.TaskStatusRUNNING && w.task.JobID == w.id.job && w.task.Attempt == w.id.attempt
}

func (w *leaseCall) ref() attemptRef {
	return attemptRef{
		task: w.id.task, job: w.id.job, attempt: w.id.attempt, kind: Type(w.task.Type), executor: w.task.Executor,
		failures: w.task.Failures, crashes: w.task.Crashes, settings: w.settings, actor: w.actor, span: runningSpan(w.task),
	}
}

// asOf returns the task as of the first call, for the answer to a repeated call.
func (w *leaseCall) asOf(version int32, status db.TaskStatus, attempt int32, next *time.Time) db.Task {
	task := w.task
	task.Version, task.Status, task.Attempt, task.NextRetryAt = version, status, attempt, next
	return task
}

// submit applies the transition of a call. A rejected call may be a repetition.
func (l *Leases) submit(ctx context.Context, w *leaseCall, m *transition, output json.RawMessage, f *Failure, later time.Duration) (db.Task, error) {
	out := l.t.apply(ctx, m)
	if out.applied || out.err != nil {
		return l.t.readBack(ctx, w.tenant, m, out)
	}

	// Another write came first, perhaps this call, sent twice.
	task, err := l.t.Get(ctx, w.tenant, w.id.task)
	if err != nil {
		return db.Task{}, err
	}

	w.task = task
	return l.replay(ctx, w, output, f, later)
}

// replay answers a call about an ended attempt. The call that ended the attempt gets the first answer
// again.
func (l *Leases) replay(ctx context.Context, w *leaseCall, output json.RawMessage, f *Failure, later time.Duration) (db.Task, error) {
	p := db.WorkerSaidParams{TaskID: w.id.task, Attempt: w.id.attempt, JobID: w.id.job, Output: string(output)}
	if f != nil {
		// As stored: redacted, with the policy's verdict. The statement ignores the timestamp.
		p.Error = string(problemJSON(f, w.settings.retry.Retryable(f)))
	}

	before, err := l.t.q.WorkerSaid(ctx, p)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return db.Task{}, leaseLostError(w.task)
	case err != nil:
		return db.Task{}, readError("attempt", err)
	}

	var same bool
	var note outbox.RetryNote
	switch *before.Outcome {
	case db.AttemptOutcomeCOMPLETED:
		same = f == nil && before.SameOutput
	case db.AttemptOutcomeFAILED, db.AttemptOutcomeTIMEDOUT:
		if before.Now == db.TaskStatusPENDING {
			if err := json.Unmarshal([]byte(before.Payload), &note); err != nil {
				return db.Task{}, fmt.Errorf("read a retry of task %s: %w", w.id.task, err)
			}
		}
		// The delay that the first call asked for is not stored; the delay that it got is.
		same = f != nil && before.SameError && (before.Now != db.TaskStatusPENDING || later.Milliseconds() <= note.RetryDelay)
	default: // the lease ran out, or the task was cancelled: the worker had not ended the attempt
		return db.Task{}, leaseLostError(w.task)
	}

	if !same {
		return db.Task{}, &Conflict{Message: fmt.Sprintf("attempt %d has ended already as %s, with a different body", w.id.attempt, *before.Outcome)}
	}

	var next *time.Time
	if before.Now == db.TaskStatusPENDING {
		next = &note.NextRetryTime
	}

	return w.asOf(before.Seq, before.Now, w.id.attempt, next), nil
}
