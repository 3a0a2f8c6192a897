package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/batch"
)

func TestAttemptSeesItsTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	seen := make(chan Job, 1)
	b.work(noop(func(_ context.Context, job Job) (Result, error) {
		seen <- job
		return Result{Output: json.RawMessage(`{"total": 3, "lines": [1, 2]}`)}, nil
	}))
	due := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	before := time.Now()
	task := b.create(timeout(time.Minute), priority(Critical), func(req *Request) {
		req.StepID, req.CorrelationID, req.Input, req.Context, req.DueDate = "step-1", "corr-1", json.RawMessage(`{"a": 1}`), json.RawMessage(`{"tenant": "x"}`), &due
	})
	job := receive(t, seen)
	require.WithinRange(t, job.Deadline, before.Add(time.Minute-time.Second), time.Now().Add(time.Minute))
	require.JSONEq(t, `{"a": 1}`, string(job.Input))
	require.JSONEq(t, `{"tenant": "x"}`, string(job.Context))
	job.Input, job.Context, job.Deadline, job.DueDate = nil, nil, time.Time{}, nil
	require.Equal(t, Job{
		TaskID: task.TaskID, Attempt: 1, WorkflowID: "wf-1", StepID: "step-1", DefinitionID: "adhoc", Name: "adhoc",
		Type: Automated, Priority: Critical, CorrelationID: "corr-1", Config: ExecutionConfig{Executor: "noop"}, CreatedAt: task.CreatedAt,
	}, job)
	task = b.becomes(task.TaskID, Completed)
	require.JSONEq(t, `{"total": 3, "lines": [1, 2]}`, string(task.Output))
	require.JSONEq(t, `{"outputSummary": {"total": 3}}`,
		ask[string](b, "SELECT payload FROM task_event WHERE task_id = $1 AND type = 'completed'", task.TaskID))
	require.Equal(t, "completed", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", task.JobID))
}

// A quick pure attempt leaves both of its events in one commit; a slow one, and one
// with effects, has its start written while it runs.
func TestStartIsWrittenWhenItMatters(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ pure, slow bool }{
		"quick and pure": {pure: true}, "slow and pure": {pure: true, slow: true}, "with effects": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			status := make(chan Status, 1)
			b.work(map[string]Registration{"noop": {Pure: tc.pure, Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
				if tc.slow {
					b.becomes(job.TaskID, Running)
				}
				if !tc.pure {
					status <- Status(b.get(job.TaskID).Status)
				}
				return Result{}, nil
			})}})
			task := b.create()
			task = b.becomes(task.TaskID, Completed)
			require.EqualValues(t, 3, task.Version)
			require.Equal(t, "created started completed", b.story(task.TaskID))
			if !tc.pure {
				require.Equal(t, Running, receive(t, status), "effects only once the start is written")
			}
		})
	}
}

func TestFailedAttempts(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		executor ExecutorFunc
		code     string
	}{
		"panic":                               {func(context.Context, Job) (Result, error) { panic("out of luck") }, "PANIC"},
		"goexit":                              {func(context.Context, Job) (Result, error) { runtime.Goexit(); return Result{}, nil }, "GOEXIT"},
		"plain error":                         {does("", errors.New("no")), CodeExecution},
		"own code":                            {does("", &Failure{Code: "E_OWN", Message: "no"}), "E_OWN"},
		"NUL in output":                       {does(`{"a": "\u0000"}`, nil), CodeOutput},
		"raw NUL":                             {does("{\"a\": \"\x00\"}", nil), CodeOutput},
		"half a document":                     {does(`{"a": `, nil), CodeOutput},
		"a number that jsonb would write out": {does(`{"a": 1e131071}`, nil), CodeOutput},
	} {
		for _, pure := range []bool{false, true} {
			t.Run(map[bool]string{false: "", true: "pure "}[pure]+name, func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				b.work(map[string]Registration{"noop": {Executor: tc.executor, Pure: pure}})
				task := b.create()
				task = b.becomes(task.TaskID, Failed)
				require.Equal(t, tc.code, codeOf(t, task))
				require.Equal(t, "created started failed", b.story(task.TaskID))
				require.Nil(t, task.Output)
			})
		}
	}
}

func TestPanicKeepsItsStackAndTheProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(noop(func(_ context.Context, job Job) (Result, error) {
		if job.StepID == "bad" {
			panic(errors.New("nil map"))
		}
		return Result{}, nil
	}))
	bad := b.create(policy(RetryPolicy{MaxRetries: 5}), func(req *Request) { req.StepID = "bad" })
	bad = b.becomes(bad.TaskID, Failed)
	require.EqualValues(t, 1, bad.Attempt, "code that panics would panic again")
	var problem Failure
	require.NoError(t, json.Unmarshal(bad.Error, &problem))
	require.Equal(t, "nil map", problem.Message)
	require.Contains(t, problem.StackTrace, "run_test.go")
	good := b.create()
	b.becomes(good.TaskID, Completed)
}

// A handler that ends its goroutine, as testing.T.FailNow does, gives its place back: here
// there is one place. It is not called again.
func TestGoexitFreesThePlace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(noop(func(_ context.Context, job Job) (Result, error) {
		if job.StepID == "bad" {
			runtime.Goexit()
		}
		return Result{}, nil
	}), func(cfg *RunnerConfig) { cfg.Slots = map[string]int{LaneAutomated: 1} })
	bad := b.create(policy(RetryPolicy{MaxRetries: 5}), func(req *Request) { req.StepID = "bad" })
	good := b.create()
	b.becomes(good.TaskID, Completed)
	bad = b.becomes(bad.TaskID, Failed)
	require.Equal(t, "GOEXIT", codeOf(t, bad))
	require.EqualValues(t, 1, bad.Attempt, "code that ended its goroutine would do so again")
}

func TestTextThatJSONBCannotHoldIsMadeFit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(noop(does("", &Failure{Code: "E\x00", Message: "a\x00b\xffc", StackTrace: "\x00", Details: json.RawMessage(`{"a": "\u0000"}`)})))
	task := b.create()
	task = b.becomes(task.TaskID, Failed)
	require.Equal(t, "E\uFFFD", codeOf(t, task))
	require.NotContains(t, string(task.Error), "details")
}

// The timer that writes a start and the executor's return meet: whoever is second
// must see what the first has done, even when its write is the first to arrive.
func TestStartBehindAFusedEndIsNotWritten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// One flusher without a reserve: a later item waits, however late the first flush is.
	b.completes = batch.New(b.flushCompletes, batch.Config[*completion]{MaxItems: flushMost})
	go1, go2 := make(chan struct{}), make(chan struct{})
	b.work(map[string]Registration{"noop": {Pure: true, Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
		if job.StepID == "1" {
			<-go1
		} else {
			<-go2
		}
		return Result{}, nil
	})}})
	blocker := b.create(func(req *Request) { req.StepID = "1" })
	b.becomes(blocker.TaskID, Running)
	holder := b.hold(blocker)
	close(go1)
	b.waiting(1) // the flusher of results is busy now, and the next result waits for it

	close(go2)
	task := b.create()
	waitFor(t, "its result to be handed in", func() bool {
		return b.completes.Waiting() == 1
	})
	started := make(chan bool, 1)
	go func() { started <- b.running(task).start() }() // the timer, a moment late
	select {
	case <-started:
	case <-time.After(200 * time.Millisecond): // it may rightly wait for the end
	}
	holder.letGo()
	b.becomes(task.TaskID, Completed)
	b.becomes(blocker.TaskID, Completed)
	require.Equal(t, "created started completed", b.story(task.TaskID))
	require.EqualValues(t, 1, b.get(task.TaskID).Attempt)
}

// A statement that was too slow for the server is no verdict about the task.
func TestStatementTimeoutLosesNothing(t *testing.T) {
	t.Parallel()
	for name, pure := range map[string]bool{"start": false, "fused end": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			hasty := hastyPool(t, b.pool)
			p := join(t, hasty, "hasty")
			task := b.create()
			holder := b.hold(task)
			p.work(map[string]Registration{"noop": {Pure: pure, Executor: does(`{}`, nil)}})
			waitFor(t, "the server to give up", func() bool {
				return p.log.says("57014")
			})
			holder.letGo()
			task = b.becomes(task.TaskID, Completed)
			require.Equal(t, "created started completed", b.story(task.TaskID))
		})
	}
}
