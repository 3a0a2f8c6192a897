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

// A remote worker's last word. Each call names its lease by the token; a lease
// that ran out and was not reaped yet still counts. The same word again is
// answered as the first time; another word is a *Conflict. A lease that went to
// somebody else is ErrLeaseLost, a task that ended meanwhile a *TaskEnded, a
// token that we never made ErrNotFound.

// CompleteLease ends the task with an output. One that the definition's schema refuses
// is an *Invalid, and the lease is kept.
func (t *Tasks) CompleteLease(ctx context.Context, tenant, token string, output json.RawMessage) (db.Task, error) {
	w, err := t.word(ctx, tenant, token)
	if err != nil {
		return db.Task{}, err
	}
	if w.id.letter {
		return t.ackLetter(ctx, w, output)
	}
	if !w.holds() {
		return t.repeated(ctx, w, output, nil)
	}
	if w.settings.def != nil {
		if broken := w.settings.def.output.Validate(orEmpty(output)); len(broken) > 0 {
			return db.Task{}, &Invalid{Message: "the output does not match the definition's schema", Violations: below("/output", broken)}
		}
	}
	m := completed(w.held(), output)
	m.callerWaits = true
	return t.say(ctx, w, m, output, nil)
}

// FailLease ends the attempt; the task's policy decides whether there is another. It
// is not before later, if that is longer than the policy's delay.
func (t *Tasks) FailLease(ctx context.Context, tenant, token string, f *Failure, later time.Duration) (db.Task, error) {
	w, err := t.word(ctx, tenant, token)
	if err != nil {
		return db.Task{}, err
	}
	if w.id.letter {
		return t.returnLetter(ctx, w, f.Error(), max(later, letterRest))
	}
	if !w.holds() {
		return t.repeated(ctx, w, nil, f)
	}
	h := w.held()
	h.outcome = db.AttemptOutcomeFAILED // whatever it calls it
	m := failed(h, f, now())
	if note, ok := m.payload.(outbox.RetryNote); ok && later > time.Duration(note.RetryDelay)*time.Millisecond {
		m.next.at = m.at.Add(later).Truncate(time.Microsecond)
		note.RetryDelay, note.NextRetryTime = later.Milliseconds(), m.next.at
		m.payload = note
	}
	m.callerWaits = true
	return t.say(ctx, w, m, nil, f)
}

// ReleaseLease gives the task back: it waits in the lane that it was taken from, and
// nothing is spent.
func (t *Tasks) ReleaseLease(ctx context.Context, tenant, token string, delay time.Duration, reason string) (db.Task, error) {
	w, err := t.word(ctx, tenant, token)
	if err != nil {
		return db.Task{}, err
	}
	if w.id.letter {
		return t.returnLetter(ctx, w, "", delay)
	}
	if !w.holds() {
		return t.releasedBefore(ctx, w)
	}
	m := released(w.held(), now(), delay)
	m.next.lane = string(w.task.Lane)
	if reason != "" {
		m.payload = map[string]string{"reason": storable(reason, longestMessage)}
	}
	m.callerWaits = true
	out := t.make(ctx, m)
	if !out.made && out.err == nil {
		if w.task, err = t.Get(ctx, tenant, w.id.task); err != nil {
			return db.Task{}, err
		}
		return t.releasedBefore(ctx, w)
	}
	return t.after(ctx, tenant, m, out)
}

func (t *Tasks) releasedBefore(ctx context.Context, w *word) (db.Task, error) {
	before, err := t.q.WorkerReleased(ctx, db.WorkerReleasedParams{JobID: w.id.job, TaskID: w.id.task.String()})
	if err != nil {
		return db.Task{}, readError("job of a lease", err)
	}
	if before && w.task.Status != db.TaskStatusCANCELLED {
		return w.task, nil
	}
	return db.Task{}, lostTo(w.task)
}

// word is a call about one lease: its token read, its task as it stands.
type word struct {
	id       leaseID
	tenant   string
	task     db.Task
	settings *settings
	by       string // who leased the attempt that runs
}

func (t *Tasks) word(ctx context.Context, tenant, token string) (*word, error) {
	id, err := t.tokens.read(ctx, token)
	if err != nil {
		return nil, err
	}
	w := &word{id: id, tenant: tenant}
	if w.task, w.by, err = t.getHeld(ctx, tenant, id.task); err != nil {
		return nil, err
	}
	if w.settings, err = t.settings(ctx, w.task.Type, w.task.DefinitionID, w.task.Revision, w.task.Config); err != nil {
		return nil, err
	}
	return w, nil
}

// holds says whether the token's attempt is the one that runs.
func (w *word) holds() bool {
	return w.task.Status == db.TaskStatusRUNNING && w.task.JobID == w.id.job && w.task.Attempt == w.id.attempt
}

func (w *word) held() held {
	return held{
		task: w.id.task, job: w.id.job, attempt: w.id.attempt, kind: Type(w.task.Type), executor: w.task.Executor,
		failures: w.task.Failures, crashes: w.task.Crashes, settings: w.settings, by: w.by, ends: tracedOf(w.task),
	}
}

// say makes a worker's last move.
func (t *Tasks) say(ctx context.Context, w *word, m *move, output json.RawMessage, f *Failure) (db.Task, error) {
	out := t.make(ctx, m)
	if out.made || out.err != nil {
		return t.after(ctx, w.tenant, m, out)
	}
	// Somebody was as quick; perhaps this very call, sent twice.
	task, err := t.Get(ctx, w.tenant, w.id.task)
	if err != nil {
		return db.Task{}, err
	}
	w.task = task
	return t.repeated(ctx, w, output, f)
}

// repeated answers a word about an attempt that is over.
func (t *Tasks) repeated(ctx context.Context, w *word, output json.RawMessage, f *Failure) (db.Task, error) {
	p := db.WorkerSaidParams{TaskID: w.id.task, Attempt: w.id.attempt, JobID: w.id.job, Output: string(output)}
	if f != nil {
		p.ErrorCode, p.ErrorMessage = storable(f.Code, 128), storable(f.Message, longestMessage)
	}
	before, err := t.q.WorkerSaid(ctx, p)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return db.Task{}, lostTo(w.task)
	case err != nil:
		return db.Task{}, readError("attempt", err)
	case before.Outcome == nil:
		return db.Task{}, ErrLeaseLost
	}
	switch *before.Outcome {
	case db.AttemptOutcomeCOMPLETED:
		if f == nil && before.SameOutput {
			return w.task, nil
		}
	case db.AttemptOutcomeFAILED, db.AttemptOutcomeTIMEDOUT:
		if f != nil && before.SameError {
			return w.task, nil
		}
	default: // it ran out, or was cancelled: the worker had said nothing
		return db.Task{}, lostTo(w.task)
	}
	return db.Task{}, &Conflict{Message: fmt.Sprintf("attempt %d has ended already as %s, with another word", w.id.attempt, *before.Outcome)}
}
