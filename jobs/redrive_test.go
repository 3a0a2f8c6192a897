package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// obedient does what its input says: fail with this message, or succeed.
var obedient = noop(func(_ context.Context, job Job) (Result, error) {
	var in struct{ Fail string }
	if err := json.Unmarshal(job.Input, &in); err != nil {
		return Result{}, err
	}
	if in.Fail != "" {
		return Result{}, &Failure{Code: "NO_STOCK", Message: in.Fail, Retryable: ptr(false)}
	}
	return Result{Output: json.RawMessage(`{"ok": true}`)}, nil
})

func input(text string) func(*Request) {
	return func(req *Request) { req.Input = json.RawMessage(text) }
}

// dead makes a dead letter with this message.
func (b *testBundle) dead(message string, change ...func(*Request)) db.Task {
	b.t.Helper()
	task := b.create(append([]func(*Request){input(`{"fail": "` + message + `"}`)}, change...)...)
	return b.becomes(task.TaskID, Failed)
}

func (b *testBundle) redrive(r Redrive) Matched {
	b.t.Helper()
	if r.Rate == 0 {
		r.Rate = 1000
	}
	out, err := b.DeadLetters.Redrive(b.ctx, Actor{Name: "error-handler", Reason: "fixed"}, r)
	require.NoError(b.t, err)
	return out
}

// saved makes it seem as if the operation's rate was not used for so long.
func (b *testBundle) saved(id uuid.UUID, d time.Duration) {
	b.t.Helper()
	require.EqualValues(b.t, 1, b.exec("UPDATE redrive_operation SET paced_at = now() - $2::interval WHERE operation_id = $1", id, d))
}

func (b *testBundle) step() bool {
	b.t.Helper()
	more, err := b.DeadLetters.redriveStep(b.ctx)
	require.NoError(b.t, err)
	return more
}

func (b *testBundle) operation(id uuid.UUID) Operation {
	b.t.Helper()
	op, err := b.DeadLetters.Operation(b.ctx, "", id)
	require.NoError(b.t, err)
	return op
}

func (b *testBundle) opUntil(id uuid.UUID, want db.RedriveState) (op Operation) {
	b.t.Helper()
	waitFor(b.t, "operation to be "+string(want), func() bool {
		op = b.operation(id)
		return op.State == want
	})
	return op
}

func named(tasks ...db.Task) (out []uuid.UUID) {
	for _, task := range tasks {
		out = append(out, task.TaskID)
	}
	return out
}

func TestMessagePattern(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for message, want := range map[string]string{
		"":                          "",
		"nothing to fold":           "nothing to fold",
		"item 12 of 1,000 at 10:30": "item <n> of <n> at <n>",
		"order 0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01 is gone": "order <uuid> is gone",
		"can't open 'a b' or \"c\"":                          "can't open <text> or <text>",
		"at 0xDEADbeef, sha 9f86d081884c7d65":                "at <hex>, sha <hex>",
		"123456789012 and defaced":                           "<n> and defaced",
	} {
		require.Equal(t, want, ask[string](b, "SELECT report.message_pattern($1)", message))
	}
	require.Equal(t, "", ask[string](b, "SELECT report.message_pattern(NULL)"))
}

func TestRedriveGoesOnWithTheSameTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(obedient)
	fails := b.dead("item 7", policy(RetryPolicy{MaxRetries: 1, RetryInterval: 1}))
	require.EqualValues(t, 1, fails.Failures)

	same := b.redrive(Redrive{TaskIDs: named(fails), DryRun: true})
	require.Equal(t, Matched{Tasks: 1, Complete: true}, same)
	require.Equal(t, fails, b.get(fails.TaskID), "a dry run changes nothing")
	require.Zero(t, ask[int](b, "SELECT count(*) FROM redrive_operation"))

	out := b.redrive(Redrive{TaskIDs: named(fails, fails)})
	require.Equal(t, 1, out.Tasks)
	again := b.until(fails.TaskID, "failed again", func(task db.Task) bool { return task.Attempt == 2 && task.Status == db.TaskStatusFAILED })
	require.EqualValues(t, 1, again.Failures, "counted from the redrive")
	require.NotEqual(t, fails.JobID, again.JobID)
	require.Equal(t, "completed", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", fails.JobID))
	require.Equal(t, "created started failed redriven started failed", b.story(fails.TaskID))
	op := b.opUntil(out.OperationID, db.RedriveStateDONE)
	require.EqualValues(t, 1, op.Redriven)
	require.EqualValues(t, 1, op.Failed)
	require.NotNil(t, op.EndedAt)

	patch := json.RawMessage(`[{"op": "test", "path": "/fail", "value": "item 7"}, {"op": "remove", "path": "/fail"}, {"op": "add", "path": "/n", "value": 1}]`)
	out = b.redrive(Redrive{Filter: &DeadLetterFilter{ErrorCode: "NO_STOCK"}, InputPatch: patch})
	require.Equal(t, 1, out.Tasks)
	done := b.becomes(fails.TaskID, Completed)
	require.JSONEq(t, `{"n": 1}`, string(done.Input))
	require.EqualValues(t, 3, done.Attempt)
	require.Nil(t, done.Error)
	payload := ask[string](b, "SELECT payload FROM task_event WHERE task_id = $1 AND type = 'redriven' ORDER BY seq DESC LIMIT 1", fails.TaskID)
	require.JSONEq(t, fmt.Sprintf(`{"operationId": %q, "reason": "fixed", "input": {"fail": "item 7"}}`, out.OperationID), payload)
	b.opUntil(out.OperationID, db.RedriveStateDONE)
}

// A checkpoint goes on with a redrive, unless that changes the input: what was done then
// was another piece of work.
func TestRedriveWithAnotherInputBeginsAnew(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote)
	fail := func() Lease {
		lease := b.dequeueOne("w")
		_, err := b.Leases.Fail(b.ctx, "", lease.Token, &Failure{Code: "X"}, 0)
		require.NoError(t, err)
		return lease
	}
	again := func(patch string) {
		out := b.redrive(Redrive{TaskIDs: []uuid.UUID{task.TaskID}, InputPatch: json.RawMessage(patch)})
		require.Equal(t, 1, out.Tasks)
		b.saved(out.OperationID, time.Hour)
		waitFor(t, "the redrive", func() bool { b.step(); return b.get(task.TaskID).Status == db.TaskStatusPENDING })
	}
	lease := b.dequeueOne("w")
	_, err := b.Leases.Heartbeat(b.ctx, "", []Heartbeat{{Token: lease.Token, Checkpoint: json.RawMessage(`{"page": 12}`)}})
	require.NoError(t, err)
	_, err = b.Leases.Fail(b.ctx, "", lease.Token, &Failure{Code: "X"}, 0)
	require.NoError(t, err)
	again("")
	require.JSONEq(t, `{"page": 12}`, string(fail().Checkpoint))
	again(`[{"op": "add", "path": "/n", "value": 1}]`)
	lease = b.dequeueOne("w")
	require.Nil(t, lease.Checkpoint)
	_, err = b.Leases.Heartbeat(b.ctx, "", []Heartbeat{{Token: lease.Token, Checkpoint: json.RawMessage(`{"page": 1}`)}})
	require.NoError(t, err)
	_, err = b.Leases.Fail(b.ctx, "", lease.Token, &Failure{Code: "X"}, 0)
	require.NoError(t, err)
	again("")
	require.JSONEq(t, `{"page": 1}`, string(fail().Checkpoint))
}

