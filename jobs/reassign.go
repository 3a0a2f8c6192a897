package jobs

import (
	"context"
	"fmt"
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
}

// Reassign gives a manual task to somebody else, whether it was begun or not.
func (t *Tasks) Reassign(ctx context.Context, id uuid.UUID, ask Ask, to Reassignment) (db.Task, error) {
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
	task, err := t.Get(ctx, ask.Tenant, id)
	if err != nil {
		return db.Task{}, err
	}
	if task.Type != db.TaskTypeMANUAL {
		return db.Task{}, &Conflict{fmt.Sprintf("task %s is %s: only a manual task has an assignee", id, task.Type)}
	}
	s, err := t.settings(ctx, task.Type, task.DefinitionID, task.Revision, task.Config)
	if err != nil {
		return db.Task{}, err
	}
	m := t.assigned(task, s, ask.By, Assignment{
		AssigneeID: to.AssigneeID, AssigneeName: to.AssigneeName, GroupID: to.GroupID, DueDate: to.DueDate,
	}, ask.Reason)
	m.assignment.Candidates = nobodyElse // whoever could claim it before has no say any more
	m.wantVersion, m.wantAttempt, m.callerWaits = ask.IfMatch, -1, true
	m.want = []Status{Pending, Assigned, Running}
	m.outcome, m.ends = db.AttemptOutcomeRELEASED, tracedOf(task) // the attempt that somebody had begun
	return t.after(ctx, ask.Tenant, m, t.make(ctx, m))
}

// assigned is the move that makes it somebody's turn.
func (t *Tasks) assigned(task db.Task, s *settings, by string, to Assignment, reason string) *move {
	at := now()
	due := to.DueDate
	if due == nil {
		due = task.DueAt
	}
	if due == nil {
		d := s.dueFrom(at, t.cfg.ManualDue)
		due = &d
	}
	name := to.AssigneeName
	if name == "" {
		name = to.AssigneeID
	}
	name = storable(name, longestID) // the directory's word, which is not ours to refuse
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
	return &move{
		task: task.TaskID, to: Assigned, event: db.TaskEventTypeAssigned, actor: by, executor: by, at: at, payload: note,
		assignment: a, endJob: db.RiverJobStateCompleted, timeout: s.timeout,
	}
}
