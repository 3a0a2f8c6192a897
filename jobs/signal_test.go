package jobs

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// outsiders are a pool and a River client that are not the engine's: what a DBA
// and River UI have.
func (b *testBundle) outsiders() (*pgxpool.Pool, *river.Client[pgx.Tx]) {
	b.t.Helper()
	pool, err := pgpool.Open(b.ctx, dbtest.URL(b.pool), pgpool.Config{Name: "outsider"})
	require.NoError(b.t, err)
	b.t.Cleanup(pool.Close)
	client, err := NewRiver(pool, "outsider", slog.New(slog.DiscardHandler), nil)
	require.NoError(b.t, err)
	return pool, client
}

func TestWhatIsDoneToAWaitingJobIsDoneToItsTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dba, ui := b.outsiders()
	cancelled, deleted, bySQL := b.create(remote), b.create(remote), b.create(remote)
	later := b.create(remote, policy(RetryPolicy{MaxRetries: 1, RetryInterval: 3_600_000}))
	found := b.dequeue("w", func(req *LeaseRequest) { req.ID = "r" })
	require.Len(t, found, 4)
	for _, l := range found {
		if l.TaskID == later.TaskID {
			_, err := b.Leases.Fail(b.ctx, "", l.Token, &Failure{Code: "X"}, 0)
			require.NoError(t, err)
			continue
		}
		_, err := b.Leases.Release(b.ctx, "", l.Token, 0, "")
		require.NoError(t, err)
	}
	job := func(task db.Task) int64 { return b.get(task.TaskID).JobID }

	_, err := ui.JobCancel(b.ctx, job(cancelled))
	require.NoError(t, err)
	_, err = ui.JobCancel(b.ctx, job(later))
	require.NoError(t, err)
	_, err = ui.JobDelete(b.ctx, job(deleted))
	require.NoError(t, err)
	_, err = dba.Exec(b.ctx, "DELETE FROM river_job WHERE id = $1", job(bySQL))
	require.NoError(t, err)
	require.Equal(t, 4, ask[int](b, "SELECT count(*) FROM job_signal"))
	b.work(nil)
	for _, task := range []db.Task{cancelled, later, deleted, bySQL} {
		b.becomes(task.TaskID, Cancelled)
		require.Contains(t, ask[string](b, "SELECT actor FROM task_event WHERE task_id = $1 AND type = 'canceled'", task.TaskID), "river:")
	}
	require.Contains(t, ask[string](b, "SELECT payload FROM task_event WHERE task_id = $1 AND type = 'canceled'", deleted.TaskID), "was deleted in the queue")
	waitFor(t, "the signals to be forgotten", func() bool { return ask[int](b, "SELECT count(*) FROM job_signal") == 0 })
}

func TestCancelInRiverUIEndsWhatRuns(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dba, ui := b.outsiders()
	began, ended := make(chan Job, 2), make(chan error, 2)
	b.work(noop(func(ctx context.Context, job Job) (Result, error) {
		began <- job
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return Result{}, ctx.Err()
	}))
	for _, do := range []func(id int64) error{
		func(id int64) error { _, err := ui.JobCancel(b.ctx, id); return err },
		func(id int64) error {
			_, err := dba.Exec(b.ctx, "DELETE FROM river_job WHERE id = $1", id)
			return err
		},
	} {
		task := b.create(timeout(time.Hour))
		receive(t, began)
		b.becomes(task.TaskID, Running)
		require.NoError(t, do(b.get(task.TaskID).JobID))
		b.becomes(task.TaskID, Cancelled)
		require.ErrorIs(t, receive(t, ended), ErrCancelled)
	}
}

// A worker hears it with its next heartbeat.
func TestCancelInRiverUIOfALeasedTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, ui := b.outsiders()
	task := b.create(remote)
	lease := b.dequeueOne("w")
	_, err := ui.JobCancel(b.ctx, b.get(task.TaskID).JobID)
	require.NoError(t, err)
	b.work(nil)
	b.becomes(task.TaskID, Cancelled)
	require.Equal(t, StopWork, b.beat(lease.Token).Directive)
	require.Equal(t, "cancelled", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", b.get(task.TaskID).JobID))
}

