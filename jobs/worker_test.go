package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// dequeue asks as a worker does that takes everything.
func (b *testBundle) dequeue(worker string, change ...func(*LeaseRequest)) []Lease {
	b.t.Helper()
	req := LeaseRequest{Worker: worker, Most: 10, Select: []Selection{{Lane: LaneAutomated}, {Lane: LaneIntegration}}}
	for _, fn := range change {
		fn(&req)
	}
	found, err := b.Leases.Acquire(b.ctx, req)
	require.NoError(b.t, err)
	return found
}

// dequeueOne waits for work, and takes one task.
func (b *testBundle) dequeueOne(worker string) Lease {
	b.t.Helper()
	found := b.dequeue(worker, func(req *LeaseRequest) { req.Most, req.Wait = 1, patience })
	require.Len(b.t, found, 1)
	return found[0]
}

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

// What is asked again with the same id is answered with the same leases.
func TestDequeueIsIdempotent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.create(remote)
	b.create(remote)
	b.create(remote)
	ask := func(worker, id string) (tokens []string) {
		for _, l := range b.dequeue(worker, func(req *LeaseRequest) { req.ID, req.Most = id, 2 }) {
			tokens = append(tokens, l.Token)
		}
		return tokens
	}
	first := ask("w-1", "r-1")
	require.Len(t, first, 2)
	require.Equal(t, first, ask("w-1", "r-1"))
	other := join(t, b.pool, "p2")
	require.Len(t, other.dequeue("w-1", func(req *LeaseRequest) { req.ID = "r-1" }), 2, "in every process")
	require.Equal(t, first[0], other.dequeue("w-1", func(req *LeaseRequest) { req.ID = "r-1" })[0].Token)
	third := ask("w-2", "r-1")
	require.Len(t, third, 1, "the id is the worker's own")
	require.NotContains(t, first, third[0])
	require.Empty(t, ask("w-1", "r-2"))
}

func TestDequeueTakesWhatWasSelected(t *testing.T) {
	t.Parallel()
	b := setup(t)
	named := func(id string) func(*Request) { return func(req *Request) { req.TaskDefinitionID = id } }
	low := b.create(remote, named("render"), priority(Low))
	old := b.create(remote, named("render"))
	urgent := b.create(remote, named("render"), priority(Critical))
	other := b.create(remote, named("mail"))
	foreign := b.create(remote, elsewhere, func(req *Request) { req.Config.Executor = ExecutorWorker })
	ids := func(found []Lease) (out []string) {
		for _, l := range found {
			out = append(out, l.TaskID.String())
		}
		return out
	}
	from := func(sel ...Selection) func(*LeaseRequest) { return func(req *LeaseRequest) { req.Select = sel } }

	b.exec("UPDATE river_queue SET paused_at = now() WHERE name = $1", LaneAutomated)
	require.Empty(t, b.dequeue("w", from(Selection{Lane: LaneAutomated})), "it is paused")
	b.exec("UPDATE river_queue SET paused_at = NULL")

	require.Equal(t, []string{foreign.TaskID.String()}, ids(b.dequeue("w", from(Selection{Lane: LaneIntegration}))))
	found := b.dequeue("w", from(Selection{Lane: LaneAutomated, Definitions: []string{"render"}, Most: 2, Visibility: 5 * time.Second}))
	require.Equal(t, []string{urgent.TaskID.String(), old.TaskID.String()}, ids(found))
	require.Equal(t, 5*time.Second, found[0].Visibility)
	found = b.dequeue("w", from(Selection{Lane: LaneAutomated, Definitions: []string{"mail"}}, Selection{Lane: LaneAutomated, Definitions: []string{"render", "none"}}))
	require.ElementsMatch(t, []string{other.TaskID.String(), low.TaskID.String()}, ids(found))
}

