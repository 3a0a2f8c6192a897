package jobs

import (
	"cmp"
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

func (b *testBundle) beat(token string) HeartbeatResult {
	b.t.Helper()
	out, err := b.Leases.Heartbeat(b.ctx, "", []Heartbeat{{Token: token}})
	require.NoError(b.t, err)
	return out[0]
}

func TestWorkerLeasesBeatsAndCompletes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote, visibility(time.Minute), timeout(time.Hour))
	b.create() // for an executor in process: none of a worker's business
	lease := b.dequeueOne("w-1")
	require.Equal(t, task.TaskID, lease.TaskID)
	require.Equal(t, 1, lease.Attempt)
	require.Len(t, lease.Token, LeaseTokenLength)
	require.Equal(t, time.Minute, lease.Visibility)
	require.Equal(t, time.Hour, lease.Timeout)
	require.WithinDuration(t, time.Now().Add(time.Minute), lease.ExpiresAt, 10*time.Second)
	require.Nil(t, lease.Checkpoint)
	require.Empty(t, b.dequeue("w-2"), "it is taken")

	out, err := b.Leases.Heartbeat(b.ctx, "", []Heartbeat{{Token: lease.Token, Extend: 2 * time.Hour, Progress: json.RawMessage(`{"percent": 40}`), Checkpoint: json.RawMessage(`{"page": 12}`)}})
	require.NoError(t, err)
	require.Equal(t, Continue, out[0].Directive)
	require.WithinDuration(t, time.Now().Add(time.Hour), out[0].ExpiresAt, 10*time.Second, "never past the timeout")
	require.WithinDuration(t, time.Now().Add(time.Minute), b.beat(lease.Token).ExpiresAt, 10*time.Second, "from now: it does not add up")

	ended, err := b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"pages": 24}`))
	require.NoError(t, err)
	require.Equal(t, db.TaskStatusCOMPLETED, ended.Status)
	require.JSONEq(t, `{"pages": 24}`, string(ended.Output))
	require.Equal(t, "created started completed", b.story(task.TaskID))
	require.Equal(t, "w-1", ask[string](b, "SELECT executor_id FROM task_attempt WHERE task_id = $1", task.TaskID))
	require.Equal(t, "w-1", ask[string](b, "SELECT actor FROM task_event WHERE task_id = $1 AND type = 'completed'", task.TaskID))
	require.Equal(t, "completed", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", ended.JobID))

	// Its answer was lost, and it says it again; or it thinks better of it.
	again, err := b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{ "pages":24 }`))
	require.NoError(t, err)
	require.Equal(t, ended.Version, again.Version)
	var conflict *Conflict
	_, err = b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"pages": 25}`))
	require.ErrorAs(t, err, &conflict)
	_, err = b.Leases.Fail(b.ctx, "", lease.Token, &Failure{Code: "NO"}, 0)
	require.ErrorAs(t, err, &conflict)
	var over *TaskEnded
	require.ErrorAs(t, b.beat(lease.Token).Err, &over)
	require.Equal(t, Completed, over.Status)
}

// Two beats of the same leases, the one from the first to the last, the other from the
// last to the first: neither stands in the other's way.
func TestOpposedHeartbeats(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var beats []Heartbeat
	for range 100 {
		b.create(remote)
	}
	for _, l := range b.dequeue("w", func(req *LeaseRequest) { req.Most = 100 }) {
		beats = append(beats, Heartbeat{Token: l.Token, Progress: json.RawMessage(`{}`)})
	}
	require.Len(t, beats, 100)
	back := slices.Clone(beats)
	slices.Reverse(back)
	var all sync.WaitGroup
	failed := make(chan error, 2)
	for _, list := range [][]Heartbeat{beats, back} {
		all.Go(func() {
			for range 50 {
				out, err := b.Leases.Heartbeat(b.ctx, "", list)
				for _, one := range out {
					err = cmp.Or(err, one.Err)
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(failed)
	require.NoError(t, <-failed)
}

// The same word is answered as the first time, wherever the task is by now; whatever
// differs in it is another word.
func TestTheSameWordAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote, policy(RetryPolicy{MaxRetries: 3, RetryInterval: 1}))
	first := b.dequeueOne("w-1")
	said := Failure{Code: "X", Message: "no ink", Details: json.RawMessage(`{"tray": 1}`), StackTrace: "main"}
	fail := func(lease Lease, later time.Duration, change func(*Failure)) (db.Task, error) {
		f := said
		change(&f)
		return b.Leases.Fail(b.ctx, "", lease.Token, &f, later)
	}
	asItWas := func(*Failure) {}
	answer, err := fail(first, 0, asItWas)
	require.NoError(t, err)
	require.Equal(t, db.TaskStatusPENDING, answer.Status)
	second := b.dequeueOne("w-2")
	require.Equal(t, 2, second.Attempt)
	again, err := fail(first, 0, asItWas)
	require.NoError(t, err)
	require.Equal(t, []any{answer.Status, answer.Attempt, answer.Version, answer.NextRetryAt.UTC()}, []any{again.Status, again.Attempt, again.Version, again.NextRetryAt.UTC()})
	_, err = fail(first, 0, func(f *Failure) { f.Details = json.RawMessage(`{ "tray":1}`) })
	require.NoError(t, err, "JSON has no blanks")
	var conflict *Conflict
	for name, change := range map[string]func(*Failure){
		"code": func(f *Failure) { f.Code = "Y" }, "message": func(f *Failure) { f.Message = "no paper" },
		"retryable": func(f *Failure) { f.Retryable = ptr(false) }, "stack trace": func(f *Failure) { f.StackTrace = "" },
		"details": func(f *Failure) { f.Details = json.RawMessage(`{"tray": 2}`) },
	} {
		_, err = fail(first, 0, change)
		require.ErrorAs(t, err, &conflict, name)
	}
	_, err = fail(first, time.Hour, asItWas)
	require.ErrorAs(t, err, &conflict, "it asks for more time")

	answer, err = b.Leases.Release(b.ctx, "", second.Token, 0, "shutting down")
	require.NoError(t, err)
	third := b.dequeueOne("w-3")
	require.Equal(t, 2, third.Attempt)
	again, err = b.Leases.Release(b.ctx, "", second.Token, 0, "shutting down")
	require.NoError(t, err)
	require.Equal(t, []any{answer.Status, answer.Attempt, answer.Version, answer.NextRetryAt}, []any{again.Status, again.Attempt, again.Version, again.NextRetryAt})
	_, err = b.Leases.Release(b.ctx, "", second.Token, time.Second, "shutting down")
	require.ErrorAs(t, err, &conflict)
	_, err = b.Leases.Release(b.ctx, "", second.Token, 0, "")
	require.ErrorAs(t, err, &conflict)
	_, err = b.Leases.Complete(b.ctx, "", third.Token, nil)
	require.NoError(t, err)
	again, err = fail(first, 0, asItWas)
	require.NoError(t, err)
	require.Equal(t, db.TaskStatusPENDING, again.Status)
	require.Equal(t, db.TaskStatusCOMPLETED, b.get(task.TaskID).Status)
}

func TestFailForGood(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote, policy(RetryPolicy{MaxRetries: 5}))
	after, err := b.Leases.Fail(b.ctx, "", b.dequeueOne("w-1").Token, &Failure{Code: "BAD", Message: "never", Retryable: ptr(false)}, 0)
	require.NoError(t, err)
	require.Equal(t, db.TaskStatusFAILED, after.Status)
	require.Equal(t, "BAD", codeOf(t, after))
	require.Equal(t, "created started failed", b.story(task.TaskID))
	require.Equal(t, LaneDeadLetter, ask[string](b, "SELECT queue FROM river_job WHERE id = $1", after.JobID))
}

// In a worker's mouth the engine's codes are failures, and count as such. TIMEOUT says
// which kind.
func TestWorkerSaysTheEnginesCodes(t *testing.T) {
	t.Parallel()
	for _, code := range []string{CodeLeaseExpired, CodeTimeout, CodePoison, CodeDiscarded, "CANCELLED"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			task := b.create(remote)
			after, err := b.Leases.Fail(b.ctx, "", b.dequeueOne("w").Token, &Failure{Code: code, Retryable: ptr(false)}, 0)
			require.NoError(t, err)
			want := map[bool]string{false: "FAILED", true: "TIMED_OUT"}[code == CodeTimeout]
			require.Equal(t, want, string(after.Status))
			require.EqualValues(t, 1, after.Failures)
			require.Zero(t, after.Crashes)
			require.Equal(t, code, codeOf(t, after))
			require.Equal(t, want, ask[string](b, "SELECT outcome::text FROM task_attempt WHERE task_id = $1", task.TaskID))
		})
	}
}

func TestReleaseSpendsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.create(remote)
	lease := b.dequeueOne("w-1")
	after, err := b.Leases.Release(b.ctx, "", lease.Token, 0, "shutting down")
	require.NoError(t, err)
	require.Equal(t, db.TaskStatusPENDING, after.Status)
	require.Zero(t, after.Attempt)
	_, err = b.Leases.Release(b.ctx, "", lease.Token, 0, "shutting down")
	require.NoError(t, err, "again")

	next := b.dequeueOne("w-2")
	require.Equal(t, 1, next.Attempt, "the number was not spent")
	require.NotEqual(t, lease.Token, next.Token)
	_, err = b.Leases.Complete(b.ctx, "", lease.Token, nil)
	require.ErrorIs(t, err, ErrLeaseLost, "the number is the same, and yet it is another attempt")
	require.ErrorIs(t, b.beat(lease.Token).Err, ErrLeaseLost)
	_, err = b.Leases.Complete(b.ctx, "", next.Token, nil)
	require.NoError(t, err)
}

// A worker that stalls beyond its lease keeps it until somebody takes it away.
func TestLateWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote, policy(RetryPolicy{MaxRetries: 3, RetryInterval: 1}))
	lease := b.dequeueOne("w-1")
	b.expire(task.TaskID)
	require.Equal(t, Continue, b.beat(lease.Token).Directive, "late, and not yet reaped")

	b.expire(task.TaskID)
	b.work(nil) // a reaper
	b.until(task.TaskID, "reaped", func(task db.Task) bool { return task.Crashes == 1 })
	_, err := b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"by": 1}`))
	require.ErrorIs(t, err, ErrLeaseLost)
	next := b.dequeueOne("w-2")
	require.Equal(t, 2, next.Attempt)
	require.ErrorIs(t, b.beat(lease.Token).Err, ErrLeaseLost)
	_, err = b.Leases.Fail(b.ctx, "", lease.Token, &Failure{Code: "LATE"}, 0)
	require.ErrorIs(t, err, ErrLeaseLost)
	_, err = b.Leases.Complete(b.ctx, "", next.Token, json.RawMessage(`{"by": 2}`))
	require.NoError(t, err)
	var over *TaskEnded
	_, err = b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"by": 1}`))
	require.ErrorAs(t, err, &over)
	require.JSONEq(t, `{"by": 2}`, string(b.get(task.TaskID).Output), "the live attempt's result stands")
}

func TestWorkerOfACancelledTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote)
	lease := b.dequeueOne("w-1")
	_, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "orchestrator"})
	require.NoError(t, err)
	require.Equal(t, StopWork, b.beat(lease.Token).Directive)
	var over *TaskEnded
	for _, say := range []func() error{
		func() error { _, err := b.Leases.Complete(b.ctx, "", lease.Token, nil); return err },
		func() error { _, err := b.Leases.Fail(b.ctx, "", lease.Token, &Failure{Code: "X"}, 0); return err },
		func() error { _, err := b.Leases.Release(b.ctx, "", lease.Token, 0, ""); return err },
	} {
		require.ErrorAs(t, say(), &over)
		require.Equal(t, Cancelled, over.Status)
	}
}

// It is told so for as long as its lease would have lasted, which need not be as long
// as the task says.
func TestCancelIsToldForAsLongAsTheLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote, visibility(time.Second), timeout(time.Hour))
	lease := b.dequeue("w", func(req *LeaseRequest) { req.Select[0].Visibility = time.Minute })[0]
	_, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "orchestrator"})
	require.NoError(t, err)
	ago := func(d time.Duration) {
		b.force("UPDATE task SET ended_at = now() - $2 * interval '1 ms', started_at = now() - interval '1 min' WHERE task_id = $1", task.TaskID, d.Milliseconds())
	}
	ago(30 * time.Second)
	require.Equal(t, StopWork, b.beat(lease.Token).Directive)
	ago(2 * time.Minute)
	b.force("UPDATE task SET started_at = ended_at WHERE task_id = $1", task.TaskID)
	var over *TaskEnded
	require.ErrorAs(t, b.beat(lease.Token).Err, &over)
	out, err := b.Leases.Heartbeat(b.ctx, "", []Heartbeat{{Token: lease.Token, Extend: 10 * time.Minute}})
	require.NoError(t, err)
	require.Equal(t, StopWork, out[0].Directive, "it was extended by ten minutes each time")
	require.WithinDuration(t, time.Now().Add(8*time.Minute), out[0].ExpiresAt, 10*time.Second)
	out, err = b.Leases.Heartbeat(b.ctx, "", []Heartbeat{{Token: lease.Token, Extend: 12 * time.Hour}})
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(58*time.Minute), out[0].ExpiresAt, 10*time.Second, "never past the timeout")
}

func TestOutputThatBreaksTheSchemaKeepsTheLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, _, err := b.Definitions.Put(b.ctx, "o", 0, Definition{
		ID: "render", Type: Automated, Version: "1", ExecutionConfig: ExecutionConfig{Executor: ExecutorWorker},
		OutputSchema: json.RawMessage(`{"type": "object", "required": ["pages"], "properties": {"pages": {"type": "integer"}}}`),
	})
	require.NoError(t, err)
	_, _, err = b.Create(b.ctx, Request{TaskDefinitionID: "render", WorkflowID: "w", Actor: "o"})
	require.NoError(t, err)
	lease := b.dequeueOne("w-1")
	var broken *Invalid
	_, err = b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"pages": "many"}`))
	require.ErrorAs(t, err, &broken)
	require.Equal(t, "/output/pages", broken.Violations[0].Path)
	_, err = b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"pages": 3}`))
	require.NoError(t, err, "it corrected itself")

	// Whoever is late hears that first, whatever the output.
	var conflict *Conflict
	_, err = b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"pages": "many"}`))
	require.ErrorAs(t, err, &conflict)
	task, _, err := b.Create(b.ctx, Request{TaskDefinitionID: "render", WorkflowID: "w", Actor: "o"})
	require.NoError(t, err)
	lease = b.dequeueOne("w-1")
	b.expire(task.TaskID)
	b.work(nil) // a reaper
	b.until(task.TaskID, "reaped", func(task db.Task) bool { return task.Crashes == 1 })
	_, err = b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"pages": "many"}`))
	require.ErrorIs(t, err, ErrLeaseLost)
}