func TestRedriveRejects(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(obedient)
	_, _, err := b.Definitions.Put(b.ctx, "o", 0, Definition{
		ID: "strict", Type: Automated, InputSchema: json.RawMessage(`{"required": ["fail"]}`), RetryPolicy: &RetryPolicy{},
		ExecutionConfig: ExecutionConfig{Executor: "noop"},
	})
	require.NoError(t, err)
	strict := b.dead("a", func(req *Request) { req.TaskDefinitionID, req.Config = "strict", nil })
	free, laid := b.dead("a"), b.dead("a")
	done := b.becomes(b.create().TaskID, Completed)
	other, _, err := b.Create(b.ctx, request(func(req *Request) { req.Tenant = "x" }))
	require.NoError(t, err)
	waitFor(t, "the other tenant's task", func() bool {
		return ask[string](b, "SELECT status::text FROM task WHERE task_id = $1", other.TaskID) == "COMPLETED"
	})
	_, err = b.DeadLetters.Discard(b.ctx, laid.TaskID, Actor{Name: "error-handler", Reason: "old"})
	require.NoError(t, err)
	unknown := uuid.New()

	out := b.redrive(Redrive{
		TaskIDs:    append(named(strict, free, laid, done, other), unknown),
		InputPatch: json.RawMessage(`[{"op": "remove", "path": "/fail"}]`), DryRun: true,
	})
	want := []Rejected{
		{strict.TaskID, RejectedInput},
		{laid.TaskID, RejectedNotDeadLetter},
		{done.TaskID, RejectedNotDeadLetter},
		{other.TaskID, RejectedNotFound},
		{unknown, RejectedNotFound},
	}
	require.Equal(t, Matched{Tasks: 1, Complete: true, Rejected: want}, out)
	for patch, n := range map[string]int{
		`[{"op": "remove", "path": "/nowhere"}]`:                                                   0,
		`[{"op": "replace", "path": "", "value": 7}]`:                                              0,
		`[{"op": "test", "path": "/fail", "value": "b"}]`:                                          0,
		`[{"op": "add", "path": "/more", "value": null}]`:                                          1,
		`[{"op": "copy", "from": "/fail", "path": "/more"}]`:                                       1,
		`[{"op": "add", "path": "/more", "value": "\u0000"}]`:                                      0,
		`[{"op": "add", "path": "/a", "value": {}}, {"op": "move", "from": "/a", "path": "/a/b"}]`: 0,
	} {
		require.Equal(t, n, b.redrive(Redrive{TaskIDs: named(free), InputPatch: json.RawMessage(patch), DryRun: true}).Tasks, patch)
	}
	_, err = b.DeadLetters.Redrive(b.ctx, Actor{Name: "e"}, Redrive{TaskIDs: named(free), InputPatch: json.RawMessage(`{}`)})
	var bad *Invalid
	require.ErrorAs(t, err, &bad)

	// What becomes unfit between the asking and the moving is rejected then.
	none := b.redrive(Redrive{TaskIDs: []uuid.UUID{unknown}})
	require.Equal(t, db.RedriveStateDONE, b.operation(none.OperationID).State, "there was nothing to do")
	_, err = b.DeadLetters.Operation(b.ctx, "x", none.OperationID)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestRedriveKeepsItsPaceAndOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.work(obedient, stalled)
	low, first, urgent := b.dead("1", priority(Low)), b.dead("2"), b.dead("3", priority(Critical))
	w.stop()
	out := b.redrive(Redrive{Filter: &DeadLetterFilter{}, Rate: 1})
	require.Equal(t, 3, out.Tasks)
	statuses := func() (all []string) {
		for _, task := range []db.Task{urgent, first, low} {
			all = append(all, string(b.get(task.TaskID).Status))
		}
		return all
	}
	require.False(t, b.step(), "it is too early")
	b.saved(out.OperationID, 1500*time.Millisecond)
	require.True(t, b.step())
	require.Equal(t, []string{"PENDING", "FAILED", "FAILED"}, statuses(), "the most urgent first")
	b.saved(out.OperationID, time.Hour)
	require.True(t, b.step())
	require.Equal(t, []string{"PENDING", "PENDING", "PENDING"}, statuses(), "two seconds of the rate are saved up, and no more")
	b.saved(out.OperationID, time.Hour)
	require.True(t, b.step())
	require.Equal(t, db.RedriveStateDONE, b.operation(out.OperationID).State)
	b.saved(out.OperationID, time.Hour)
	require.False(t, b.step())
}

