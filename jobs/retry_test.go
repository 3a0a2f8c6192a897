package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

func TestFailureWaitsInTheRetryLane(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		policy RetryPolicy
		state  string // a job due within five seconds needs no leader to become available
	}{
		"soon":  {RetryPolicy{MaxRetries: 3, RetryInterval: 4000, BackoffMultiplier: 2}, "available"},
		"later": {RetryPolicy{MaxRetries: 3, RetryInterval: 60_000, BackoffMultiplier: 2}, "scheduled"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.work(noop(does("", &Failure{Code: "E_BUSY", Message: "busy"})))
			task := b.create(policy(tc.policy), priority(High))
			task = b.until(task.TaskID, "waiting for its retry", func(task db.Task) bool { return task.NextRetryAt != nil })
			require.Equal(t, db.TaskStatusPENDING, task.Status)
			require.Equal(t, db.TaskLaneTaskExecutionRetry, task.Lane)
			require.EqualValues(t, 1, task.Failures)
			require.Equal(t, "E_BUSY", codeOf(t, task))
			require.Equal(t, "created started retry", b.story(task.TaskID))

			ended := ask[time.Time](b, "SELECT ended_at FROM task_attempt WHERE task_id = $1", task.TaskID)
			interval := time.Duration(tc.policy.RetryInterval) * time.Millisecond
			require.InDelta(t, interval, task.NextRetryAt.Sub(ended), float64(interval/10)+float64(time.Millisecond))

			var job struct {
				State, Queue, Kind string
				Priority           int16
				At                 time.Time
				Args               json.RawMessage
			}
			require.NoError(t, b.pool.QueryRow(b.ctx, "SELECT state::text, queue, kind, priority, scheduled_at, args FROM river_job WHERE id = $1", task.JobID).
				Scan(&job.State, &job.Queue, &job.Kind, &job.Priority, &job.At, &job.Args))
			require.Equal(t, tc.state, job.State)
			require.Equal(t, LaneRetry, job.Queue)
			require.Equal(t, KindAutomated, job.Kind)
			require.Equal(t, High.Rank(), job.Priority)
			require.Equal(t, task.NextRetryAt.UTC(), job.At.UTC())
			require.JSONEq(t, `{"task_id": "`+task.TaskID.String()+`", "attempt": 2, "timeout_ms": 300000}`, string(job.Args))

			var note outbox.RetryNote
			require.NoError(t, json.Unmarshal([]byte(ask[string](b, "SELECT payload FROM task_event WHERE task_id = $1 AND type = 'retry'", task.TaskID)), &note))
			require.Equal(t, 1, note.RetryCount)
			require.Equal(t, 3, note.MaxRetries)
			require.Equal(t, task.NextRetryAt.UTC(), note.NextRetryTime.UTC())
			require.InDelta(t, interval.Milliseconds(), note.RetryDelay, float64(interval.Milliseconds()/10)+1)
		})
	}
}

// Who failed may ask to be left alone for a while. The policy's longest wait bounds it.
func TestRetryWaitsAsLongAsItWasAsked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(noop(does("", &Failure{Code: "HTTP_429", After: 20 * time.Second})))
	for longest, want := range map[int64]time.Duration{0: 20 * time.Second, 15_000: 15 * time.Second, 3_600_000: 20 * time.Second} {
		task := b.create(policy(RetryPolicy{MaxRetries: 1, RetryInterval: 1, MaxRetryInterval: longest}))
		task = b.until(task.TaskID, "waiting for its retry", func(task db.Task) bool { return task.NextRetryAt != nil })
		ended := ask[time.Time](b, "SELECT ended_at FROM task_attempt WHERE task_id = $1", task.TaskID)
		require.Equal(t, want, task.NextRetryAt.Sub(ended).Round(time.Millisecond))
	}
}

// No River client runs in these tests, so nobody leads: a short retry must not need
// anybody to.
func TestShortRetryRunsInTimeWithoutALeader(t *testing.T) {
	t.Parallel()
	b := setup(t)
	times := make(chan time.Time, 3)
	b.work(noop(func(_ context.Context, job Job) (Result, error) {
		times <- time.Now()
		if job.Attempt < 3 {
			return Result{}, errors.New("not yet")
		}
		return Result{}, nil
	}))
	task := b.create(policy(RetryPolicy{MaxRetries: 3, RetryInterval: 100, BackoffMultiplier: 3}))
	first, second, third := receive(t, times), receive(t, times), receive(t, times)
	require.GreaterOrEqual(t, second.Sub(first), 90*time.Millisecond)
	require.GreaterOrEqual(t, third.Sub(second), 270*time.Millisecond)
	task = b.becomes(task.TaskID, Completed)
	require.Nil(t, task.Error)
	require.Nil(t, task.NextRetryAt)
	require.EqualValues(t, 2, task.Failures)
	require.EqualValues(t, 3, task.Attempt)
	require.Equal(t, "created started retry started retry started completed", b.story(task.TaskID))
}

