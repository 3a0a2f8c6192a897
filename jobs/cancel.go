package jobs

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// ErrCancelled is the cause of an executor's context when its task is cancelled.
var ErrCancelled = errors.New("the task was cancelled")

// Actor is the caller of an operation, with the operation's precondition, reason and key.
type Actor struct {
	Tenant  string
	Name    string // the actor, for the audit trail
	IfMatch int32  // the version that the caller has seen; 0: any
	Reason  string
	Call    *Call // under an idempotency key; nil: without
}

// Cancel ends a task; the context of the task's executor ends within milliseconds.
// A repeated Cancel writes no event and is no error.
func (t *Tasks) Cancel(ctx context.Context, id uuid.UUID, actor Actor) (db.Task, error) {
	task, err := t.Get(ctx, actor.Tenant, id)
	if err != nil {
		return db.Task{}, err
	}

	// A repeated cancel with If-Match may have the version before the first cancel. isRepeat then
	// requires the same actor.
	if task.Status == db.TaskStatusCANCELLED {
		again := actor.IfMatch == 0 || actor.IfMatch == task.Version
		if !again {
			again, err = t.isRepeat(ctx, task, actor.IfMatch, Update{Status: Cancelled}, actor.Reason, lastEnd{actor: actor.Name})
		}
		if err != nil || again {
			return task, err
		}
	}

	m := &transition{
		task: id, expect: atVersion(actor.IfMatch, Pending, Assigned, Running),
		to: Cancelled, event: db.TaskEventTypeCanceled, actor: actor.Name, executor: actor.Name,
		payload: outbox.CanceledNote{Reason: actor.Reason},
		outcome: db.AttemptOutcomeCANCELLED, endJob: db.RiverJobStateCancelled, callerWaits: true, span: runningSpan(task), call: actor.Call,
	}

	out := t.apply(ctx, m)
	// Another cancel was committed after the read. Without If-Match both callers have what they
	// asked for.
	if !out.applied && out.was == Cancelled && actor.IfMatch == 0 {
		return t.Get(ctx, actor.Tenant, id)
	}

	return t.readBack(ctx, actor.Tenant, m, out)
}

// readBack returns the task after transition m was applied, or the reason for m's rejection.
// With an idempotency key, the result is the task as read in m's transaction, so that the task
// and the stored answer agree.
func (t *Tasks) readBack(ctx context.Context, tenant string, m *transition, out transitionResult) (db.Task, error) {
	if !out.applied {
		return db.Task{}, fmt.Errorf("task %s: %w", m.task, m.rejection(out))
	}
	if m.call != nil && m.call.task != nil {
		return *m.call.task, nil
	}
	return t.Get(ctx, tenant, m.task)
}
