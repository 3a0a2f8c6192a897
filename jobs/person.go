package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// Person does manual tasks. Groups and Roles are as the caller gave them.
type Person struct {
	ID     string
	Groups []string
	Roles  []string
}

// Principals returns the names under which tasks wait for a person; task_open_for makes the same names
// in SQL. The result is never nil, which would be NULL in a query.
func (p Person) Principals() []string {
	out := make([]string, 0, 2+len(p.Groups)+len(p.Roles))
	out = append(out, "anyone", "user:"+p.ID)
	for _, g := range p.Groups {
		out = append(out, "group:"+g)
	}

	for _, r := range p.Roles {
		out = append(out, "role:"+r)
	}

	return out
}

// mayClaim reports whether the task waits for the person.
func (p Person) mayClaim(task db.Task) bool {
	names := p.Principals()
	return slices.ContainsFunc(task.OpenFor, func(who string) bool { return slices.Contains(names, who) })
}

// Worklist serves people: manual tasks with an assignee, or with candidates.
type Worklist struct{ t *Tasks }

// Claim begins an ASSIGNED manual task for a candidate, and assigns the task to this person. A repeated
// claim by the same person changes nothing.
func (w *Worklist) Claim(ctx context.Context, id uuid.UUID, actor Actor, who Person) (db.Task, error) {
	return w.apply(ctx, id, actor, func(task db.Task, heldBy string) (*transition, error) {
		return w.claimTransition(ctx, task, heldBy, who)
	})
}

// Unclaim returns a claimed task to the earlier assignee, group or candidates.
func (w *Worklist) Unclaim(ctx context.Context, id uuid.UUID, actor Actor, user string) (db.Task, error) {
	return w.apply(ctx, id, actor, func(task db.Task, heldBy string) (*transition, error) {
		switch {
		case Status(task.Status).Terminal():
			return nil, illegal(Status(task.Status), Assigned)
		case task.Status != db.TaskStatusRUNNING:
			return nil, &Conflict{fmt.Sprintf("the task is %s: nobody has claimed it", task.Status)}
		case heldBy != user:
			return nil, ErrForbidden
		}

		return w.personTransition(ctx, task, user, actor.Reason, Update{Status: Assigned})
	})
}

// Complete ends a task with the result of its claimer, or of its assignee if the task was not claimed.
// The event keeps the comment. A repeated call with the same result changes nothing.
func (w *Worklist) Complete(ctx context.Context, id uuid.UUID, actor Actor, user string, output json.RawMessage, comment string) (db.Task, error) {
	done := Update{Status: Completed, Output: output}
	return w.apply(ctx, id, actor, func(task db.Task, heldBy string) (*transition, error) {
		// First: a repeated call finds the task COMPLETED.
		again, err := w.t.isRepeat(ctx, task, actor.IfMatch, done, "", lastEnd{user, comment})
		if err != nil || again {
			return nil, err
		}

		switch from := Status(task.Status); {
		case from.Terminal():
			return nil, illegal(from, Completed)
		case from == Pending:
			return nil, &Conflict{"the task is PENDING: it is not assigned yet"}
		case from == Running && heldBy != user, from == Assigned && stringOf(task.AssigneeID) != user:
			return nil, ErrForbidden
		}

		m, err := w.personTransition(ctx, task, user, "", done)
		if err != nil || comment == "" {
			return m, err
		}

		// The payload may already have a summary of the output.
		note := outbox.CompletedNote{}
		if told, ok := m.payload.(json.RawMessage); ok {
			if err := json.Unmarshal(told, &note); err != nil {
				return nil, fmt.Errorf("read the summary: %w", err)
			}
		}

		note.Comment = comment
		m.payload = note
		return m, nil
	})
}

// The bounds of ClaimNext: tasks of one look, tries of one look, and looks. A try fails only if another
// person has the task, so that only a crowd reaches the bounds.
const (
	nextLook  = 16
	nextTries = 4
	nextLooks = 64
)

// ClaimNext claims the most urgent task that waits for a person: by priority, due date, age. The result
// is nil, without an error, if no task waits. No two callers get the same task: the claim is fenced by
// the version that was read.
func (w *Worklist) ClaimNext(ctx context.Context, actor Actor, who Person) (*db.Task, error) {
	for range nextLooks {
		tasks, err := w.t.q.TaskOpenFor(ctx, db.TaskOpenForParams{Principals: who.Principals(), TenantID: actor.Tenant, Page: nextLook})
		if err != nil {
			return nil, readError("tasks of "+who.ID, err)
		}
		if len(tasks) == 0 {
			return nil, nil
		}

		for try := 0; try < nextTries && len(tasks) > 0; try++ {
			// First the most urgent task. After a lost try, a random task: losers spread out.
			at := 0
			if try > 0 {
				at = rand.IntN(len(tasks))
			}

			task := tasks[at]
			tasks = slices.Delete(tasks, at, at+1)
			m, err := w.claimTransition(ctx, task, "", who)
			if err != nil {
				return nil, err
			}

			m.callerWaits, m.call = true, actor.Call
			out := w.t.apply(ctx, m)
			switch {
			case out.applied:
				task, err := w.t.readBack(ctx, actor.Tenant, m, out)
				return &task, err
			case out.err != nil:
				return nil, fmt.Errorf("task %s: %w", m.task, out.err)
			}
		}
	}

	return nil, &Conflict{"other callers were quicker each time: try again"}
}