func TestRetriesComeFirstAndGoOnFromTheCheckpoint(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote, policy(RetryPolicy{MaxRetries: 2, RetryInterval: 1}))
	lease := b.dequeueOne("w-1")
	_, err := b.Leases.Heartbeat(b.ctx, "", []Heartbeat{{Token: lease.Token, Checkpoint: json.RawMessage(`{"page": 12}`)}})
	require.NoError(t, err)
	failure := &Failure{Code: "RENDER", Message: "no ink"}
	after, err := b.Leases.Fail(b.ctx, "", lease.Token, failure, 0)
	require.NoError(t, err)
	require.Equal(t, db.TaskStatusPENDING, after.Status)
	require.NotNil(t, after.NextRetryAt)
	again, err := b.Leases.Fail(b.ctx, "", lease.Token, failure, 0)
	require.NoError(t, err, "the same word again")
	require.Equal(t, after.Version, again.Version)

	fresh := b.create(remote, priority(Critical))
	var first Lease
	waitFor(t, "the retry to be due", func() bool {
		found := b.dequeue("w-2", func(req *LeaseRequest) { req.Select = []Selection{{Lane: LaneRetry}} })
		if len(found) > 0 {
			first = found[0]
		}
		return len(found) > 0
	})
	require.Equal(t, task.TaskID, first.TaskID)
	require.Equal(t, 2, first.Attempt)
	require.JSONEq(t, `{"page": 12}`, string(first.Checkpoint))

	// It may ask for more time than the policy gives, never for less.
	before := time.Now()
	after, err = b.Leases.Fail(b.ctx, "", first.Token, failure, time.Hour)
	require.NoError(t, err)
	require.WithinDuration(t, before.Add(time.Hour), *after.NextRetryAt, 10*time.Second)
	_, err = b.Leases.Fail(b.ctx, "", lease.Token, &Failure{Code: "RENDER", Message: "no paper"}, 0)
	var conflict *Conflict
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, fresh.TaskID, b.dequeueOne("w-3").TaskID)
}

// Retries come before the standard lanes, whichever selection names them first, and in
// one answer too; one that is given back is a retry still.
func TestRetriesComeBeforeTheStandardLanes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	retry := b.create(remote, elsewhere, remote, priority(Medium), policy(RetryPolicy{MaxRetries: 2, RetryInterval: 1}))
	_, err := b.Leases.Fail(b.ctx, "", b.dequeueOne("w").Token, &Failure{Code: "X"}, 0)
	require.NoError(t, err)
	b.exec("UPDATE river_job SET scheduled_at = now() WHERE queue = $1 AND state = 'available'", LaneRetry)
	fresh := b.create(remote, priority(High))
	both := func(most int) []Lease {
		return b.dequeue("w", func(req *LeaseRequest) {
			req.Most, req.Select = most, []Selection{{Lane: LaneAutomated}, {Lane: LaneRetry}}
		})
	}
	giveBack := func(found []Lease) {
		for _, l := range found {
			_, err := b.Leases.Release(b.ctx, "", l.Token, 0, "")
			require.NoError(t, err)
		}
	}
	for range 2 {
		found := both(1)
		require.Equal(t, retry.TaskID, found[0].TaskID)
		giveBack(found)
		require.EqualValues(t, LaneRetry, b.get(retry.TaskID).Lane)
		found = both(2)
		require.Equal(t, []uuid.UUID{retry.TaskID, fresh.TaskID}, []uuid.UUID{found[0].TaskID, found[1].TaskID})
		giveBack(found)
	}
	found := b.dequeue("w", func(req *LeaseRequest) {
		req.Select = []Selection{{Lane: LaneAutomated, Most: 1}, {Lane: LaneIntegration, Most: 1}}
	})
	require.Len(t, found, 2)
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

