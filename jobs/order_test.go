package jobs

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

func oneAtATime(cfg *RunnerConfig) {
	cfg.Slots = map[string]int{LaneAutomated: 1, LaneRetry: 1, LaneIntegration: 1, LaneManual: 1}
}

func (b *testBundle) pauseLane(lane string) {
	b.t.Helper()
	require.EqualValues(b.t, 1, b.exec("UPDATE river_queue SET paused_at = now() WHERE name = $1", lane))
}

func (b *testBundle) resumeLane(lane string) {
	b.t.Helper()
	require.EqualValues(b.t, 1, b.exec("UPDATE river_queue SET paused_at = NULL WHERE name = $1", lane))
}

// "Based on task priority", in each of the standard queues.
func TestCriticalBeforeLowAndOldBeforeNew(t *testing.T) {
	t.Parallel()
	for lane, kind := range map[string]func(*Request){LaneAutomated: func(*Request) {}, LaneIntegration: elsewhere, LaneManual: manual} {
		t.Run(lane, func(t *testing.T) {
			t.Parallel()
			criticalFirst(t, lane, kind)
		})
	}
}

func criticalFirst(t *testing.T, lane string, kind func(*Request)) {
	t.Helper()
	b := setup(t)
	var want []string
	for _, p := range []Priority{Low, Medium, High, Critical} {
		for range 2 {
			task := b.create(kind, priority(p))
			if p != Low {
				continue
			}
			want = append(want, task.TaskID.String())
		}
	}
	require.Equal(t, 8, ask[int](b, "SELECT count(*) FROM river_job WHERE queue = $1", lane))
	order := make(chan Job, 8)
	does := func(result Result) Executor {
		return ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
			order <- job
			return result, nil
		})
	}
	b.work(map[string]Registration{
		"noop": {Executor: does(Result{})}, "integration": {Executor: does(Result{})},
		"manual": {Executor: does(Result{Assign: &Assignment{AssigneeID: "ann"}}), Assigns: true},
	}, oneAtATime)
	var ran []Priority
	var low []string
	for range 8 {
		job := receive(t, order)
		ran = append(ran, job.Priority)
		if job.Priority == Low {
			low = append(low, job.TaskID.String())
		}
	}
	require.Equal(t, []Priority{Critical, Critical, High, High, Medium, Medium, Low, Low}, ran)
	require.Equal(t, want, low, "in the order in which they were made")
}

// Under River's strict order LOW would wait until the last CRITICAL is done, and
// here each makes another.
func TestLowIsLateButNotStarved(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var over atomic.Bool
	started := make(chan struct{})
	executor := noop(func(ctx context.Context, job Job) (Result, error) {
		if job.Priority == Low {
			close(started)
			return Result{}, nil
		}
		if !over.Load() {
			_, _, err := b.Create(ctx, request(priority(Critical)))
			return Result{}, err
		}
		return Result{}, nil
	})
	for range 10 {
		b.create(priority(Critical))
	}
	low := b.create(priority(Low))
	b.work(executor, oneAtATime, func(cfg *RunnerConfig) { cfg.AgeStep = 300 * time.Millisecond })
	receive(t, started)
	require.Positive(t, ask[int](b, "SELECT count(*) FROM task WHERE priority = 1 AND status = 'PENDING'"), "the load was there all the time")
	over.Store(true)
	task := b.becomes(low.TaskID, Completed)
	require.Equal(t, Low.Rank(), task.Priority, "the task keeps its own")
	waitFor(t, "the rest", func() bool { return ask[int](b, "SELECT count(*) FROM task WHERE status <> 'COMPLETED'") == 0 })
}

func TestPausedLaneStartsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.pauseLane(LaneAutomated)
	task := b.create()
	rows, err := b.q.LaneClaim(b.ctx, db.LaneClaimParams{Lane: LaneAutomated, Kind: KindAutomated, Becomes: KindAutomated, Slots: 10, ExecutorID: "p1"})
	require.NoError(t, err)
	require.Empty(t, rows)

	// The lanes beside it go on.
	b.work(map[string]Registration{
		"noop":        {Executor: does(`{}`, nil)},
		"integration": {Executor: does(`{}`, nil)},
	})
	other := b.create(elsewhere)
	b.becomes(other.TaskID, Completed)
	require.Equal(t, Pending, Status(b.get(task.TaskID).Status))

	b.resumeLane(LaneAutomated)
	b.becomes(task.TaskID, Completed)
}

// What only remote workers may take is left to them, however much of it waits.
func TestRemoteWorkIsLeftToWorkers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var left []db.Task
	for range 5 {
		left = append(left, b.create(remote, priority(Critical)))
	}
	b.work(noop(does(`{}`, nil)), oneAtATime)
	task := b.create(priority(Low))
	b.becomes(task.TaskID, Completed)
	for _, task := range left {
		require.Equal(t, Pending, Status(b.get(task.TaskID).Status))
	}
}

func TestRetriesDoNotWaitBehindAFullLane(t *testing.T) {
	t.Parallel()
	b := setup(t)
	full, finish := make(chan struct{}, 1), make(chan struct{})
	b.work(noop(func(ctx context.Context, job Job) (Result, error) {
		switch {
		case job.StepID == "retry" && job.Attempt == 1:
			return Result{}, &Failure{Code: "E"}
		case job.StepID != "retry":
			full <- struct{}{}
			<-finish
		}
		return Result{}, nil
	}), oneAtATime)
	task := b.create(policy(RetryPolicy{MaxRetries: 1, RetryInterval: 500}), func(req *Request) { req.StepID = "retry" })
	b.until(task.TaskID, "waiting for its retry", func(task db.Task) bool { return task.NextRetryAt != nil })
	blocker := b.create()
	receive(t, full)
	b.becomes(task.TaskID, Completed)
	close(finish)
	b.becomes(blocker.TaskID, Completed)
}
