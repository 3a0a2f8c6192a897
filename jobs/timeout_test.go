package jobs

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

func TestTimeoutIsRetriedAndThenFinal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	causes := make(chan error, 2)
	b.work(noop(func(ctx context.Context, _ Job) (Result, error) {
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return Result{}, ctx.Err()
	}))
	task := b.create(timeout(30*time.Millisecond), policy(RetryPolicy{MaxRetries: 1}))
	for range 2 {
		require.ErrorIs(t, receive(t, causes), context.DeadlineExceeded)
	}
	task = b.becomes(task.TaskID, TimedOut)
	require.Equal(t, CodeTimeout, codeOf(t, task))
	require.EqualValues(t, 2, task.Failures)
	require.Equal(t, "created started retry started failed", b.story(task.TaskID))
	require.Equal(t, db.TaskLaneTaskExecutionDeadletter, task.Lane)
	require.Equal(t, "TIMED_OUT TIMED_OUT", ask[string](b, "SELECT string_agg(outcome::text, ' ') FROM task_attempt WHERE task_id = $1", task.TaskID))
}

func TestExecutorThatIgnoresItsContextTimesOutAllTheSame(t *testing.T) {
	t.Parallel()
	for name, pure := range map[string]bool{"with effects": false, "pure": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			ignored, returned := make(chan struct{}), make(chan struct{})
			stubborn := map[string]Registration{"noop": {Pure: pure, Executor: ExecutorFunc(func(context.Context, Job) (Result, error) {
				defer close(returned)
				<-ignored
				return Result{Output: []byte(`{"late": true}`)}, nil
			})}}
			runner := b.work(stubborn)
			task := b.create(timeout(30 * time.Millisecond))
			task = b.becomes(task.TaskID, TimedOut)
			waitFor(t, "its place to be free again", func() bool { return busy(runner) == 0 })
			close(ignored)
			receive(t, returned)
			runner.stop()
			require.Equal(t, task, b.get(task.TaskID), "the late result changed nothing")
			require.Zero(t, busy(runner), "and its place was freed once")
		})
	}
}

// The reaper writes the timeout of an attempt whose process is gone.
func TestDeadlineOfADeadProcessIsATimeout(t *testing.T) {
	t.Parallel()
	b := setup(t)
	taken := make(chan int, 9)
	b.work(noop(func(ctx context.Context, job Job) (Result, error) {
		taken <- job.Attempt
		<-ctx.Done()
		return Result{}, ctx.Err()
	}))
	task := b.create()
	receive(t, taken)
	b.exec("UPDATE lease SET expires_at = now(), deadline_at = now() WHERE task_id = $1", task.TaskID)
	task = b.becomes(task.TaskID, TimedOut)
	require.Equal(t, CodeTimeout, codeOf(t, task))
	require.EqualValues(t, 1, task.Failures)
	require.Zero(t, task.Crashes)
}

// A deadline should say whose it was: an executor that gave up on a neighbour has
// not used up its attempt's time.
func TestDeadlineOfTheExecutorsOwnIsNoTimeout(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(noop(does("", fmt.Errorf("ask the neighbour: %w", context.DeadlineExceeded))))
	task := b.create()
	task = b.becomes(task.TaskID, Failed)
	require.NotEqual(t, CodeTimeout, codeOf(t, task))
}

