package jobs

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// The danger as a story: a process takes a task, stalls, and is given up. Another
// one does the task. Then the first wakes, believes that it still has it, and
// says what came of its work.
func TestStalledExecutorChangesNothing(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]error{"with a result": nil, "with a failure": &Failure{Code: "LATE", Message: "too late"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slow := setup(t)
			taken, wake := make(chan Job, 1), make(chan struct{})
			runner := slow.workWithGrace(time.Minute, noop(func(_ context.Context, job Job) (Result, error) {
				taken <- job
				<-wake // a stalled process does not even see that its context ended
				return Result{Output: json.RawMessage(`{"by": "the first"}`)}, late
			}), stalled)
			task := slow.create(policy(RetryPolicy{MaxRetries: 5}))
			require.Equal(t, 1, receive(t, taken).Attempt)

			// From here on it takes nothing new, but has not let go of what it has.
			stopped := make(chan struct{})
			go func() { runner.stop(); close(stopped) }()

			quick := join(t, slow.pool, "p2")
			finish := make(chan struct{})
			quick.work(noop(func(_ context.Context, job Job) (Result, error) {
				taken <- job
				<-finish
				return Result{Output: json.RawMessage(`{"by": "the second"}`)}, nil
			}))
			slow.expire(task.TaskID)
			require.Equal(t, 2, receive(t, taken).Attempt)

			close(wake)
			receive(t, stopped) // and with it, what the first had to say was said
			task = slow.get(task.TaskID)
			require.Equal(t, db.TaskStatusRUNNING, task.Status, "attempt 2 goes on")
			require.EqualValues(t, 2, task.Attempt)
			require.Nil(t, task.Output)

			close(finish)
			task = slow.becomes(task.TaskID, Completed)
			require.JSONEq(t, `{"by": "the second"}`, string(task.Output))
			require.Equal(t, "created started retry started completed", slow.story(task.TaskID))
			require.Zero(t, task.Failures)
			require.EqualValues(t, 1, task.Crashes)
		})
	}
}

func TestExpiredLeaseEndsTheExecutorsContext(t *testing.T) {
	t.Parallel()
	// Whoever reaps: the process itself, or another one, and then a heartbeat hears
	// of it.
	for _, byAnother := range []bool{false, true} {
		t.Run(map[bool]string{false: "reaped here", true: "reaped elsewhere"}[byAnother], func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			taken, cause := make(chan int, 2), make(chan error, 1)
			executor := noop(func(ctx context.Context, job Job) (Result, error) {
				taken <- job.Attempt
				if job.Attempt == 1 {
					<-ctx.Done()
					cause <- context.Cause(ctx)
				}
				return Result{}, ctx.Err()
			})
			if byAnother {
				b.work(executor, stalled)
				join(t, b.pool, "p2").work(executor)
			} else {
				b.work(executor)
			}
			task := b.create(visibility(time.Second))
			require.Equal(t, 1, receive(t, taken))
			b.exec("UPDATE lease SET owner = 'somebody else', expires_at = now() WHERE task_id = $1", task.TaskID)
			require.ErrorIs(t, receive(t, cause), ErrLeaseLost)
			require.Equal(t, 2, receive(t, taken))
			b.becomes(task.TaskID, Completed)
		})
	}
}

// Somebody else has reaped the first attempt, and the second comes to the very process
// in which the first still runs.
func TestNextAttemptInTheSameProcessEndsTheOneBefore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	taken, cause := make(chan int, 2), make(chan error, 1)
	b.work(noop(func(ctx context.Context, job Job) (Result, error) {
		taken <- job.Attempt
		if job.Attempt == 1 {
			<-ctx.Done()
			cause <- context.Cause(ctx)
		}
		return Result{}, ctx.Err()
	}), stalled)
	task := b.create()
	require.Equal(t, 1, receive(t, taken))
	b.expire(task.TaskID)
	other := join(t, b.pool, "p2")
	expired, err := other.q.LeaseExpired(b.ctx)
	require.NoError(t, err)
	require.Equal(t, 1, NewRunner(other.Tasks, RunnerConfig{}).reapAll(b.ctx, expired))
	require.Equal(t, 2, receive(t, taken))
	require.ErrorIs(t, receive(t, cause), ErrLeaseLost)
	b.becomes(task.TaskID, Completed)
}

func TestHeartbeatsKeepALongAttempt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	done := make(chan struct{})
	taken := make(chan int, 9)
	b.work(noop(func(_ context.Context, job Job) (Result, error) {
		taken <- job.Attempt
		<-done
		return Result{}, nil
	}), func(cfg *RunnerConfig) { cfg.Tick = 0 }) // the default: nothing quicker than in production
	task := b.create(visibility(time.Second)) // the shortest there is
	receive(t, taken)
	const lease = "SELECT expires_at FROM lease WHERE task_id = $1"
	first := ask[time.Time](b, lease, task.TaskID)
	waitFor(t, "the lease to be extended", func() bool {
		return ask[time.Time](b, lease, task.TaskID).After(first.Add(2500 * time.Millisecond))
	})
	close(done)
	task = b.becomes(task.TaskID, Completed)
	require.Equal(t, "created started completed", b.story(task.TaskID))
}

