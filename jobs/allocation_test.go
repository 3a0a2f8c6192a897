package jobs

import (
	"context"
	"encoding/json"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAttemptGetsItsResources(t *testing.T) {
	t.Parallel()
	b := setup(t)
	seen := make(chan Job, 9)
	asked := make(chan Job, 9)
	allocate := func(_ context.Context, job Job) (Allocation, error) {
		asked <- job
		if job.StepID == "greedy" {
			no := false
			return Allocation{}, &Failure{Code: "RESOURCES_EXHAUSTED", Message: "there is no more", Retryable: &no}
		}
		require.Equal(t, "PENDING", ask[string](b, "SELECT status FROM task WHERE task_id = $1", job.TaskID), "the attempt's time has not begun")
		return Allocation{ID: "a-1", CPU: job.Config.ResourceRequirements.CPU, Memory: "128Mi", Disk: "500Mi"}, nil
	}
	b.work(map[string]Registration{"noop": {Pure: true, Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
		seen <- job
		return Result{Output: json.RawMessage(`{}`)}, nil
	})}}, func(cfg *RunnerConfig) { cfg.Allocate = allocate })
	needs := func(req *Request) { req.Config.ResourceRequirements = &ResourceRequirements{CPU: "2"} }

	b.becomes(b.create(needs).TaskID, Completed)
	require.Equal(t, &Allocation{"a-1", "2", "128Mi", "500Mi"}, receive(t, seen).Allocation)
	require.Equal(t, 1, receive(t, asked).Attempt)
	require.True(t, b.log.says("cpu=2 memory=128Mi disk=500Mi allocation=a-1"))

	b.becomes(b.create().TaskID, Completed)
	require.Nil(t, receive(t, seen).Allocation)
	require.Empty(t, asked, "who requires nothing is not asked about")

	task := b.becomes(b.create(needs, func(req *Request) { req.StepID = "greedy" }).TaskID, Failed)
	require.Equal(t, "RESOURCES_EXHAUSTED", codeOf(t, task))
	require.Empty(t, seen)
}

// The time that a Resource Service takes is not the attempt's.
func TestAllocationLeavesTheAttemptItsTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	allocate := func(context.Context, Job) (Allocation, error) {
		began := time.Now()
		waitFor(t, "the timeout to pass", func() bool { return time.Since(began) > 600*time.Millisecond })
		return Allocation{CPU: "1"}, nil
	}
	b.work(noop(does("{}", nil)), func(cfg *RunnerConfig) { cfg.Allocate = allocate })
	task := b.create(timeout(500*time.Millisecond), func(req *Request) { req.Config.ResourceRequirements = &ResourceRequirements{CPU: "1"} })
	task = b.becomes(task.TaskID, Completed)
	require.EqualValues(t, 1, task.Attempt)
}

func TestAllocationThatDoesNotReturnFailsTheAttempt(t *testing.T) {
	t.Parallel()
	for code, allocate := range map[string]func(){"PANIC": func() { panic("out of luck") }, "GOEXIT": runtime.Goexit} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.work(noop(does("{}", nil)), func(cfg *RunnerConfig) {
				cfg.Slots = map[string]int{LaneAutomated: 1}
				cfg.Allocate = func(context.Context, Job) (Allocation, error) { allocate(); return Allocation{}, nil }
			})
			task := b.create(func(req *Request) { req.Config.ResourceRequirements = &ResourceRequirements{CPU: "1"} })
			require.Equal(t, code, codeOf(t, b.becomes(task.TaskID, Failed)))
			b.becomes(b.create().TaskID, Completed)
		})
	}
}

func TestStopGivesBackWhatAsksForResources(t *testing.T) {
	t.Parallel()
	b := setup(t)
	asked := make(chan struct{})
	runner := b.work(noop(does("{}", nil)), func(cfg *RunnerConfig) {
		cfg.Allocate = func(ctx context.Context, _ Job) (Allocation, error) {
			close(asked)
			<-ctx.Done()
			return Allocation{}, ctx.Err()
		}
	})
	task := b.create(func(req *Request) { req.Config.ResourceRequirements = &ResourceRequirements{CPU: "1"} })
	receive(t, asked)
	runner.stop()
	task = b.get(task.TaskID)
	require.Equal(t, Pending, Status(task.Status))
	require.Zero(t, task.Failures)
	require.Zero(t, ask[int](b, "SELECT count(*) FROM task_attempt"), "none is spent")
}