func TestRedriveStopsAndIsUndone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.work(obedient, stalled)
	one, two, three := b.dead("1"), b.dead("2"), b.dead("3")
	w.stop()
	out := b.redrive(Redrive{TaskIDs: named(one, two, three), Rate: 1, InputPatch: json.RawMessage(`[{"op": "remove", "path": "/fail"}]`)})
	b.saved(out.OperationID, 2*time.Second)
	require.True(t, b.step())
	require.EqualValues(t, 2, b.operation(out.OperationID).Redriven)
	pending := b.get(one.TaskID)
	require.JSONEq(t, `{}`, string(pending.Input))
	require.Equal(t, one.Error, pending.Error, "kept until the next end")
	require.Zero(t, pending.Failures)

	_, err := b.DeadLetters.StopRedrive(b.ctx, out.OperationID, Actor{Tenant: "x"})
	require.ErrorIs(t, err, ErrNotFound)
	op, err := b.DeadLetters.StopRedrive(b.ctx, out.OperationID, Actor{Name: "eva", Reason: "wrong"})
	require.NoError(t, err)
	require.Equal(t, db.RedriveStateSTOPPED, op.State)
	require.Equal(t, "eva", *op.StoppedBy)
	require.Equal(t, "wrong", *op.StopReason)
	b.saved(out.OperationID, time.Hour)
	require.False(t, b.step(), "nothing more of it moves")
	again, err := b.DeadLetters.StopRedrive(b.ctx, out.OperationID, Actor{Name: "ann"})
	require.NoError(t, err)
	require.Equal(t, *op.StoppedBy, *again.StoppedBy)

	// One of the two has been ended by hand meanwhile: it is not to be undone.
	_, err = b.Cancel(b.ctx, two.TaskID, Actor{Name: "o"})
	require.NoError(t, err)
	op, err = b.DeadLetters.UndoRedrive(b.ctx, out.OperationID, Actor{Name: "eva", Reason: "all wrong"})
	require.NoError(t, err)
	require.Equal(t, db.RedriveStateUNDONE, op.State)
	require.Equal(t, [3]int32{1, 1, 1}, [3]int32{op.Undone, op.Redriven, op.Waiting})
	back := b.get(one.TaskID)
	require.Equal(t, db.TaskStatusFAILED, back.Status)
	require.Equal(t, one.Error, back.Error)
	require.Equal(t, one.Input, back.Input)
	require.Equal(t, one.Attempt, back.Attempt)
	require.Equal(t, "created started failed redriven released", b.story(one.TaskID))
	require.Equal(t, "eva", ask[string](b, "SELECT actor FROM task_event WHERE task_id = $1 ORDER BY seq DESC LIMIT 1", one.TaskID))
	_, err = b.DeadLetters.UndoRedrive(b.ctx, out.OperationID, Actor{Name: "ann"})
	require.NoError(t, err)
	require.Equal(t, "eva", *b.operation(out.OperationID).UndoneBy)

	rest := b.redrive(Redrive{TaskIDs: named(one, three)})
	b.work(obedient)
	b.opUntil(rest.OperationID, db.RedriveStateDONE)
	b.until(one.TaskID, "failed again", func(task db.Task) bool { return task.Attempt == 2 && task.Status == db.TaskStatusFAILED })
	b.until(three.TaskID, "failed again", func(task db.Task) bool { return task.Attempt == 2 && task.Status == db.TaskStatusFAILED })
}

func TestRedriveCanary(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(obedient)
	var all []db.Task
	for i := range 6 {
		all = append(all, b.dead(fmt.Sprint("item ", i)))
	}
	// Nothing was fixed.
	out := b.redrive(Redrive{TaskIDs: named(all...), Canary: &Canary{Count: 2, MaxFailureRatio: 0.5}})
	op := b.opUntil(out.OperationID, db.RedriveStateSTOPPED)
	require.Equal(t, "canary: 2 of 2 failed", *op.StopReason)
	require.Equal(t, [2]int32{2, 4}, [2]int32{op.Failed, op.Waiting})

	// This helps.
	fix := json.RawMessage(`[{"op": "remove", "path": "/fail"}]`)
	out = b.redrive(Redrive{Filter: &DeadLetterFilter{}, InputPatch: fix, Canary: &Canary{Count: 2, MaxFailureRatio: 0.5}})
	op = b.opUntil(out.OperationID, db.RedriveStateDONE)
	require.EqualValues(t, 6, op.Redriven)
	for _, task := range all {
		b.becomes(task.TaskID, Completed)
	}
}

func TestRedriveCanaryWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.work(obedient, stalled)
	one, two := b.dead("1"), b.dead("2")
	w.stop()
	out := b.redrive(Redrive{TaskIDs: named(one, two), Canary: &Canary{Count: 1, MaxFailureRatio: 1}})
	b.saved(out.OperationID, time.Second)
	require.True(t, b.step())
	for range 3 {
		b.saved(out.OperationID, time.Second)
		require.False(t, b.step(), "the canary has not ended")
	}
	op := b.operation(out.OperationID)
	require.Equal(t, db.RedriveStateCANARY, op.State)
	require.Equal(t, [2]int32{1, 1}, [2]int32{op.Redriven, op.Waiting})
	_, err := b.Cancel(b.ctx, one.TaskID, Actor{Name: "o"})
	require.NoError(t, err)
	b.saved(out.OperationID, time.Second)
	require.True(t, b.step())
	op = b.operation(out.OperationID)
	require.Equal(t, db.RedriveStateDONE, op.State)
	require.EqualValues(t, 2, op.Redriven)
}