func TestHeartbeatsDoNotOutliveTheDeadline(t *testing.T) {
	t.Parallel()
	b := setup(t)
	taken, done := make(chan struct{}), make(chan struct{})
	b.work(noop(func(context.Context, Job) (Result, error) {
		close(taken)
		<-done
		return Result{}, nil
	}), stalled)
	task := b.create(visibility(time.Second), timeout(time.Minute))
	receive(t, taken)
	b.exec("UPDATE lease SET deadline_at = now() + interval '100 ms', expires_at = now() WHERE task_id = $1", task.TaskID)
	kept, err := b.q.LeaseExtend(b.ctx, db.LeaseExtendParams{Owner: "p1", TaskIds: idsOf(task), JobIds: []int64{b.get(task.TaskID).JobID}})
	require.NoError(t, err)
	require.Len(t, kept, 1)
	require.True(t, ask[bool](b, "SELECT expires_at = deadline_at FROM lease WHERE task_id = $1", task.TaskID))
	close(done)
	b.becomes(task.TaskID, Completed)
}

func TestTaskThatKillsItsWorkersIsPoison(t *testing.T) {
	t.Parallel()
	b := setup(t)
	taken := make(chan int, 9)
	b.work(noop(func(ctx context.Context, job Job) (Result, error) {
		taken <- job.Attempt
		<-ctx.Done()
		return Result{}, ctx.Err()
	}))
	task := b.create() // no retries: a crash has a budget of its own
	for attempt := 1; attempt <= 5; attempt++ {
		require.Equal(t, attempt, receive(t, taken))
		b.expire(task.TaskID)
	}
	task = b.becomes(task.TaskID, Failed)
	require.Equal(t, CodePoison, codeOf(t, task))
	require.EqualValues(t, 5, task.Attempt)
	require.EqualValues(t, 5, task.Crashes)
	require.Zero(t, task.Failures)
	require.Equal(t, "created started retry started retry started retry started retry started failed", b.story(task.TaskID))
	require.EqualValues(t, 5, ask[int64](b, "SELECT count(*) FROM task_attempt WHERE outcome = 'LEASE_EXPIRED'"))
}

func TestExpiredLeasesOfADeadProcessShareCommits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const tasks = 600 // more than a page of the reaper
	// A process that has died: what it was running is there, and nobody beats.
	for range tasks {
		b.creates.Add(prepared(b))
	}
	b.creates.Drain()
	b.exec("UPDATE river_job SET state = 'running', attempt = 1, attempted_by = '{dead}', attempted_at = now()")
	b.exec("UPDATE task SET status = 'RUNNING', attempt = 1, version = 2, started_at = now()")
	b.exec("INSERT INTO task_attempt (task_id, attempt, job_id, started_at, executor_id) SELECT task_id, 1, job_id, now(), 'dead' FROM task")
	b.exec("INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor) SELECT nextval('task_event_id_seq'), task_id, now(), 2, 1, 'started', 'PENDING', 'RUNNING', 'dead' FROM task")
	b.exec("INSERT INTO outbox (lo, hi) SELECT id, id + 1 FROM task_event WHERE seq = 2")
	b.exec("INSERT INTO tally_delta (at, type, lane, event, was, now, n, run_ms) SELECT now(), 'AUTOMATED', 'task-execution-automated', 'started', 'PENDING', 'RUNNING', $1, 0", tasks)
	b.exec("INSERT INTO lease (task_id, job_id, attempt, kind, visibility_ms, expires_at, deadline_at, owner) SELECT task_id, job_id, 1, 'process', 1000, now(), now() + interval '1 hour', 'dead' FROM task")

	b.work(noop(does(`{}`, nil)))
	waitFor(t, "all to be done by somebody else", func() bool {
		return ask[int](b, "SELECT count(*) FROM task WHERE status = 'COMPLETED'") == tasks
	})
	flushes := ask[int](b, "SELECT count(DISTINCT o.id) FROM outbox o JOIN task_event e ON e.id >= o.lo AND e.id < o.hi WHERE e.type = 'retry'")
	require.Less(t, flushes, 20, "one commit a page or two, not one a task")
}

// Two processes move one task at the same moment: the second does not see the lease
// that the first has just made, and must not leave it behind.
func TestEndBesideAStartLeavesNoLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	executor := noop(func(ctx context.Context, _ Job) (Result, error) {
		<-ctx.Done()
		return Result{}, ctx.Err()
	})
	task := b.create()
	holder := b.hold(task)
	b.work(executor) // its start waits for the row
	b.waiting(1)
	cancelled := make(chan error, 1)
	go func() {
		_, err := other.Cancel(other.ctx, task.TaskID, Actor{Name: "orchestrator"})
		cancelled <- err
	}()
	b.waiting(2)
	holder.letGo()
	require.NoError(t, receive(t, cancelled))
	require.Equal(t, "created started canceled", b.story(task.TaskID))
	b.exec("UPDATE lease SET expires_at = now()")
	waitFor(t, "the lease to be swept", func() bool { return ask[int](b, "SELECT count(*) FROM lease") == 0 })
}

func TestLeaseLeftBehindDoesNotShadowTheNext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	runner := b.work(assigning("ann"))
	task := b.create(manual)
	b.becomes(task.TaskID, Assigned)
	runner.stop() // its sweep would help
	b.exec("INSERT INTO lease (task_id, job_id, attempt, kind, visibility_ms, expires_at, deadline_at, owner) VALUES ($1, 1, 7, 'person', 1000, now() + interval '1 day', now() + interval '1 day', 'nobody')", task.TaskID)
	_, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "ann"}, Update{Status: Running})
	require.NoError(t, err)
	task = b.get(task.TaskID)
	lease, err := b.q.LeaseGet(b.ctx, task.TaskID)
	require.NoError(t, err)
	require.Equal(t, task.Attempt, lease.Attempt)
	require.Equal(t, task.JobID, lease.JobID)
	require.Equal(t, "ann", lease.Owner)
}
