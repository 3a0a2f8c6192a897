package jobs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// Operators cancel, retry and delete jobs in River UI, and DBAs in psql. A waiting task needs its
// job, so the task changes as well:
//
//	cancelled, deleted    the task is CANCELLED
//	discarded             the attempt has failed; a task that waits gets a new job
//	retried               no change: the job is an orphan, and its claim ends it
//
// A dead letter whose job is cancelled or deleted is discarded, in the name of the database role.
// A dead letter whose job is discarded, perhaps by River's rescuer, gets a new job.
//
// Triggers record each such change in table job_signal. Every process applies the signals at each
// tick, and the fence accepts one transition for each signal.

// CodeDiscarded is the failure of an attempt whose job was discarded.
const CodeDiscarded = "JOB_DISCARDED"

func (r *Runner) jobSignals(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "apply job signals", func(ctx context.Context) error {
		for {
			rows, err := r.tasks.q.SignalList(ctx)
			if err != nil {
				return fmt.Errorf("read signals: %w", err)
			}
			if len(rows) == 0 {
				return nil
			}

			if err := r.applySignals(ctx, rows); err != nil {
				return err
			}
		}
	})
}

// applySignals applies a page of signals and deletes them. A signal whose task has gone on to another
// job is only deleted. The signal of a locked task stays for the next tick, and delays no other signal.
func (r *Runner) applySignals(ctx context.Context, rows []db.SignalListRow) error {
	done := make(map[int64]bool, len(rows))
	var moves []*transition
	var asked []int64 // the signal of each transition
	var lost tasksWithoutJob
	for _, row := range rows {
		done[row.ID] = true
		// The task has another job by now, or is gone: the signal is only deleted.
		if row.Status == nil {
			continue
		}

		id, who := uuid.UUID(row.TaskID.Bytes), "river:"+row.ByRole
		if s := Status(*row.Status); row.What != "discarded" && (s == Failed || s == TimedOut) {
			if err := r.discardDeadLetter(ctx, row, id, who); err != nil {
				return err
			}
			continue
		}

		s, err := r.tasks.settings(ctx, *row.Type, taskDefinition(*row.TenantID, *row.OwnDefinition, *row.DefinitionID, *row.Revision), row.Config)
		if err != nil {
			return err
		}

		ends := &attemptSpan{
			task: id, attempt: *row.Attempt, kind: Type(*row.Type), lane: string(*row.Lane), definition: *row.DefinitionID,
			traceparent: row.Traceparent, startedAt: timeOf(row.StartedAt),
		}
		switch {
		case row.What != "discarded":
			asked = append(asked, row.ID)
			moves = append(moves, &transition{
				skipLocked: true, task: id, expect: atJob(row.JobID, Pending, Running),
				to: Cancelled, event: db.TaskEventTypeCanceled, actor: who, executor: who,
				payload: outbox.CanceledNote{Reason: "the job was " + row.What + " in the queue"},
				outcome: db.AttemptOutcomeCANCELLED, endJob: db.RiverJobStateCancelled, span: ends,
			})
		// The retry policy decides, as after any failed attempt.
		case *row.Status == db.TaskStatusRUNNING:
			asked = append(asked, row.ID)
			end := failTransition(attemptRef{
				task: id, job: row.JobID, attempt: *row.Attempt, kind: Type(*row.Type), executor: *row.Executor,
				failures: *row.Failures, crashes: *row.Crashes, settings: s, actor: who, span: ends,
			}, &Failure{Code: CodeDiscarded, Message: "the job was discarded in the queue"}, r.tasks.cfg.Clock())
			end.skipLocked = true
			moves = append(moves, end)
		default: // it waits, to be run or as a dead letter
			lost.add(id, row.JobID, nextKind(*row.Lane, *row.Type, *row.Executor), s.timeout)
		}
	}

	var trouble error
	for i, out := range r.tasks.applyAll(moves) {
		m := moves[i]
		if out.applied {
			r.tasks.cfg.Logger.Info("a task was ended: its job was ended in the queue", "task", m.task, "by", m.actor, "now", m.to)
			r.tasks.running.cancel(attemptID{m.task, m.expect.job}, ErrCancelled)
		} else if out.err != nil { // the signal stays for the next tick
			trouble = out.err
			delete(done, asked[i])
		}
	}

	// The signals are deleted last: a process that dies before this repeats them, and the fence rejects
	// the repetition.
	if err := r.requeue(ctx, lost); err != nil {
		return err
	}

	if err := r.tasks.q.SignalDone(ctx, slices.AppendSeq([]int64{}, maps.Keys(done))); err != nil {
		return fmt.Errorf("forget signals: %w", err)
	}

	return trouble
}

