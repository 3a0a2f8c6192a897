package jobs

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// What an operator asks of jobs in River UI is done to their tasks, in the operator's
// name. It is the first of three layers: triggers see what comes another way (see
// signal.go), and the reconciler what they cannot see.

// Operators is what operators ask for many tasks at once.
type Operators struct{ t *Tasks }

// CancelJobs cancels the tasks behind jobs, and lays dead letters aside. verb is what
// was asked (cancelled, deleted). A job that is no task's, or whose task has gone on,
// is left alone.
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
		if out.err != nil {
			failed = append(failed, fmt.Errorf("cancel task %s: %w", moves[i].task, out.err))
		}
	}

	return errors.Join(failed...)
}

// RetryJobs redrives the tasks behind jobs that have failed for good, and returns the
// other jobs that may be retried in the queue: those that wait for their time, and
// those that are no task's. The job of an attempt that is over is nobody's token.
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
		r := Redrive{TaskIDs: tasks, Rate: MostRedriven}
		if _, err := o.t.DeadLetters.Redrive(ctx, Actor{Tenant: tenant, Name: by, Reason: "the job was retried in River UI"}, r); err != nil {
			return nil, err
		}
	}

	return rest, nil
}
