package jobs

import (
	"context"
	"encoding/json"
	"runtime"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// awaiting hands its work to another system, which knows it by an id for each
// attempt.
func awaiting(context.Context, Job) (Result, error) {
	return Result{Await: &Await{InvocationID: "inv-1"}}, nil
}

// awaits is a task that waits for a response.
func (b *testBundle) awaits(change ...func(*Request)) db.Task {
	b.t.Helper()
	b.work(map[string]Registration{"integration": {Executor: ExecutorFunc(awaiting)}})
	task := b.create(append([]func(*Request){elsewhere}, change...)...)
	b.untilAwaiting(task)
	return b.get(task.TaskID)
}

func (b *testBundle) untilAwaiting(task db.Task) {
	b.t.Helper()
	waitFor(b.t, "the task to wait for a response", func() bool {
		return ask[int](b, "SELECT count(*) FROM lease WHERE task_id = $1 AND kind = 'response'", task.TaskID) == 1
	})
}

func answer(task db.Task, change ...func(*outbox.IntegrationResponse)) outbox.IntegrationResponse {
	in := outbox.IntegrationResponse{
		TaskID: task.TaskID.String(), InvocationID: "inv-1", IntegrationID: "books", Status: "SUCCESS", Data: json.RawMessage(`{"invoice": 7}`),
	}
	for _, fn := range change {
		fn(&in)
	}
	return in
}

func TestResponseCompletesTheTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.awaits()
	require.Equal(t, Running, Status(task.Status))
	require.Equal(t, "completed", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", task.JobID), "waiting holds no job")
	require.Zero(t, ask[int](b, "SELECT count(*) FROM lease WHERE expires_at <> deadline_at"))

	said, err := b.Respond(b.ctx, answer(task))
	require.NoError(t, err)
	require.Equal(t, "completed", said)
	task = b.get(task.TaskID)
	require.Equal(t, Completed, Status(task.Status))
	require.JSONEq(t, `{"invoice": 7}`, string(task.Output))
	require.Equal(t, "created started completed", b.story(task.TaskID))
	require.Equal(t, "integration:books", ask[string](b, "SELECT actor FROM task_event WHERE task_id = $1 AND type = 'completed'", task.TaskID))
	require.Equal(t, "p1", ask[string](b, "SELECT executor_id FROM task_attempt WHERE task_id = $1", task.TaskID), "who ran it is who asked")

	said, err = b.Respond(b.ctx, answer(task, func(in *outbox.IntegrationResponse) { in.Data = json.RawMessage(`{"invoice": 8}`) }))
	require.NoError(t, err)
	require.Equal(t, "late", said, "told twice, heard once")
	require.Equal(t, task, b.get(task.TaskID))
}

func TestResponseThatIsNoObjectBecomesOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for data, want := range map[string]string{` [1, 2] `: `{"data": [1, 2]}`, `7`: `{"data": 7}`, `"x"`: `{"data": "x"}`, ` {"a": 1}`: `{"a": 1}`} {
		task := b.awaits()
		_, err := b.Respond(b.ctx, answer(task, func(in *outbox.IntegrationResponse) { in.Data = json.RawMessage(data) }))
		require.NoError(t, err)
		require.JSONEq(t, want, string(b.get(task.TaskID).Output))
	}
}

func TestResponsesThatFindNobodyWaiting(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.awaits()
	cancelled := b.create(remote)
	_, err := b.Cancel(b.ctx, cancelled.TaskID, Actor{})
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		in   outbox.IntegrationResponse
		want string
	}{
		"unknown task":     {answer(db.Task{TaskID: uuid.New()}), "unknown"},
		"no task id":       {outbox.IntegrationResponse{TaskID: "order-7"}, "unknown"},
		"wrong invocation": {answer(task, func(in *outbox.IntegrationResponse) { in.InvocationID = "inv-0" }), "late"},
		"ended":            {answer(cancelled), "late"},
	} {
		said, err := b.Respond(b.ctx, tc.in)
		require.NoError(t, err, name)
		require.Equal(t, tc.want, said, name)
	}
	require.Equal(t, task, b.get(task.TaskID))
}

// A system can be quicker with its answer than with its 202.
func TestEarlyResponseIsHeardAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.pauseLane(LaneIntegration)
	task := b.create(elsewhere)
	_, err := b.Respond(b.ctx, answer(task))
	require.ErrorIs(t, err, ErrNotYet, "it has not been asked yet")

	asked, answered := make(chan struct{}), make(chan struct{})
	b.work(map[string]Registration{"integration": {Executor: ExecutorFunc(func(ctx context.Context, job Job) (Result, error) {
		close(asked)
		<-answered
		return awaiting(ctx, job)
	})}})
	b.resumeLane(LaneIntegration)
	receive(t, asked)
	_, err = b.Respond(b.ctx, answer(task))
	require.ErrorIs(t, err, ErrNotYet, "its 202 is on its way")
	close(answered)
	b.untilAwaiting(task)
	said, err := b.Respond(b.ctx, answer(task))
	require.NoError(t, err)
	require.Equal(t, "completed", said)
}

