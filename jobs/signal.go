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

// Operators cancel, retry and delete jobs in River UI, and DBAs in psql. The job
// is a token; what they mean is the task:
//
//	cancelled, deleted    the task is CANCELLED
//	discarded             the attempt failed; a task that waits gets a new token
//	retried               nothing: the token is nobody's, and its claim ends it
//
// A dead letter whose job is cancelled or deleted is laid aside, in the name of who did
// it; one whose job is discarded gets a new token: it may have been somebody's rescuer.
//
// Triggers write down what was done (job_signal), and every process acts on it at
// each tick; the fence lets one of them through.

// CodeDiscarded is the failure of an attempt whose job was discarded.
const CodeDiscarded = "JOB_DISCARDED"

func (r *Runner) signals(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "act on what was done to jobs", func(ctx context.Context) error {
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

// applySignals acts on a page of signals and forgets them. One whose move found no task at
// its job is obeyed too: the task has gone on. One whose task is locked stays, and holds
// up no other.
func (r *Runner) applySignals(ctx context.Context, rows []db.SignalListRow) error {
	done := make(map[int64]bool, len(rows))
	var moves []*transition
	var asked []int64 // the signal of each move
	var lost jobless
	for _, row := range rows {
		done[row.ID] = true
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
		case *row.Status == db.TaskStatusRUNNING:
			asked = append(asked, row.ID)
			end := failTransition(attemptRef{
				task: id, job: row.JobID, attempt: *row.Attempt, kind: Type(*row.Type), executor: *row.Executor,
				failures: *row.Failures, crashes: *row.Crashes, settings: s, by: who, span: ends,
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
		if out.made {
			r.tasks.cfg.Logger.Info("a job was ended in the queue, and so its task", "task", m.task, "by", m.actor, "now", m.to)
			r.tasks.running.cancel(attemptID{m.task, m.expect.job}, ErrCancelled)
		} else if out.err != nil { // its signal stays, and is tried again
			trouble = out.err
			delete(done, asked[i])
		}
	}
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
		return fmt.Errorf("lay the dead letter of task %s aside: %w", id, err)
	}
	if len(laid) > 0 {
		r.tasks.cfg.Logger.Info("the job of a dead letter was ended in the queue, and so it is laid aside", "task", id, "by", who)
	}
	return nil
}

// jobless are tasks, and dead letters, that wait without a job.
type jobless struct{ db.LaneRequeueParams }

func (a *jobless) add(task uuid.UUID, job int64, kind string, timeout time.Duration) {
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

func (r *Runner) requeue(ctx context.Context, lost jobless) error {
	if len(lost.TaskIds) == 0 {
		return nil
	}
	found, err := r.tasks.q.LaneRequeue(ctx, lost.LaneRequeueParams)
	if err != nil {
		return fmt.Errorf("requeue tasks: %w", err)
	}
	for _, row := range found {
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

// reconcilePage is how many tasks one look goes over: 2000 a second, so that a
// million waiting tasks are gone over in eight minutes.
const reconcilePage = 10_000

// reconcile walks over all tasks, a page at a time, and gives those a job that wait
// without one; and ends tokens that are nobody's. What triggers tell is known at
// once: this is for what they cannot see, such as a TRUNCATE.
func (r *Runner) reconcile(ctx context.Context) {
	after := uuid.Nil
	r.every(ctx, 5*r.cfg.Tick, "reconcile tasks and jobs", func(ctx context.Context) error {
		grace := min(time.Minute, 2*r.cfg.Silence)
		if _, err := r.tasks.q.LaneStale(ctx, db.LaneStaleParams{Lanes: Lanes[:4], GraceSeconds: grace.Seconds()}); err != nil {
			return fmt.Errorf("end stale tokens: %w", err)
		}
		rows, err := r.tasks.q.TaskAdrift(ctx, db.TaskAdriftParams{After: after, Page: reconcilePage})
		if err != nil {
			return fmt.Errorf("look for tasks without a job: %w", err)
		}
		after = uuid.Nil // from the beginning again, once the end is reached
		var lost jobless
		for _, row := range rows {
			after = row.PageEnd
			if row.JobID == nil {
				continue
			}
			s, err := r.tasks.settings(ctx, *row.Type, taskDefinition(*row.TenantID, *row.OwnDefinition, *row.DefinitionID, *row.Revision), row.Config)
			if err != nil {
				return err
			}
			lost.add(uuid.UUID(row.TaskID.Bytes), *row.JobID, nextKind(*row.Lane, *row.Type, *row.Executor), s.timeout)
		}
		return r.requeue(ctx, lost)
	})
}