// River UI makes a job of long ago available again: it is nobody's.
func TestRetryInRiverUIOfAFinishedJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, ui := b.outsiders()
	calls := make(chan Job, 10)
	b.work(noop(func(_ context.Context, job Job) (Result, error) {
		calls <- job
		return Result{Output: json.RawMessage(`{}`)}, nil
	}))
	task := b.becomes(b.create().TaskID, Completed)
	receive(t, calls)
	_, err := ui.JobRetry(b.ctx, task.JobID)
	require.NoError(t, err)
	waitFor(t, "the token to be ended", func() bool {
		return ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", task.JobID) == "cancelled"
	})
	require.Empty(t, calls)
	require.Equal(t, task.Version, b.get(task.TaskID).Version)
}

func TestDiscardedJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dba, _ := b.outsiders()
	running := b.create(remote, policy(RetryPolicy{}))
	b.dequeueOne("w")
	waiting := b.create(remote)
	_, err := dba.Exec(b.ctx, "UPDATE river_job SET state = 'discarded', finalized_at = now() WHERE id = ANY($1)",
		[]int64{b.get(running.TaskID).JobID, waiting.JobID})
	require.NoError(t, err)
	b.work(nil)
	require.Equal(t, CodeDiscarded, codeOf(t, b.becomes(running.TaskID, Failed)))
	lease := b.dequeueOne("w")
	require.Equal(t, waiting.TaskID, lease.TaskID, "it waits again, with another token")
	_, err = b.Leases.Complete(b.ctx, "", lease.Token, nil)
	require.NoError(t, err)
}

// What was done on purpose is not mended before it is acted upon.
func TestReconcileLeavesSignalsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dba, _ := b.outsiders()
	task := b.create(remote)
	_, err := dba.Exec(b.ctx, "DELETE FROM river_job WHERE id = $1", task.JobID)
	require.NoError(t, err)
	rows, err := b.q.TaskAdrift(b.ctx, db.TaskAdriftParams{Page: 10})
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.Nil(t, rows[0].JobID)
	var lost tasksWithoutJob
	lost.add(task.TaskID, task.JobID, KindWorker, time.Minute)
	found, err := b.q.LaneRequeue(b.ctx, lost.LaneRequeueParams)
	require.NoError(t, err)
	require.Empty(t, found)
	b.work(nil)
	b.becomes(task.TaskID, Cancelled)
}

// What no trigger sees is found by looking.
func TestReconcile(t *testing.T) {
	t.Parallel()
	b := setup(t)
	kept := b.create(remote)
	task, other := b.create(remote), b.create()
	retried := b.create(remote, policy(RetryPolicy{MaxRetries: 1, RetryInterval: 3_600_000}), priority(Critical))
	_, err := b.Leases.Fail(b.ctx, "", b.dequeueOne("w").Token, &Failure{Code: "X"}, 0)
	require.NoError(t, err)
	// The engine's own name, so that the triggers look away.
	require.EqualValues(t, 3, b.exec("DELETE FROM river_job WHERE id = ANY($1) AND state <> 'discarded'", []int64{task.JobID, other.JobID, b.get(retried.TaskID).JobID}))
	b.work(noop(does(`{}`, nil)))
	b.becomes(other.TaskID, Completed)
	waitFor(t, "the tasks to have jobs", func() bool {
		return ask[int](b, "SELECT count(*) FROM task t JOIN river_job j ON j.id = t.job_id WHERE t.status = 'PENDING'") == 3
	})
	require.NotEqual(t, task.JobID, b.get(task.TaskID).JobID)
	require.Equal(t, kept.JobID, b.get(kept.TaskID).JobID, "it had one")
	again := b.get(retried.TaskID)
	require.Equal(t, "scheduled", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", again.JobID))
	require.WithinDuration(t, *again.NextRetryAt, ask[time.Time](b, "SELECT scheduled_at FROM river_job WHERE id = $1", again.JobID), 0)
	require.Equal(t, LaneRetry, ask[string](b, "SELECT queue FROM river_job WHERE id = $1", again.JobID))
}

// A token that runs and is nobody's, as a crash between a claim and its end leaves
// it, is ended.
func TestRunningTokenOfNobodyIsEnded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(noop(does(`{}`, nil)), hasty)
	task := b.becomes(b.create().TaskID, Completed)
	b.exec("UPDATE river_job SET state = 'running', finalized_at = NULL, attempted_at = now() - interval '1 hour' WHERE id = $1", task.JobID)
	waitFor(t, "the token to be ended", func() bool {
		return ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", task.JobID) == "cancelled"
	})
}

