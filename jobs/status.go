package jobs

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// Update is the body of PUT …/status.
type Update struct {
	Status Status
	Output json.RawMessage // with COMPLETED
	Error  *Failure        // with FAILED
}

// SetStatus changes the status of a task for a caller outside: the result of a person, the verdict of
// the orchestrator. A running attempt loses its lease. The repeated call that ended a task gets the
// first answer again.
func (t *Tasks) SetStatus(ctx context.Context, id uuid.UUID, actor Actor, to Update) (db.Task, error) {
	if to.Status == Cancelled {
		return t.Cancel(ctx, id, actor)
	}

	for {
		task, err := t.Get(ctx, actor.Tenant, id)
		if err != nil {
			return db.Task{}, err
		}

		from := Status(task.Status)
		// First: a repeated call has an old version, and finds an ended task.
		if again, err := t.isRepeat(ctx, task, actor.IfMatch, to, actor.Reason, lastEnd{actor: actor.Name}); err != nil || again {
			return task, err
		}

		if actor.IfMatch != 0 && actor.IfMatch != task.Version {
			return db.Task{}, ErrStale
		}
		if from.Terminal() || !slices.Contains(Legal(from), to.Status) {
			return db.Task{}, illegal(from, to.Status)
		}

		s, err := t.settings(ctx, task.Type, taskDefinition(task.TenantID, task.OwnDefinition, task.DefinitionID, task.Revision), task.Config)
		if err != nil {
			return db.Task{}, err
		}

		// The decision holds for this version only.
		now := actor
		now.IfMatch = task.Version
		m, err := t.updateTransition(ctx, task, s, now, to)
		if err != nil {
			return db.Task{}, err
		}

		m.callerWaits, m.call = true, actor.Call
		out := t.apply(ctx, m)
		if actor.IfMatch == 0 && out.err == nil && out.found && !out.applied && out.version != task.Version {
			continue // another write came first, and the caller requires no version: decide again
		}

		return t.readBack(ctx, actor.Tenant, m, out)
	}
}

// updateTransition returns the transition for an update by a caller.
func (t *Tasks) updateTransition(ctx context.Context, task db.Task, s *settings, actor Actor, to Update) (*transition, error) {
	from := Status(task.Status)
	who := actor.Name
	// A service may report for the assignee: the attempt is the assignee's.
	if task.AssigneeID != nil {
		who = *task.AssigneeID
	}

	m := &transition{
		task: task.TaskID, expect: atVersion(actor.IfMatch, from),
		to: to.Status, actor: actor.Name, executor: who, at: t.cfg.Clock(), timeout: s.timeout, visibility: s.visibility,
		endJob: db.RiverJobStateCancelled, span: runningSpan(task),
	}
	if from != Running { // it may begin and end in one word
		m.span = wholeSpan(task, t.Now(ctx))
	}

	switch to.Status {
	case Completed:
		if s.def != nil {
			if err := checkDocument(ctx, s.def.output, "output", orEmpty(to.Output)); err != nil {
				return nil, err
			}
		}
		m.event, m.output, m.outcome = db.TaskEventTypeCompleted, to.Output, db.AttemptOutcomeCOMPLETED
		m.payload = summaryOf(to.Output)
		// The attempt may begin and end in this transition.
		m.begins = from != Running
	case Failed, TimedOut:
		f := to.failure(actor.Reason)
		m.event, m.outcome = db.TaskEventTypeFailed, db.AttemptOutcomeFAILED
		if to.Status == TimedOut {
			m.outcome = db.AttemptOutcomeTIMEDOUT
		}
		m.problem, m.failures, m.failureCode = problemJSON(f, false), 1, redactedText(f.Code, longestCode)
		m.begins = from != Running
		// A failure that a caller reports is final, whatever the retry policy says.
		m.next = &nextJob{lane: LaneDeadLetter, kind: KindDeadLetter}
	case Running:
		m.event, m.begins = db.TaskEventTypeStarted, true
		// A person sends no heartbeats: the lease lasts until the timeout.
		m.lease, m.toDeadline = db.LeaseKindPerson, true
		m.payload = outbox.StartedNote{ExecutorID: who}
	case Pending:
		m.event, m.outcome = db.TaskEventTypeReleased, db.AttemptOutcomeRELEASED
		m.next = &nextJob{lane: laneOf(Type(task.Type)), kind: waitingKind(Type(task.Type), task.Executor, s.config.Handler)}
	case Assigned:
		return t.backToAssigned(ctx, task, m, actor.Reason)
	case Cancelled:
	}

	return m, nil
}

// backToAssigned completes the transition of an unclaim: the task returns to its assignment before the
// claim.
func (t *Tasks) backToAssigned(ctx context.Context, task db.Task, m *transition, reason string) (*transition, error) {
	if task.AssigneeID == nil && task.GroupID == nil && task.Candidates == nil {
		return nil, invalid("/status", "the request names no assignee: use POST /api/internal/tasks/{taskId}/reassign to assign the task")
	}
	if reason == "" {
		reason = "unclaimed"
	}

	// The claim has replaced the assignee in the row; an event has the assignment before the claim.
	note, err := t.Worklist.assignmentBefore(ctx, task.TaskID)
	if err != nil {
		return nil, err
	}

	if note.AssigneeID == "" && note.GroupID == "" && task.Candidates == nil {
		// No event has the earlier assignment: the present one stays.
		note.AssigneeID, note.AssigneeName, note.GroupID = stringOf(task.AssigneeID), stringOf(task.AssigneeName), stringOf(task.GroupID)
	}

	if note.TaskName == "" {
		note.TaskName = task.DefinitionID
	}

	note.Reason = reason
	if task.DueAt != nil {
		note.DueDate = *task.DueAt
	}

	m.event, m.outcome, m.payload = db.TaskEventTypeAssigned, db.AttemptOutcomeRELEASED, note
	m.assignment = &assignment{AssigneeID: note.AssigneeID, AssigneeName: note.AssigneeName, GroupID: note.GroupID, DueAt: task.DueAt}
	return m, nil
}

func orEmpty(doc json.RawMessage) json.RawMessage {
	if len(doc) == 0 {
		return json.RawMessage("{}")
	}
	return doc
}

func stringOf(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