// A parked dequeue is woken by the task, not by its poll.
func TestParkedDequeue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	other.work(nil) // which listens
	got := make(chan []Lease, 1)
	park := func(b *testBundle) {
		go func() {
			found, err := b.Leases.Acquire(b.ctx, LeaseRequest{Worker: "w", Most: 1, Wait: patience, Select: []Selection{{Lane: LaneAutomated}}})
			if err == nil {
				got <- found
			}
		}()
	}
	for _, at := range []*testBundle{b, other} {
		park(at)
		b.create(remote)
		require.Len(t, receive(t, got), 1)
	}

	park(b)
	b.Leases.StartDraining()
	require.Empty(t, receive(t, got), "the process stops, and answers")
	task := b.create(remote)
	lease := b.dequeueOne("w")
	require.Equal(t, task.TaskID, lease.TaskID)
	require.Equal(t, FinishUp, b.beat(lease.Token).Directive)
}

// Who is gone before the answer is ready has taken nothing.
func TestGoneWorkerTakesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote)
	ask := func(ctx context.Context, id string) <-chan error {
		ended := make(chan error, 1)
		go func() {
			_, err := b.Leases.Acquire(ctx, LeaseRequest{Worker: "w-1", ID: id, Most: 1, Select: []Selection{{Lane: LaneAutomated}}})
			ended <- err
		}()
		return ended
	}
	gone, cancel := context.WithCancel(b.ctx)
	holder := b.hold(task) // its start waits for the row
	ended := ask(gone, "")
	b.waiting(1)
	cancel()
	holder.letGo()
	require.ErrorIs(t, receive(t, ended), context.Canceled)
	require.ErrorIs(t, receive(t, ask(gone, "")), context.Canceled, "and does not even begin")
	task = b.get(task.TaskID)
	require.Equal(t, db.TaskStatusPENDING, task.Status)
	require.Zero(t, task.Attempt)
	require.Equal(t, "created started released", b.story(task.TaskID))
	require.Equal(t, 1, b.dequeueOne("w-2").Attempt)
}

// Unless it asks again by the same id: whoever answers that has told it of the lease.
func TestGoneWorkerAsksAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	task := b.create(remote)
	gone, hangUp := context.WithCancel(b.ctx)
	holder := b.hold(task) // its start waits for the row
	ended := make(chan error, 1)
	go func() {
		_, err := b.Leases.Acquire(gone, LeaseRequest{Worker: "w-1", ID: "r-1", Most: 1, Select: []Selection{{Lane: LaneAutomated}}})
		ended <- err
	}()
	b.waiting(1)
	hangUp()
	holder.letGo()
	require.NoError(t, receive(t, ended))
	again := other.dequeue("w-1", func(req *LeaseRequest) { req.ID = "r-1" })
	require.Len(t, again, 1)
	require.NoError(t, b.beat(again[0].Token).Err)
	require.Equal(t, "created started", b.story(task.TaskID))
}

// The first call of a request is parked still when it is asked again: both are
// answered alike, here and in another process.
func TestParkedDequeueIsIdempotent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	other.work(nil) // which listens
	b.work(nil)
	got := make(chan []Lease, 4)
	const calls = 4
	for i := range calls {
		at := []*testBundle{b, b, b, other}[i]
		go func() {
			found, err := at.Leases.Acquire(at.ctx, LeaseRequest{Worker: "w", ID: "r", Most: 1, Wait: patience, Select: []Selection{{Lane: LaneAutomated}}})
			if err == nil {
				got <- found
			}
		}()
	}
	waitFor(t, "a call to wait", func() bool { return len(b.notifier.waiters.keys()) > 0 })
	b.create(remote)
	first := receive(t, got)
	require.Len(t, first, 1)
	for range calls - 1 {
		found := receive(t, got)
		require.Len(t, found, 1)
		require.Equal(t, first[0].Token, found[0].Token)
	}
}

// Two tasks at once, for a request that is parked twice.
func TestParkedDequeueTakesNoMoreThanItAskedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote)
	holder := b.hold(task)
	got := make(chan []Lease, 2)
	for range 2 {
		go func() {
			found, err := b.Leases.Acquire(b.ctx, LeaseRequest{Worker: "w", ID: "r", Most: 1, Wait: patience, Select: []Selection{{Lane: LaneAutomated}}})
			if err == nil {
				got <- found
			}
		}()
	}
	b.waiting(1) // one has claimed, and begins
	b.create(remote)
	holder.letGo()
	first, second := receive(t, got), receive(t, got)
	require.Len(t, first, 1)
	require.Equal(t, first[0].Token, second[0].Token)
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM task WHERE status = 'PENDING'"))
}