func TestRetriesAreSpentAndThenTheTaskIsADeadLetter(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(noop(does("", errors.New("always"))))
	task := b.create(policy(RetryPolicy{MaxRetries: 2}))
	task = b.becomes(task.TaskID, Failed)
	require.Equal(t, CodeExecution, codeOf(t, task))
	require.EqualValues(t, 3, task.Failures)
	require.NotNil(t, task.EndedAt)
	require.Nil(t, task.NextRetryAt)
	require.Equal(t, "created started retry started retry started failed", b.story(task.TaskID))
	require.Equal(t, 3, ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'discarded' AND errors[1] ->> 'error' = 'EXECUTION_ERROR'"))
}

func TestPolicyNamesWhatIsRetried(t *testing.T) {
	t.Parallel()
	listed := RetryPolicy{MaxRetries: 1, RetryableErrors: []string{"E_LISTED"}}
	for name, tc := range map[string]struct {
		policy   RetryPolicy
		failure  *Failure
		attempts int32
	}{
		"listed":                       {listed, &Failure{Code: "E_LISTED"}, 2},
		"not listed":                   {listed, &Failure{Code: "E_OTHER"}, 1},
		"listed but marked final":      {listed, &Failure{Code: "E_LISTED", Retryable: ptr(false)}, 1},
		"no list, not marked":          {RetryPolicy{MaxRetries: 1}, &Failure{Code: "E_OTHER"}, 2},
		"no list, marked final":        {RetryPolicy{MaxRetries: 1}, &Failure{Code: "E_OTHER", Retryable: ptr(false)}, 1},
		"an empty list retries none":   {RetryPolicy{MaxRetries: 1, RetryableErrors: []string{}}, &Failure{Code: "E_OTHER"}, 1},
		"marked retryable, none left":  {RetryPolicy{}, &Failure{Code: "E_OTHER", Retryable: ptr(true)}, 1},
		"a failure without a code too": {RetryPolicy{MaxRetries: 1}, &Failure{Message: "no code"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.work(noop(does("", tc.failure)))
			task := b.create(policy(tc.policy))
			task = b.becomes(task.TaskID, Failed)
			require.Equal(t, tc.attempts, task.Attempt)
			require.NotEmpty(t, codeOf(t, task))
		})
	}
}

// A neighbour that is away is nobody's failure: the task waits in its own lane, and
// the next try is the same attempt, so that the neighbour knows it by its key.
func TestOutageSpendsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tries := make(chan Job, 2)
	b.work(noop(func(_ context.Context, job Job) (Result, error) {
		tries <- job
		if len(tries) == 1 {
			return Result{}, &Outage{PeerService: "integration", Err: errors.New("refused")}
		}
		return Result{}, nil
	}))
	task := b.create() // no retries: none is needed
	task = b.until(task.TaskID, "given back", func(task db.Task) bool { return task.Version == 3 })
	require.Equal(t, db.TaskStatusPENDING, task.Status)
	require.Zero(t, task.Attempt)
	require.Zero(t, task.Failures)
	require.Zero(t, task.Crashes)
	require.Equal(t, db.TaskLaneTaskExecutionAutomated, task.Lane)
	require.Equal(t, "created started released", b.story(task.TaskID))
	wait := ask[time.Time](b, "SELECT scheduled_at FROM river_job WHERE id = $1", task.JobID).
		Sub(ask[time.Time](b, "SELECT at FROM task_event WHERE task_id = $1 AND type = 'released'", task.TaskID))
	require.Equal(t, outageDelay, wait)
	require.Equal(t, "available", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", task.JobID))

	b.exec("UPDATE river_job SET scheduled_at = now() WHERE id = $1", task.JobID)
	task = b.becomes(task.TaskID, Completed)
	require.Equal(t, "created started released started completed", b.story(task.TaskID))
	require.EqualValues(t, 1, task.Attempt)
	require.Equal(t, receive(t, tries).Attempt, receive(t, tries).Attempt)
	require.Equal(t, "0 1 1 1 1", ask[string](b, "SELECT string_agg(attempt::text, ' ' ORDER BY seq) FROM task_event WHERE task_id = $1", task.TaskID))
}
