package jobs

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A process that is stopped while it starts ends without an error.
func TestStopBeforeTheStartIsNoError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	require.NoError(t, NewRunner(b.Tasks, RunnerConfig{}).Run(ctx, 0))
}

func TestStopLetsWhatRunsFinish(t *testing.T) {
	t.Parallel()
	b := setup(t)
	taken, finish := make(chan struct{}), make(chan struct{})
	runner := b.workWithGrace(time.Minute, noop(func(context.Context, Job) (Result, error) {
		close(taken)
		<-finish
		return Result{}, nil
	}))
	task := b.create()
	receive(t, taken)
	stopped := make(chan struct{})
	go func() { runner.stop(); close(stopped) }()
	waitFor(t, "it to stop claiming", func() bool { return !runner.claimers[0].wake() })
	runner.claims.Wait() // a claim that was under way may see what comes meanwhile
	late := b.create()
	close(finish)
	receive(t, stopped)
	require.Equal(t, Completed, Status(b.get(task.TaskID).Status))
	require.Equal(t, Pending, Status(b.get(late.TaskID).Status))
	require.Zero(t, ask[int](b, "SELECT count(*) FROM executor"), "it has said goodbye")
}

func TestStopGivesBackWhatDoesNotFinish(t *testing.T) {
	t.Parallel()
	for name, pure := range map[string]bool{"with effects": false, "pure": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			taken, cause := make(chan struct{}), make(chan error, 1)
			runner := b.work(map[string]Registration{"noop": {Pure: pure, Executor: ExecutorFunc(func(ctx context.Context, _ Job) (Result, error) {
				close(taken)
				<-ctx.Done()
				cause <- context.Cause(ctx)
				return Result{}, ctx.Err()
			})}})
			task := b.create() // no retries: none is spent
			receive(t, taken)
			runner.stop()
			require.ErrorIs(t, receive(t, cause), ErrStopping)
			task = b.get(task.TaskID)
			require.Equal(t, Pending, Status(task.Status))
			require.Zero(t, task.Failures)
			require.Zero(t, task.Crashes)
			require.Equal(t, "created started released", b.story(task.TaskID))

			join(t, b.pool, "p2").work(noop(does(`{}`, nil)))
			b.becomes(task.TaskID, Completed)
		})
	}
}

// Nobody can end a goroutine: the process leaves, and the lease runs out.
func TestStopDoesNotWaitForExecutorsThatDoNotObey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	taken, finish := make(chan struct{}), make(chan struct{})
	runner := b.work(noop(func(context.Context, Job) (Result, error) {
		close(taken)
		<-finish
		return Result{}, nil
	}))
	task := b.create()
	receive(t, taken)
	runner.stop()
	require.Equal(t, Running, Status(b.get(task.TaskID).Status))
	require.True(t, b.log.says("executors did not return after their contexts ended"))

	b.expire(task.TaskID)
	join(t, b.pool, "p2").work(noop(does(`{"by": 2}`, nil)))
	task = b.becomes(task.TaskID, Completed)
	close(finish)
	waitFor(t, "it to return at last", func() bool { return b.running(task) == nil })
	require.JSONEq(t, `{"by": 2}`, string(b.get(task.TaskID).Output))
}