func TestLeasesKeepTenantsApart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.create(remote, func(req *Request) { req.Tenant = "acme" })
	require.Empty(t, b.dequeue("w-1"))
	found := b.dequeue("w-1", func(req *LeaseRequest) { req.Tenant, req.ID = "acme", "r" })
	require.Len(t, found, 1)
	require.Empty(t, b.dequeue("w-1", func(req *LeaseRequest) { req.ID = "r" }))
	_, err := b.Leases.Complete(b.ctx, "", found[0].Token, nil)
	require.ErrorIs(t, err, ErrNotFound)
	require.ErrorIs(t, b.beat(found[0].Token).Err, ErrNotFound)
	_, err = b.Leases.Complete(b.ctx, "acme", found[0].Token, nil)
	require.NoError(t, err)
}

// Fifty workers in two processes race for two hundred tasks: each task has one.
func TestWorkersRace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	both := []*testBundle{b, join(t, b.pool, "p2")}
	const tasks, workers = 200, 50
	for range tasks {
		b.create(remote)
	}
	var mu sync.Mutex
	by := map[string]int{} // guarded by mu
	var all sync.WaitGroup
	for i := range workers {
		at := both[i%2]
		all.Go(func() {
			for {
				found, err := at.Leases.Acquire(at.ctx, LeaseRequest{Worker: "w", Most: 3, Select: []Selection{{Lane: LaneAutomated}}})
				if err != nil || len(found) == 0 {
					return
				}
				for _, l := range found {
					mu.Lock()
					by[l.TaskID.String()]++
					mu.Unlock()
					_, _ = at.Leases.Complete(at.ctx, "", l.Token, nil)
				}
			}
		})
	}
	all.Wait()
	require.Len(t, by, tasks)
	for id, n := range by {
		require.Equal(t, 1, n, id)
	}
	require.Equal(t, tasks, ask[int](b, "SELECT count(*) FROM task WHERE status = 'COMPLETED' AND attempt = 1"))
}

func TestLeaseTokens(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	id := leaseID{task: b.create(remote).TaskID, job: 1<<62 + 7, attempt: 3, visibility: 12 * time.Hour}
	token, err := b.Leases.tokens.sign(b.ctx, id)
	require.NoError(t, err)
	read, err := other.Leases.tokens.read(b.ctx, token)
	require.NoError(t, err)
	require.Equal(t, id, read)
	for i := range len(token) {
		forged := token[:i] + string("AB"[strings.Count(token[i:i+1], "A")]) + token[i+1:]
		_, err := b.Leases.tokens.read(b.ctx, forged)
		require.ErrorIs(t, err, ErrNotFound, "%d", i)
	}
	for _, bad := range []string{"", "x", token + "A", token[1:], strings.Repeat("A", len(token)), token + "=", "é"} {
		_, err := b.Leases.tokens.read(b.ctx, bad)
		require.ErrorIs(t, err, ErrNotFound, bad)
	}
}

// FuzzLeaseToken: nothing but what we signed is a token, and nothing panics.
func FuzzLeaseToken(f *testing.F) {
	k := &tokens{key: make([]byte, 32)}
	good, err := k.sign(context.Background(), leaseID{job: 1, attempt: 1})
	require.NoError(f, err)
	f.Add(good)
	f.Add("")
	f.Add(strings.Repeat("A", len(good)))
	f.Fuzz(func(t *testing.T, token string) {
		id, err := k.read(context.Background(), token)
		if err != nil {
			return
		}
		again, err := k.sign(context.Background(), id)
		require.NoError(t, err)
		require.Equal(t, again, token)
	})
}
