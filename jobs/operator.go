package jobs

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// A request of an operator for jobs in River UI changes the tasks of these jobs, in the name of the
// operator. This is the first of three layers: triggers record changes made in other ways (signal.go),
// and repairJobs finds changes without a trigger.

// Operators has the operations of operators on many tasks at once.
type Operators struct{ t *Tasks }

// CancelJobs cancels the tasks of jobs, and discards dead letters. verb is the request: cancelled or
// deleted. Jobs without a task, and jobs whose task has gone on, are left alone.
func (o *Operators) CancelJobs(ctx context.Context, ids []int64, by, verb string) error {
	rows, err := o.t.q.JobTasks(ctx, ids)
	if err != nil {
		return readError("tasks of jobs", err)
	}

	reason := "the job was " + verb + " in River UI"
	var moves []*transition
	for _, row := range rows {
		switch {
		case !row.Current:
		case row.Kind == KindDeadLetter:
			// WantJob is the fence: a redriven task has another job.
			_, err := o.t.q.DeadLetterDiscard(ctx, db.DeadLetterDiscardParams{
				TaskID: row.TaskID, TenantID: row.TenantID, WantJob: row.JobID, Actor: by, Reason: reason,
			})
			if err != nil {
				return readError("task "+row.TaskID.String(), err)
			}
		default:
			moves = append(moves, &transition{
				task: row.TaskID, expect: atJob(row.JobID, Pending, Running),
				to: Cancelled, event: db.TaskEventTypeCanceled, actor: by, executor: by,
				payload: outbox.CanceledNote{Reason: reason},
				outcome: db.AttemptOutcomeCANCELLED, endJob: db.RiverJobStateCancelled, callerWaits: true,
			})
		}
	}

	var failed []error
	for i, out := range o.t.applyAll(moves) {
		// The other tasks are cancelled nevertheless.
		if out.err != nil {
			failed = append(failed, fmt.Errorf("cancel task %s: %w", moves[i].task, out.err))
		}
	}

	return errors.Join(failed...)
}

// RetryJobs redrives the dead letters among the tasks of jobs. rest are the other jobs that River may
// retry: the current jobs of PENDING tasks, and jobs without a task. The job of an ended attempt is not
// retried.
func (o *Operators) RetryJobs(ctx context.Context, ids []int64, by string) (rest []int64, err error) {
	rows, err := o.t.q.JobTasks(ctx, ids)
	if err != nil {
		return nil, readError("tasks of jobs", err)
	}

	known := make(map[int64]db.JobTasksRow, len(rows))
	dead := map[string][]uuid.UUID{} // by tenant
	for _, row := range rows {
		known[row.JobID] = row
		if s := Status(row.Status); s == Failed || s == TimedOut {
			dead[row.TenantID] = append(dead[row.TenantID], row.TaskID)
		}
	}

	for _, id := range ids {
		if row, ours := known[id]; !ours || row.Current && Status(row.Status) == Pending {
			rest = append(rest, id)
		}
	}

	for tenant, tasks := range dead {
		// An operation belongs to one tenant.
		r := Redrive{TaskIDs: tasks, Rate: MostRedriven}
		if _, err := o.t.DeadLetters.Redrive(ctx, Actor{Tenant: tenant, Name: by, Reason: "the job was retried in River UI"}, r); err != nil {
			return nil, err
		}
	}

	return rest, nil
}