// Whoever ends or deletes the job of a dead letter has laid it aside: in their name.
func TestWhatIsDoneToTheJobOfADeadLetter(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dba, ui := b.outsiders()
	waiting := b.deadLetters(5)
	leased := b.deadLetters(1, priority(Critical))[0]
	held := b.dequeue("handler", letters, func(req *LeaseRequest) { req.Most = 1 })[0]
	require.Equal(t, leased.TaskID, held.TaskID)
	for i, sql := range []string{
		"DELETE FROM river_job WHERE id = $1",
		"UPDATE river_job SET state = 'cancelled', finalized_at = now() WHERE id = $1",
		"UPDATE river_job SET state = 'discarded', finalized_at = now() WHERE id = $1",
	} {
		_, err := dba.Exec(b.ctx, sql, waiting[i].JobID)
		require.NoError(t, err)
	}
	_, err := ui.JobCancel(b.ctx, waiting[3].JobID)
	require.NoError(t, err)
	_, err = ui.JobDelete(b.ctx, waiting[4].JobID)
	require.NoError(t, err)
	_, err = ui.JobCancel(b.ctx, leased.JobID)
	require.NoError(t, err)
	b.work(nil)
	waitFor(t, "the discarded one to wait again", func() bool { return b.get(waiting[2].TaskID).JobID != waiting[2].JobID })
	again := b.dequeue("handler", letters, func(req *LeaseRequest) { req.Wait = patience })
	require.Len(t, again, 1)
	require.Equal(t, waiting[2].TaskID, again[0].TaskID)
	_, err = b.Leases.Complete(b.ctx, "", again[0].Token, nil)
	require.NoError(t, err)
	for i, how := range []string{"deleted", "cancelled", "", "cancelled", "deleted", "cancelled"} {
		if how == "" {
			continue
		}
		task := append(waiting, leased)[i] //nolint:gocritic // a list of all
		waitFor(t, "the dead letter to be laid aside", func() bool {
			return ask[int](b, "SELECT count(*) FROM dead_letter_discard WHERE task_id = $1", task.TaskID) == 1
		})
		require.Regexp(t, "^river:.+: the job was "+how+" in the queue$", ask[string](b, "SELECT actor || ': ' || reason FROM dead_letter_discard WHERE task_id = $1", task.TaskID))
		require.Equal(t, task.Version, b.get(task.TaskID).Version, "the task stays as it ended")
		require.Zero(t, b.get(task.TaskID).JobID)
	}
	require.ErrorIs(t, b.beat(held.Token).Err, ErrLeaseLost)
	require.Zero(t, ask[int](b, "SELECT count(*) FROM lease"))
}

// What no trigger sees is mended: the dead letter waits again.
func TestReconcileOfDeadLetters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lost := b.deadLetters(3)
	aside := lost[2]
	_, err := b.DeadLetters.Discard(b.ctx, aside.TaskID, Actor{Name: "desk", Reason: "old"})
	require.NoError(t, err)
	// The engine's own name, so that the triggers look away.
	require.EqualValues(t, 1, b.exec("DELETE FROM river_job WHERE id = $1", lost[0].JobID))
	require.EqualValues(t, 1, b.exec("UPDATE river_job SET state = 'completed', finalized_at = now() WHERE id = $1", lost[1].JobID))
	b.work(nil)
	rows := func() []db.DeadLetterListRow {
		rows, _, err := DeadLetters(b.ctx, b.q, "", DeadLetterFilter{}, DeadLetterCursor{}, 10)
		require.NoError(t, err)
		return rows
	}
	waitFor(t, "the dead letters to wait again", func() bool { return len(rows()) == 2 })
	require.Zero(t, b.get(aside.TaskID).JobID)
	require.Len(t, b.dequeue("handler", letters), 2)
	waitFor(t, "the desk to be empty", func() bool { return len(rows()) == 0 })
}
