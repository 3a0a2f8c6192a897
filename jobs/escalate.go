package jobs

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"

	"github.com/seed-3f7a0631/tes/db"
)

// byEscalation is the actor of escalations in the audit trail.
const byEscalation = "tes:escalation"

// has reports whether the target has the task already.
func (to EscalationTarget) has(task db.DeadlineTaskRow) bool {
	if to.AssigneeID != "" {
		return stringOf(task.AssigneeID) == to.AssigneeID
	}
	// A task that a person of the group has claimed goes back to the group.
	return task.AssigneeID == nil && stringOf(task.GroupID) == to.GroupID
}

type escalationArgs struct {
	TaskID     uuid.UUID `json:"task_id"`
	DeadlineID int64     `json:"deadline_id"`
}

func (escalationArgs) Kind() string { return KindEscalation }

type escalationWorker struct {
	river.WorkerDefaults[escalationArgs]
	n *Notices
}

func (escalationWorker) Timeout(*river.Job[escalationArgs]) time.Duration { return noticeTime }

func (w *escalationWorker) NextRetry(job *river.Job[escalationArgs]) time.Time {
	return w.n.tasks.clock.now().Add(noticeBackoff(job.Attempt))
}

// Work reassigns the task, begun or not. The task keeps its due date: a late task gets
// no more time. The transition begins a new chain of jobs, so that a repeated escalation
// finds another chain and ends without effect.
func (w *escalationWorker) Work(ctx context.Context, job *river.Job[escalationArgs]) error {
	t := w.n.tasks
	for {
		task, s, err := t.deadlineTask(ctx, job.Args.TaskID)
		if err != nil {
			return err
		}
		if s == nil || !isCurrentChain(task, job.Args.DeadlineID) || s.config.Escalation == nil || s.config.Escalation.ReassignTo == nil {
			return nil
		}

		to := s.config.Escalation.ReassignTo
		m := t.assignTransition(ctx, db.Task{TaskID: task.TaskID, DefinitionID: task.DefinitionID, DueAt: task.DueAt}, s, byEscalation,
			Assignment{AssigneeID: to.AssigneeID, GroupID: to.GroupID}, "the due date passed")
		m.assignment.Candidates = nobodyElse
		m.at = time.Time{} // as it is written: the database has said that the date has passed
		// Fenced by the version that was read: a claim or a completion in between comes first.
		m.expect, m.callerWaits = atVersion(task.Version, Assigned, Running), true
		m.outcome = db.AttemptOutcomeRELEASED

		switch out := t.apply(ctx, m); {
		case out.err != nil:
			return fmt.Errorf("escalate task %s: %w", task.TaskID, out.err)
		case out.applied:
			t.cfg.Logger.Info("task escalated: its due date has passed", "task", task.TaskID)
			return nil
		}
		// Rejected: another transition came first. Read the task again.
	}
}
