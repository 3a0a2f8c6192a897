package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"github.com/seed-3f7a0631/tes/db"
)

// Each assignment begins a chain of jobs, in the assignment's commit. A chain has a single job at a
// time: the commit that ends a job inserts the next job, so that no job is lost or done twice.
// Column deadline_id of the task names the current chain. A later assignment begins a new chain, and
// the job of an old chain ends without effect.

// steps are the percentages of the time to the due date at which notices are sent.
var steps = []int{0, 50, 75, 90, 100}

// deadlineStep is what a job of a chain has to do.
type deadlineStep struct {
	percent  int
	notices  []dueNotice
	escalate bool
	next     int // percent; 0 for none
	nextAt   time.Time
}

type dueNotice struct{ what, user string }

// deadlineStep returns the notices, the escalation and the next job of a task at a percentage. Of
// missed steps only the last is done: three reminders at once would not help a person.
func (s *settings) deadlineStep(task db.DeadlineTaskRow, chain int64, percent int) deadlineStep {
	if !isCurrentChain(task, chain) || task.AssignedAt == nil || task.DueAt == nil {
		return deadlineStep{}
	}

	from, due, now := *task.AssignedAt, *task.DueAt, task.ReadAt
	last := func(than int) (found int) {
		for _, p := range steps {
			if p > than && !s.part(from, due, p).After(now) {
				found = p
			}
		}
		return found
	}
	// Percent 0 is the assignment itself, whose notice is never skipped.
	if percent > 0 {
		percent = max(percent, last(percent))
	}

	out := deadlineStep{percent: percent}
	switch {
	case percent == 0:
		// A person who has begun the task knows of the assignment.
		if task.Status == db.TaskStatusASSIGNED {
			out.add(noticeAssigned, holders(task)...)
		}
	case percent < 100:
		out.add(noticeReminder, holders(task)...)
	default:
		// A holder who is also in Notify gets the notice overdue only: add keeps the first notice.
		out.add(noticeOverdue, holders(task)...)
		if e := s.config.Escalation; e != nil {
			out.add(noticeEscalated, e.Notify...)
			out.escalate = e.ReassignTo != nil && !e.ReassignTo.has(task)
		}
	}

	// An assignment that begins after the due date has no further step: otherwise an escalated
	// task would be escalated for ever.
	if percent < 100 && from.Before(due) {
		// A step that has become due meanwhile is next, else the first step ahead.
		out.next = last(percent)
		for i := 0; out.next == 0; i++ {
			if steps[i] > percent {
				out.next = steps[i]
			}
		}
		out.nextAt = s.part(from, due, out.next)
	}

	return out
}

// add adds a notice for each user without a notice in this step.
func (s *deadlineStep) add(what string, users ...string) {
	for _, user := range users {
		if !slices.ContainsFunc(s.notices, func(t dueNotice) bool { return t.user == user }) {
			s.notices = append(s.notices, dueNotice{what, user})
		}
	}
}

// holders returns the persons to remind: the assignee, else the named candidates. Groups and roles
// get no reminders.
func holders(task db.DeadlineTaskRow) []string {
	if task.AssigneeID != nil {
		return []string{*task.AssigneeID}
	}
	var named candidates
	if len(task.Candidates) == 0 || json.Unmarshal(task.Candidates, &named) != nil {
		return nil
	}
	return named.Users
}

type deadlineArgs struct {
	TaskID     uuid.UUID `json:"task_id"`
	DeadlineID int64     `json:"deadline_id"` // the chain
	Percent    int       `json:"percent"`
}

func (deadlineArgs) Kind() string { return KindDeadline }

type deadlineWorker struct {
	river.WorkerDefaults[deadlineArgs]
	n *Notices
}

func (deadlineWorker) Timeout(*river.Job[deadlineArgs]) time.Duration { return noticeTime }

func (w *deadlineWorker) NextRetry(job *river.Job[deadlineArgs]) time.Time {
	return w.n.tasks.clock.now().Add(noticeBackoff(job.Attempt))
}

func (w *deadlineWorker) Work(ctx context.Context, job *river.Job[deadlineArgs]) error {
	t, args := w.n.tasks, job.Args
	task, s, err := t.deadlineTask(ctx, args.TaskID)
	if err != nil {
		return err
	}

	// Without a task, the zero step only ends the job.
	var do deadlineStep
	if s != nil {
		do = s.deadlineStep(task, args.DeadlineID, args.Percent)
	}

	// Ids for the escalation, for the next job of the chain, and for each notice.
	ids, err := t.ids.job(ctx, len(do.notices)+2)
	if err != nil {
		return err
	}

	p := db.DeadlineStepParams{
		JobID: job.ID, Attempt: int16(job.Attempt), TaskID: args.TaskID, DeadlineID: args.DeadlineID, Percent: int16(do.percent),
		NoticeIds: ids[2:], Whats: []string{}, UserIds: []string{}, NextAt: unset,
	}
	for _, one := range do.notices {
		p.Whats, p.UserIds = append(p.Whats, one.what), append(p.UserIds, one.user)
	}

	if do.escalate {
		p.EscalationJob = ids[0]
	}
	if do.next > 0 {
		p.NextJob, p.NextAt, p.NextPercent = ids[1], do.nextAt, int32(do.next)
	}

	// The statement ends this job in the same commit. It is fenced by the job's attempt, so that a
	// superseded process repeats nothing.
	if _, err := t.q.DeadlineStep(ctx, p); err != nil {
		return fmt.Errorf("write the deadline of task %s: %w", args.TaskID, err)
	}

	return nil
}

// deadlineTask reads a task with its settings; the settings are nil if the task is gone.
func (t *Tasks) deadlineTask(ctx context.Context, id uuid.UUID) (db.DeadlineTaskRow, *settings, error) {
	task, err := t.q.DeadlineTask(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return task, nil, nil
	}
	if err != nil {
		return task, nil, fmt.Errorf("read task %s: %w", id, err)
	}

	s, err := t.settings(ctx, task.Type, taskDefinition(task.TenantID, task.OwnDefinition, task.DefinitionID, task.Revision), task.Config)
	return task, s, err
}
