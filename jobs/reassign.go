package jobs

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// Reassignment gives a manual task to a person or to a group.
type Reassignment struct {
	AssigneeID   string
	AssigneeName string
	GroupID      string
	DueDate      *time.Time
	// Person is the caller, according to a token of their own: the task must then be theirs to give.
	// Default nil: the caller is trusted.
	Person *Person
}

// Reassign assigns a manual task to another person or a group, begun or not. The error is ErrForbidden
// for a person who may not give the task away.
func (w *Worklist) Reassign(ctx context.Context, id uuid.UUID, actor Actor, to Reassignment) (db.Task, error) {
	if (to.AssigneeID == "") == (to.GroupID == "") {
		return db.Task{}, invalid("", "give either assigneeId or groupId")
	}

	for path, id := range map[string]string{"/assigneeId": to.AssigneeID, "/groupId": to.GroupID} {
		if id == "" {
			continue
		}
		if err := GuardID(id); err != nil {
			return db.Task{}, invalid(path, "%v", err)
		}
	}

	var err error
	if to.DueDate, err = timeAt("/dueDate", to.DueDate); err != nil {
		return db.Task{}, err
	}

	for {
		task, err := w.t.Get(ctx, actor.Tenant, id)
		if err != nil {
			return db.Task{}, err
		}

		m, err := w.reassignTransition(ctx, task, actor, to)
		if err != nil {
			return db.Task{}, fmt.Errorf("task %s: %w", id, err)
		}

		out := w.t.apply(ctx, m)
		if to.Person != nil && actor.IfMatch == 0 && out.err == nil && out.found && !out.applied && out.version != task.Version {
			continue // the task has changed, and may be of another person now: decide again
		}

		return w.t.readBack(ctx, actor.Tenant, m, out)
	}
}

// reassignTransition returns the transition of a reassignment, for the task as it was read.
func (w *Worklist) reassignTransition(ctx context.Context, task db.Task, actor Actor, to Reassignment) (*transition, error) {
	if task.Type != db.TaskTypeMANUAL {
		return nil, &Conflict{fmt.Sprintf("task %s is %s: only a manual task has an assignee", task.TaskID, task.Type)}
	}

	s, err := w.t.settings(ctx, task.Type, taskDefinition(task.TenantID, task.OwnDefinition, task.DefinitionID, task.Revision), task.Config)
	if err != nil {
		return nil, err
	}

	version := actor.IfMatch
	if to.Person != nil {
		switch {
		case !to.Person.mayGive(task, s):
			return nil, ErrForbidden
		case version != 0 && version != task.Version:
			return nil, ErrStale
		}
		version = task.Version // mayGive has judged this version
	}

	m := w.t.assignTransition(ctx, task, s, actor.Name, Assignment{
		AssigneeID: to.AssigneeID, AssigneeName: to.AssigneeName, GroupID: to.GroupID, DueDate: to.DueDate,
	}, actor.Reason)
	m.assignment.Candidates = nobodyElse // the earlier candidates may no longer claim the task
	m.expect = atVersion(version, Pending, Assigned, Running)
	m.callerWaits, m.call = true, actor.Call
	m.outcome, m.span = db.AttemptOutcomeRELEASED, runningSpan(task) // the attempt that somebody had begun
	return m, nil
}

// mayGive reports whether the person may give the task to another: the task is assigned to them, waits
// for them as a candidate, or its definition names one of their roles. A candidate may no longer once
// another person has claimed the task: the claim would keep no one out.
func (p Person) mayGive(task db.Task, s *settings) bool {
	if stringOf(task.AssigneeID) == p.ID || p.mayClaim(task) {
		return true
	}
	rules := s.config.AssignmentRules
	return rules != nil && slices.ContainsFunc(rules.ReassignRoles, func(role string) bool { return slices.Contains(p.Roles, role) })
}

// assignTransition returns the transition that assigns a task.
func (t *Tasks) assignTransition(ctx context.Context, task db.Task, s *settings, by string, to Assignment, reason string) *transition {
	// The due date of the assignment, else of the task, else by the SLA or ManualDue.
	due := to.DueDate
	if due == nil {
		due = task.DueAt
	}

	if due == nil {
		d := s.dueFrom(t.Now(ctx), t.cfg.ManualDue)
		due = &d
	}

	name := to.AssigneeName
	if name == "" {
		name = to.AssigneeID
	}

	name = storableText(name, longestID) // from the User Service: made storable, not rejected
	a := &assignment{AssigneeID: to.AssigneeID, AssigneeName: name, GroupID: to.GroupID, DueAt: due}
	if to.CandidateUsers != nil || to.CandidateRoles != nil || to.CandidateGroups != nil {
		a.Candidates = &candidates{Users: to.CandidateUsers, Roles: to.CandidateRoles, Groups: to.CandidateGroups}
	}

	note := outbox.AssignedNote{
		AssigneeID: to.AssigneeID, AssigneeName: name, GroupID: to.GroupID, TaskName: task.DefinitionID, DueDate: *due, Reason: reason,
	}
	if s.def != nil {
		note.TaskName, note.TaskDescription = s.def.Name, s.def.Description
	}

	return &transition{
		task: task.TaskID, to: Assigned, event: db.TaskEventTypeAssigned, actor: by, executor: by, at: t.cfg.Clock(), payload: note,
		assignment: a, endJob: db.RiverJobStateCompleted, timeout: s.timeout,
	}
}