// apply applies the transition that decide chooses for a manual task; nil changes nothing. If the task
// changes meanwhile, and the caller requires no version, apply calls decide again.
func (w *Worklist) apply(ctx context.Context, id uuid.UUID, actor Actor, decide func(task db.Task, heldBy string) (*transition, error)) (db.Task, error) {
	for {
		task, heldBy, err := w.t.getWithHolder(ctx, actor.Tenant, id)
		switch {
		case err != nil:
			return db.Task{}, err
		case task.Type != db.TaskTypeMANUAL:
			return db.Task{}, &Conflict{fmt.Sprintf("task %s is %s: only a manual task is done by a person", id, task.Type)}
		}

		// An ended task is decided first: a repeated call may have the version from before the end.
		stale := actor.IfMatch != 0 && actor.IfMatch != task.Version
		if stale && !Status(task.Status).Terminal() {
			return db.Task{}, versionChanged(task)
		}

		m, err := decide(task, heldBy)
		var illegal *IllegalTransition
		switch {
		case stale && (m != nil || errors.As(err, &illegal)):
			return db.Task{}, versionChanged(task) // the task has ended by another call
		case err != nil:
			return db.Task{}, fmt.Errorf("task %s: %w", id, err)
		}

		if m == nil {
			return task, nil
		}

		m.callerWaits, m.call = true, actor.Call
		out := w.t.apply(ctx, m)
		if actor.IfMatch == 0 && out.err == nil && out.found && !out.applied && out.version != task.Version {
			continue // each round is a transition by another caller, so the loop ends
		}

		return w.t.readBack(ctx, actor.Tenant, m, out)
	}
}

func versionChanged(task db.Task) error {
	return fmt.Errorf("task %s is at version %d: %w", task.TaskID, task.Version, ErrStale)
}

// claimTransition is the transition of a claim; nil when the person has the task already.
func (w *Worklist) claimTransition(ctx context.Context, task db.Task, heldBy string, who Person) (*transition, error) {
	switch from := Status(task.Status); {
	case from.Terminal():
		return nil, illegal(from, Running)
	case from == Pending:
		return nil, &Conflict{"the task is PENDING: it is not assigned yet"}
	case from == Running && heldBy == who.ID:
		return nil, nil
	case from == Running:
		return nil, &Conflict{fmt.Sprintf("the task was claimed by %s at %s", heldBy, timeOf(task.StartedAt).Format(time.RFC3339))}
	case !who.mayClaim(task):
		return nil, ErrForbidden
	}

	m, err := w.personTransition(ctx, task, who.ID, "", Update{Status: Running})
	if err != nil {
		return nil, err
	}

	m.executor = who.ID
	m.payload = nil // names the executor for an update by another actor; here the actor is the person
	// A candidate becomes the assignee. Unclaim finds the earlier assignment in the events.
	if stringOf(task.AssigneeID) != who.ID {
		m.assignment = &assignment{AssigneeID: who.ID, AssigneeName: who.ID, GroupID: stringOf(task.GroupID), DueAt: task.DueAt}
	}

	return m, nil
}

// personTransition is the transition of a person's call, fenced by the version that was read.
func (w *Worklist) personTransition(ctx context.Context, task db.Task, user, reason string, to Update) (*transition, error) {
	s, err := w.t.settings(ctx, task.Type, taskDefinition(task.TenantID, task.OwnDefinition, task.DefinitionID, task.Revision), task.Config)
	if err != nil {
		return nil, err
	}
	return w.t.updateTransition(ctx, task, s, Actor{Tenant: task.TenantID, Name: user, IfMatch: task.Version, Reason: reason}, to)
}

// assignmentBefore returns the assignment of a task before a person claimed the task; the zero value if
// no event has the assignment.
func (w *Worklist) assignmentBefore(ctx context.Context, id uuid.UUID) (note outbox.AssignedNote, err error) {
	payload, err := w.t.q.TaskLastAssigned(ctx, id)
	switch {
	case errors.Is(err, pgx.ErrNoRows) || (err == nil && payload == nil):
		return note, nil
	case err != nil:
		return note, readError("the assignment of task "+id.String(), err)
	}

	if err := json.Unmarshal([]byte(*payload), &note); err != nil {
		return note, fmt.Errorf("read the assignment of task %s: %w", id, err)
	}

	return note, nil
}