// The second attempt was accepted, the 202 was lost, and the neighbour counts as away:
// the attempt is given back, and its answer is not late.
func TestResponseToAnAttemptThatWasGivenBackIsHeardAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(map[string]Registration{"integration": {Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
		if job.Attempt == 1 {
			return Result{}, &Failure{Code: "CONNECTION_ERROR", Message: "x"}
		}
		return Result{}, &Outage{PeerService: "integration", Err: context.DeadlineExceeded}
	})}})
	task := b.create(elsewhere, policy(RetryPolicy{MaxRetries: 3, RetryInterval: 1}))
	b.until(task.TaskID, "given back", func(task db.Task) bool { return b.story(task.TaskID) == "created started retry started released" })
	_, err := b.Respond(b.ctx, answer(task))
	require.ErrorIs(t, err, ErrNotYet)
}

// The bus asks its handlers to end before the engine drains: one that sat an outage out
// would hold up the end of the process.
func TestResponseGoesBackToTheBusWhenItsHandlerIsToEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.awaits()
	tx, err := b.pool.Begin(b.ctx)
	require.NoError(t, err)
	_, err = tx.Exec(b.ctx, "SELECT FROM task WHERE task_id = $1 FOR UPDATE", task.TaskID)
	require.NoError(t, err)
	ctx, end := context.WithCancel(b.ctx)
	heard := make(chan error, 1)
	go func() {
		_, err := b.Respond(ctx, answer(task))
		heard <- err
	}()
	waitFor(t, "the response to wait", func() bool {
		return ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") > 0
	})
	end()
	require.ErrorIs(t, receive(t, heard), ErrUnavailable)
	require.NoError(t, tx.Rollback(b.ctx))
}

func TestResponseOfAnEarlierAttemptChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(map[string]Registration{"integration": {Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
		return Result{Await: &Await{InvocationID: "inv-" + string(rune('0'+job.Attempt))}}, nil
	})}})
	task := b.create(elsewhere, policy(RetryPolicy{MaxRetries: 1}))
	b.untilAwaiting(task)
	b.exec("UPDATE lease SET expires_at = now(), deadline_at = now() WHERE task_id = $1", task.TaskID)
	b.until(task.TaskID, "in its second attempt", func(task db.Task) bool { return task.Attempt == 2 })
	b.untilAwaiting(task)
	said, err := b.Respond(b.ctx, answer(task))
	require.NoError(t, err)
	require.Equal(t, "late", said)
	said, err = b.Respond(b.ctx, answer(task, func(in *outbox.IntegrationResponse) { in.InvocationID = "inv-2" }))
	require.NoError(t, err)
	require.Equal(t, "completed", said)
}

func TestResponseOfAFailure(t *testing.T) {
	t.Parallel()
	failure := func(code string, retryable *bool) func(*outbox.IntegrationResponse) {
		return func(in *outbox.IntegrationResponse) {
			in.Status, in.Data, in.Retryable = "FAILED", nil, retryable
			if code != "none" {
				in.Error = &outbox.Problem{Code: code, Message: "it failed"}
			}
		}
	}
	for name, tc := range map[string]struct {
		change   func(*outbox.IntegrationResponse)
		attempts int32
		code     string
	}{
		"retryable by its code":   {failure("RATE_LIMIT_ERROR", nil), 2, "RATE_LIMIT_ERROR"},
		"final by its code":       {failure("VALIDATION_ERROR", nil), 1, "VALIDATION_ERROR"},
		"marked retryable":        {failure("VALIDATION_ERROR", ptr(true)), 2, "VALIDATION_ERROR"},
		"marked final":            {failure("RATE_LIMIT_ERROR", ptr(false)), 1, "RATE_LIMIT_ERROR"},
		"without an error":        {failure("none", nil), 1, "INTEGRATION_ERROR"},
		"with an error, no code":  {failure("", nil), 1, "INTEGRATION_ERROR"},
		"a status of its own":     {func(in *outbox.IntegrationResponse) { in.Status = "PARTIAL" }, 1, "INTEGRATION_ERROR"},
		"code with a NUL in it":   {failure("A\x00B", nil), 1, "A\uFFFDB"},
		"success of a bad output": {func(in *outbox.IntegrationResponse) { in.Data = json.RawMessage(`{"sum": "x"}`) }, 1, CodeOutput},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			define(t, b, func(d *Definition) {
				d.Type, d.RetryPolicy = Integration, &RetryPolicy{MaxRetries: 1}
				d.ExecutionConfig = ExecutionConfig{Integration: &IntegrationCall{Method: "m", Instance: "books"}}
			})
			task := b.awaits(of("calculate"))
			for attempt := int32(1); attempt <= tc.attempts; attempt++ {
				b.until(task.TaskID, "in its next attempt", func(task db.Task) bool { return task.Attempt == attempt })
				b.untilAwaiting(task)
				said, err := b.Respond(b.ctx, answer(task, tc.change))
				require.NoError(t, err)
				require.Equal(t, "failed", said)
			}
			task = b.becomes(task.TaskID, Failed)
			require.Equal(t, tc.attempts, task.Attempt)
			require.Equal(t, tc.code, codeOf(t, task))
		})
	}
}