// A process that dies between the moves and their note has moved all the same.
func TestRedriveKnowsItsOwnMoves(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.work(obedient, stalled)
	one := b.dead("1")
	w.stop()
	out := b.redrive(Redrive{TaskIDs: named(one)})
	b.saved(out.OperationID, time.Second)
	require.True(t, b.step())
	b.exec("UPDATE redrive_item SET state = 'WAITING', seq = NULL")
	b.exec("UPDATE redrive_operation SET state = 'RUNNING', ended_at = NULL, paced_at = now() - interval '1 s'")
	require.True(t, b.step())
	op := b.operation(out.OperationID)
	require.EqualValues(t, 1, op.Redriven)
	require.Empty(t, op.RejectedTasks)
	require.Equal(t, "created started failed redriven", b.story(one.TaskID))

	b.exec("UPDATE redrive_item SET state = 'WAITING', seq = NULL")
	b.exec("UPDATE redrive_operation SET state = 'RUNNING', ended_at = NULL")
	op, err := b.DeadLetters.UndoRedrive(b.ctx, out.OperationID, Actor{Name: "eva"})
	require.NoError(t, err)
	require.EqualValues(t, 1, op.Undone)
}

func TestTwoRedrivesOfOneTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.work(obedient, stalled)
	var all []db.Task
	for i := range 20 {
		all = append(all, b.dead(fmt.Sprint(i)))
	}
	w.stop()
	one, two := b.redrive(Redrive{TaskIDs: named(all...)}), b.redrive(Redrive{TaskIDs: named(all...)})
	b.saved(one.OperationID, time.Second)
	b.saved(two.OperationID, time.Second)
	other := join(t, b.pool, "p2")
	var both sync.WaitGroup
	for _, p := range []*testBundle{b, other} {
		both.Go(func() {
			_, err := p.DeadLetters.redriveStep(p.ctx)
			if err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	for _, id := range []uuid.UUID{one.OperationID, two.OperationID} {
		b.saved(id, time.Second)
		b.step()
	}
	first, second := b.operation(one.OperationID), b.operation(two.OperationID)
	require.EqualValues(t, len(all), first.Redriven+second.Redriven, "each went once")
	require.EqualValues(t, len(all), first.Rejected+second.Rejected)
	for _, r := range append(first.RejectedTasks, second.RejectedTasks...) {
		require.Equal(t, RejectedNotDeadLetter, r.Code)
	}
	require.Equal(t, len(all), ask[int](b, "SELECT count(*) FROM task_event WHERE type = 'redriven'"))
}

func TestDiscard(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(obedient)
	task, live := b.dead("1"), b.create(remote)
	_, err := b.DeadLetters.Discard(b.ctx, task.TaskID, Actor{Tenant: "x"})
	require.ErrorIs(t, err, ErrNotFound)
	var no *Conflict
	_, err = b.DeadLetters.Discard(b.ctx, live.TaskID, Actor{Name: "eva"})
	require.ErrorAs(t, err, &no)

	waiting := b.redrive(Redrive{TaskIDs: named(task), Rate: 1})
	op, err := b.DeadLetters.StopRedrive(b.ctx, waiting.OperationID, Actor{Name: "eva"})
	require.NoError(t, err)
	require.EqualValues(t, 1, op.Waiting)
	laid, err := b.DeadLetters.Discard(b.ctx, task.TaskID, Actor{Name: "eva", Reason: "old"})
	require.NoError(t, err)
	require.Equal(t, []string{"eva", "old"}, []string{laid.By, laid.Reason})
	again, err := b.DeadLetters.Discard(b.ctx, task.TaskID, Actor{Name: "ann", Reason: "older"})
	require.NoError(t, err)
	require.Equal(t, laid, again)
	after := b.get(task.TaskID)
	require.Equal(t, task.Version, after.Version)
	require.Equal(t, db.TaskStatusFAILED, after.Status)
	rows, next, err := DeadLetters(b.ctx, b.q, "", DeadLetterFilter{}, DeadLetterCursor{}, 10)
	require.NoError(t, err)
	require.Empty(t, rows)
	require.Nil(t, next)
}