// Time that a neighbour's outage used up is not the attempt's: the task goes back to its
// lane. Once the neighbour has answered, it is.
func TestTimeoutDuringAnOutageSpendsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	answers := make(chan bool, 1)
	b.work(noop(func(ctx context.Context, _ Job) (Result, error) {
		ReportOutage(ctx, &Outage{PeerService: "integration", Err: errors.New("refused")})
		if <-answers {
			ReportOutage(ctx, nil)
		}
		<-ctx.Done()
		return Result{}, ctx.Err()
	}), stalled) // no reaper: on a busy machine one would see the end of the lease before the release
	task := b.create(timeout(time.Second))
	answers <- false
	task = b.until(task.TaskID, "given back", func(task db.Task) bool { return task.Version == 3 })
	require.Equal(t, "created started released", b.story(task.TaskID))
	require.Equal(t, db.TaskStatusPENDING, task.Status)
	require.Zero(t, task.Attempt)
	require.Zero(t, task.Failures)

	answers <- true
	b.exec("UPDATE river_job SET scheduled_at = now() WHERE id = $1", task.JobID)
	task = b.becomes(task.TaskID, TimedOut)
	require.EqualValues(t, 1, task.Failures)
}

// A request that hangs from the first to the attempt's end is an outage where its client
// says so, and else the task's own slowness.
func TestARequestThatHangsToTheEndIsAnOutageIfItsClientSaysSo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	answers := make(chan *Outage, 1)
	b.work(noop(func(ctx context.Context, _ Job) (Result, error) {
		ReportRequest(ctx, func() *Outage { return <-answers })
		<-ctx.Done()
		return Result{}, ctx.Err()
	}), stalled) // no reaper: on a busy machine one would see the end of the lease before the release
	task := b.create(timeout(time.Second))
	answers <- &Outage{PeerService: "integration", Err: errors.New("hangs")}
	task = b.until(task.TaskID, "given back", func(task db.Task) bool { return task.Version == 3 })
	require.Equal(t, "created started released", b.story(task.TaskID))
	require.Zero(t, task.Attempt)
	require.Zero(t, task.Failures)

	answers <- nil
	b.exec("UPDATE river_job SET scheduled_at = now() WHERE id = $1", task.JobID)
	task = b.becomes(task.TaskID, TimedOut)
	require.EqualValues(t, 1, task.Failures)
}

// Whose turn it is comes of no attempt: a directory that is slow leads to the defaults,
// and not to a timeout.
func TestAssignmentHasNoTimeout(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(map[string]Registration{"manual": {Assigns: true, Executor: ExecutorFunc(func(ctx context.Context, job Job) (Result, error) {
		if !job.Deadline.IsZero() {
			return Result{}, errors.New("there is a deadline")
		}
		began := time.Now()
		waitFor(t, "the timeout to pass", func() bool { return time.Since(began) > 100*time.Millisecond })
		return Result{Assign: &Assignment{AssigneeID: "ann"}}, ctx.Err()
	})}})
	task := b.create(timeout(20*time.Millisecond), func(req *Request) { req.TaskType, req.Config.Executor = Manual, "manual" })
	b.becomes(task.TaskID, Assigned)
}

func TestTimeoutWhileTheStartWaitsFreesThePlaceOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(timeout(50 * time.Millisecond))
	holder := b.hold(task)
	runner := b.work(noop(does("", errors.New("never reached"))))
	b.waiting(1)
	// The attempt's time passes while its start waits; then the start is refused.
	cancelled := make(chan error, 1)
	go func() {
		_, err := join(t, b.pool, "p2").Cancel(b.ctx, task.TaskID, Actor{Name: "orchestrator"})
		cancelled <- err
	}()
	waitFor(t, "the timeout to be on its way", func() bool {
		r := b.running(task)
		return r != nil && r.ended.Load()
	})
	holder.letGo()
	receive(t, cancelled)
	waitFor(t, "its place to be free again", func() bool { return b.running(task) == nil })
	runner.stop()
	require.Zero(t, busy(runner))
}

// busy counts the places that are taken.
func busy(w *working) (n int) {
	for _, c := range w.claimers {
		c.mu.Lock()
		n += c.busy
		c.mu.Unlock()
	}
	return n
}

// running is the attempt at the task in this process, if there is one.
func (b *testBundle) running(task db.Task) *run {
	b.Tasks.running.mu.Lock()
	defer b.Tasks.running.mu.Unlock()
	return b.Tasks.running.runs[task.TaskID]
}