// discardDeadLetter discards a dead letter whose job was ended or deleted.
func (r *Runner) discardDeadLetter(ctx context.Context, row db.SignalListRow, id uuid.UUID, who string) error {
	laid, err := r.tasks.q.DeadLetterDiscard(ctx, db.DeadLetterDiscardParams{
		TaskID: id, TenantID: *row.TenantID, WantJob: row.JobID, Gone: true, Actor: who, Reason: "the job was " + row.What + " in the queue",
	})
	if err != nil {
		return fmt.Errorf("discard the dead letter of task %s: %w", id, err)
	}
	if len(laid) > 0 {
		r.tasks.cfg.Logger.Info("a dead letter was discarded: its job was ended in the queue", "task", id, "by", who)
	}

	return nil
}

// tasksWithoutJob collects waiting tasks and dead letters without a job.
type tasksWithoutJob struct{ db.LaneRequeueParams }

func (a *tasksWithoutJob) add(task uuid.UUID, job int64, kind string, timeout time.Duration) {
	a.TaskIds, a.JobIds = append(a.TaskIds, task), append(a.JobIds, job)
	a.Kinds, a.Timeouts = append(a.Kinds, kind), append(a.Timeouts, timeout.Milliseconds())
}

// nextKind is the kind of a waiting task's next job.
func nextKind(lane db.TaskLane, kind db.TaskType, executor string) string {
	if lane == LaneDeadLetter {
		return KindDeadLetter
	}
	return kindOf(Type(kind), executor)
}

func (r *Runner) requeue(ctx context.Context, lost tasksWithoutJob) error {
	if len(lost.TaskIds) == 0 {
		return nil
	}

	found, err := r.tasks.q.LaneRequeue(ctx, lost.LaneRequeueParams)
	if err != nil {
		return fmt.Errorf("requeue tasks: %w", err)
	}

	for _, row := range found {
		// Only this process is woken: the other processes find the job by their polls.
		r.tasks.notifier.queueNotified(row.Lane)
		if row.BrokenJob != 0 {
			r.tasks.cfg.Logger.Warn("a job did not name its task, and was ended", "job", row.BrokenJob, "task", row.TaskID)
		}
	}

	if len(found) > 0 {
		r.tasks.cfg.Logger.Warn("tasks waited without a job and have one again", "tasks", len(found))
	}

	return nil
}

// repairPage is the page of repairJobs: 2,000 tasks a second, a million in eight minutes.
const repairPage = 10_000

// repairJobs walks over all tasks, page by page, and gives a job to each waiting task without a job. It
// also ends orphaned jobs. Signals report nearly all such cases at once; the walk finds changes without
// a trigger, such as a TRUNCATE.
func (r *Runner) repairJobs(ctx context.Context) {
	after := uuid.Nil
	r.every(ctx, 5*r.cfg.Tick, "repair tasks and jobs", func(ctx context.Context) error {
		grace := min(time.Minute, 2*r.cfg.Silence)
		// The start of a younger claim may be under way.
		if _, err := r.tasks.q.LaneStale(ctx, db.LaneStaleParams{Lanes: Lanes[:4], GraceSeconds: grace.Seconds()}); err != nil {
			return fmt.Errorf("end orphaned jobs: %w", err)
		}

		rows, err := r.tasks.q.TaskAdrift(ctx, db.TaskAdriftParams{After: after, Page: repairPage})
		if err != nil {
			return fmt.Errorf("look for tasks without a job: %w", err)
		}

		from := after
		after = uuid.Nil // from the beginning again, once the end is reached
		var lost tasksWithoutJob
		for _, row := range rows {
			after = row.PageEnd
			// A page without findings is one row, with the end of the page.
			if row.JobID == nil {
				continue
			}

			s, err := r.tasks.settings(ctx, *row.Type, taskDefinition(*row.TenantID, *row.OwnDefinition, *row.DefinitionID, *row.Revision), row.Config)
			if err != nil {
				return err
			}

			// LaneRequeue looks at the task again under its lock, so that a task that got a job meanwhile
			// keeps that job.
			lost.add(uuid.UUID(row.TaskID.Bytes), *row.JobID, nextKind(*row.Lane, *row.Type, *row.Executor), s.timeout)
		}

		if after != uuid.Nil {
			found, err := r.tasks.q.ReadyRepair(ctx, db.ReadyRepairParams{After: from, Upto: after})
			if err != nil {
				return fmt.Errorf("repair the table of ready jobs: %w", err)
			}
			if len(found) > 0 {
				r.tasks.cfg.Logger.Warn("jobs for remote workers were not in table ready, and are there again", "jobs", len(found))
			}
		}

		return r.requeue(ctx, lost)
	})
}