func TestNoResponseInTimeIsATimeout(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.awaits(timeout(time.Hour), visibility(time.Second))
	b.exec("UPDATE lease SET expires_at = now() - interval '1 ms', deadline_at = now() - interval '1 ms' WHERE task_id = $1", task.TaskID)
	task = b.becomes(task.TaskID, TimedOut)
	require.Equal(t, CodeTimeout, codeOf(t, task))
	require.Contains(t, string(task.Error), "no response")
	require.Zero(t, task.Crashes)
	said, err := b.Respond(b.ctx, answer(task))
	require.NoError(t, err)
	require.Equal(t, "late", said)
}

// While the answer is awaited nobody beats, and yet the lease is kept.
func TestWaitOutlivesTheVisibilityTimeoutAndTheProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.awaits(timeout(time.Minute), visibility(time.Second))
	p2 := join(t, b.pool, "p2")
	p2.work(nil)
	made := ask[time.Time](b, "SELECT started_at FROM task WHERE task_id = $1", task.TaskID)
	waitFor(t, "more than the visibility timeout to pass", func() bool {
		return ask[time.Time](b, "SELECT now()").After(made.Add(1300 * time.Millisecond))
	})
	said, err := p2.Respond(p2.ctx, answer(task))
	require.NoError(t, err)
	require.Equal(t, "completed", said)
	require.EqualValues(t, 1, b.get(task.TaskID).Attempt)
}

// upperAnswers reads answers in a way of its own.
type upperAnswers struct{}

func (upperAnswers) Output(call IntegrationCall, data json.RawMessage) (json.RawMessage, error) {
	if string(data) == `"goexit"` {
		runtime.Goexit()
	}
	if string(data) == `"broken"` {
		no := false
		return nil, &Failure{Code: "VALIDATION_ERROR", Message: "it is broken", Retryable: &no}
	}
	return json.RawMessage(`{"read": "` + call.Method + `"}`), nil
}

func (upperAnswers) Failure(f *Failure) *Failure {
	if f.Code == "RUDE" {
		runtime.Goexit()
	}
	return &Failure{Code: f.Code, Message: "kept", Retryable: f.Retryable}
}

// What an answer means is not the engine's to know: it comes by the same reading as an
// answer at once.
func TestResponseIsReadAsAnAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t, func(cfg *Config) { cfg.ResponseMapper = upperAnswers{} })
	for name, tc := range map[string]struct {
		change func(*outbox.IntegrationResponse)
		status Status
		has    string
	}{
		"a success":                     {func(*outbox.IntegrationResponse) {}, Completed, `{"read": "create_invoice"}`},
		"a success that cannot be read": {func(in *outbox.IntegrationResponse) { in.Data = json.RawMessage(`"broken"`) }, Failed, "VALIDATION_ERROR"},
		"a success whose reader ends":   {func(in *outbox.IntegrationResponse) { in.Data = json.RawMessage(`"goexit"`) }, Failed, "GOEXIT"},
		"a failure whose reader ends": {func(in *outbox.IntegrationResponse) {
			in.Status, in.Error = "FAILED", &outbox.Problem{Code: "RUDE", Message: "Bearer canary"}
		}, Failed, "GOEXIT"},
		"a failure": {func(in *outbox.IntegrationResponse) {
			in.Status, in.Error = "FAILED", &outbox.Problem{Code: "VALIDATION_ERROR", Message: "Bearer canary"}
		}, Failed, "kept"},
	} {
		task := b.awaits()
		_, err := b.Respond(b.ctx, answer(task, tc.change))
		require.NoError(t, err, name)
		task = b.get(task.TaskID)
		require.Equal(t, tc.status, Status(task.Status), name)
		require.Contains(t, string(task.Output)+string(task.Error), tc.has)
		require.NotContains(t, string(task.Error), "canary")
	}
}
