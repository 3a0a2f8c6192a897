package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs/check"
)

var because = Actor{Name: "ops", Reason: "the tax table is wrong"}

// pausable registers a definition of that id without schemas, for an executor.
func pausable(id, executor string) func(*Definition) {
	return func(d *Definition) {
		d.ID, d.Name, d.InputSchema, d.OutputSchema = id, id, nil, nil
		d.ExecutionConfig = ExecutionConfig{Executor: executor}
		if executor == executorGo {
			d.ExecutionConfig.Handler = "invoice"
		}
		if executor == "manual" {
			d.Type, d.RetryPolicy = Manual, &RetryPolicy{}
		}
	}
}

// heldBack waits until so many jobs are held back.
func (b *testBundle) heldBack(n int) {
	b.t.Helper()
	waitFor(b.t, fmt.Sprintf("%d jobs to be held back", n), func() bool {
		return ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'pending'") == n
	})
}

// paused registers a definition for the executor noop, and pauses it.
func (b *testBundle) paused(id string) {
	b.t.Helper()
	define(b.t, b, pausable(id, "noop"))
	_, err := b.Pauses.PauseDefinition(b.ctx, id, because)
	require.NoError(b.t, err)
}

// A paused definition's tasks do not begin, of whatever executor, while others of the same
// queue go on. When it is resumed each is done once, by its first attempt.
func TestPausedDefinitionsTasksDoNotBegin(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var begun atomic.Int64
	counts := ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
		if job.DefinitionID != "free" {
			begun.Add(1)
		}
		return Result{}, nil
	})
	registrations := assigning("ann")
	registrations["noop"] = Registration{Executor: counts, Pure: true}
	registrations[executorGo] = Registration{Executor: counts, Handlers: func() []string { return []string{"invoice"} }}
	for _, executor := range []string{"noop", executorGo, "manual", ExecutorWorker} {
		define(t, b, pausable(executor, executor))
		p, err := b.Pauses.PauseDefinition(b.ctx, executor, because)
		require.NoError(t, err)
		require.Equal(t, []any{PauseOfDefinition, executor, "ops", because.Reason}, []any{p.Scope, p.Name, p.PausedBy, p.Reason})
		require.Nil(t, p.ResumedAt)
	}
	define(t, b, pausable("free", "noop"))
	b.work(registrations)

	var held, free []db.Task
	kinds := map[string]string{"noop": KindAutomated, executorGo: someKind(executorGo, "invoice"), "manual": KindManual, ExecutorWorker: KindWorker}
	for range 10 {
		for _, executor := range []string{"noop", executorGo, "manual", ExecutorWorker} {
			held = append(held, b.create(of(executor)))
		}
		free = append(free, b.create(of("free")))
	}
	for _, task := range free {
		b.becomes(task.TaskID, Completed)
	}
	require.Empty(t, b.dequeue("w"))
	b.heldBack(len(held))
	require.Zero(t, begun.Load())
	for _, task := range held {
		now := b.get(task.TaskID)
		require.Equal(t, []any{Pending, int32(0), task.JobID}, []any{Status(now.Status), now.Attempt, now.JobID})
		var attempt int
		var kind string
		var note struct {
			Paused        struct{ By, At, Reason string }
			CorrelationID string
		}
		var metadata []byte
		require.NoError(t, b.pool.QueryRow(b.ctx, "SELECT attempt, kind, metadata FROM river_job WHERE id = $1 AND attempted_at IS NULL AND attempted_by IS NULL", task.JobID).Scan(&attempt, &kind, &metadata))
		require.Equal(t, []any{0, kinds[task.Executor]}, []any{attempt, kind})
		require.NoError(t, json.Unmarshal(metadata, &note))
		require.Equal(t, []string{"ops", because.Reason, task.CorrelationID}, []string{note.Paused.By, note.Paused.Reason, note.CorrelationID})
	}
	requireBooks(t, b.pool)

	for _, executor := range []string{"noop", executorGo, "manual", ExecutorWorker} {
		p, err := b.Pauses.ResumeDefinition(b.ctx, executor, Actor{Name: "dev", Reason: "mended"})
		require.NoError(t, err)
		require.Equal(t, []string{"ops", "dev", "mended"}, []string{p.PausedBy, p.ResumedBy, p.ResumeReason})
		require.NotNil(t, p.ResumedAt)
	}
	for range 10 {
		require.NoError(t, b.completeLease(b.dequeueOne("w")))
	}
	for _, task := range held {
		if task.Type == db.TaskTypeMANUAL {
			b.becomes(task.TaskID, Assigned)
			continue
		}
		require.EqualValues(t, 1, b.becomes(task.TaskID, Completed).Attempt)
	}
	require.EqualValues(t, 20, begun.Load())
	require.Zero(t, ask[int](b, "SELECT count(*) FROM river_job WHERE metadata ? 'paused'"))
}

func (b *testBundle) completeLease(l Lease) error {
	_, err := b.Leases.Complete(b.ctx, "", l.Token, json.RawMessage(`{}`))
	return err
}

// An attempt under way goes on when its task is paused; the retry that follows waits, and so
// does a redrive.
func TestPausedTaskFinishesItsAttemptAndWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	started, answer := make(chan struct{}), make(chan error)
	b.work(noop(func(ctx context.Context, _ Job) (Result, error) {
		select {
		case started <- struct{}{}:
			return Result{}, <-answer
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	}))
	broken := &Failure{Code: "X", Message: "once more"}
	task := b.create(policy(RetryPolicy{MaxRetries: 1, RetryInterval: 1}))
	other := b.create()
	receive(t, started)
	receive(t, started)
	_, err := b.Pauses.PauseTask(b.ctx, task.TaskID, because)
	require.NoError(t, err)
	again, err := b.Pauses.PauseTask(b.ctx, task.TaskID, Actor{Name: "another", Reason: "too"})
	require.NoError(t, err)
	require.Equal(t, []string{"ops", because.Reason}, []string{again.PausedBy, again.Reason}, "the first pause stands")
	answer <- broken
	answer <- broken
	b.becomes(other.TaskID, Failed)
	b.heldBack(1)
	require.EqualValues(t, 1, b.get(task.TaskID).Attempt)

	resume := func() {
		p, err := b.Pauses.ResumeTask(b.ctx, task.TaskID, because)
		require.NoError(t, err)
		require.NotNil(t, p.ResumedAt)
		p2, err := b.Pauses.ResumeTask(b.ctx, task.TaskID, Actor{Name: "another", Reason: "too"})
		require.NoError(t, err)
		require.Equal(t, p, p2, "the last pause, as it ended")
	}
	resume()
	receive(t, started)
	_, err = b.Pauses.PauseTask(b.ctx, task.TaskID, because)
	require.NoError(t, err)
	answer <- broken
	b.becomes(task.TaskID, Failed)
	var conflict *Conflict
	_, err = b.Pauses.PauseTask(b.ctx, task.TaskID, because)
	require.ErrorAs(t, err, &conflict, "it has ended")

	_, err = b.DeadLetters.Redrive(b.ctx, Actor{Name: "error-handler", Reason: "fixed"}, Redrive{TaskIDs: []uuid.UUID{task.TaskID}, Rate: 1000})
	require.NoError(t, err)
	b.heldBack(1)
	resume()
	receive(t, started)
	answer <- nil
	require.EqualValues(t, 3, b.becomes(task.TaskID, Completed).Attempt)
}

// A tenant's pause holds back its own tasks alone, be the definition its own or the
// platform's; the platform's holds back all that were made under the platform's definition.
func TestPausesOfTenants(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.defineFor("", pausable("shared", "noop"))
	b.defineFor("acme", pausable("own", "noop"))
	b.work(noop(does(`{}`, nil)))
	stands := func(task db.Task, want Status) {
		waitFor(t, "the task to be "+string(want), func() bool {
			now, err := b.Get(b.ctx, task.TenantID, task.TaskID)
			require.NoError(t, err)
			return Status(now.Status) == want
		})
	}
	as := func(tenant string) Actor { return Actor{Tenant: tenant, Name: "ops", Reason: "r"} }

	_, err := b.Pauses.PauseDefinition(b.ctx, "own", as(""))
	require.ErrorIs(t, err, ErrNotFound, "the tenant's definition is nobody else's")
	_, err = b.Pauses.PauseDefinition(b.ctx, "shared", as("acme"))
	require.NoError(t, err)
	mine, theirs, nobodys := b.create(of("shared"), tenant("acme")), b.create(of("shared"), tenant("mallory")), b.create(of("shared"))
	stands(theirs, Completed)
	stands(nobodys, Completed)
	b.heldBack(1)
	_, err = b.Pauses.ResumeDefinition(b.ctx, "shared", as("mallory"))
	require.ErrorIs(t, err, ErrNotFound)
	_, err = b.Pauses.ResumeDefinition(b.ctx, "shared", as(""))
	require.ErrorIs(t, err, ErrNotFound)
	b.heldBack(1)

	// Under two pauses a task waits for the end of both.
	_, err = b.Pauses.PauseDefinition(b.ctx, "shared", as(""))
	require.NoError(t, err)
	second := b.create(of("shared"), tenant("mallory"))
	b.heldBack(2)
	_, err = b.Pauses.ResumeDefinition(b.ctx, "shared", as("acme"))
	require.NoError(t, err)
	b.heldBack(2)
	_, err = b.Pauses.PauseTask(b.ctx, mine.TaskID, as("mallory"))
	require.ErrorIs(t, err, ErrNotFound)
	_, err = b.Pauses.PauseTask(b.ctx, mine.TaskID, as("acme"))
	require.NoError(t, err)
	_, err = b.Pauses.ResumeDefinition(b.ctx, "shared", as(""))
	require.NoError(t, err)
	stands(second, Completed)
	b.heldBack(1)
	_, err = b.Pauses.ResumeTask(b.ctx, mine.TaskID, as("acme"))
	require.NoError(t, err)
	stands(mine, Completed)
	waitFor(t, "every pause to be released", func() bool { return ask[int](b, "SELECT count(*) FROM pause WHERE NOT released") == 0 })

	// A definition of the tenant's own is not the platform's.
	b.defineFor("acme", pausable("shared", "noop"))
	_, err = b.Pauses.PauseDefinition(b.ctx, "shared", as(""))
	require.NoError(t, err)
	stands(b.create(of("shared"), tenant("acme")), Completed)
}

// A queue whose pause somebody has deleted in psql is resumed like any other, and the resume is
// recorded; pausing the queue again makes a pause of its own.
func TestQueueIsResumedWithoutItsPause(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.Pauses.PauseQueue(b.ctx, LaneAutomated, because)
	require.NoError(t, err)
	require.EqualValues(t, 1, b.exec("DELETE FROM pause"))

	resumed, err := b.Pauses.ResumeQueue(b.ctx, LaneAutomated, because)
	require.NoError(t, err)
	require.NotNil(t, resumed.ResumedAt)
	require.Equal(t, because.Name, resumed.ResumedBy)
	require.True(t, ask[bool](b, "SELECT paused_at IS NULL FROM river_queue WHERE name = $1", LaneAutomated))

	again, err := b.Pauses.PauseQueue(b.ctx, LaneAutomated, because)
	require.NoError(t, err)
	require.Nil(t, again.ResumedAt)
}

// What an operator does to a job that is held back is done to its task; a retry of the job
// alone does not begin it.
func TestOperatorsAndHeldJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.paused("held")
	b.work(noop(does(`{}`, nil)))
	cancelled, deleted, ended, retried, lost := b.create(of("held")), b.create(of("held")), b.create(of("held")), b.create(of("held")), b.create(of("held"))
	b.heldBack(5)

	require.NoError(t, b.Operators.CancelJobs(b.ctx, []int64{cancelled.JobID}, "river-ui:o", "cancelled"))
	_, river := b.outsiders()
	_, err := river.JobDelete(b.ctx, deleted.JobID)
	require.NoError(t, err)
	_, err = river.JobCancel(b.ctx, ended.JobID)
	require.NoError(t, err)
	for _, task := range []db.Task{cancelled, deleted, ended} {
		b.becomes(task.TaskID, Cancelled)
	}
	b.force("DELETE FROM river_job WHERE id = $1", lost.JobID) // the reconciler gives it another, which is held back too
	rest, err := b.Operators.RetryJobs(b.ctx, []int64{retried.JobID}, "river-ui:o")
	require.NoError(t, err)
	require.Equal(t, []int64{retried.JobID}, rest)
	_, err = river.JobRetry(b.ctx, retried.JobID)
	require.NoError(t, err)
	b.until(lost.TaskID, "given another job", func(task db.Task) bool { return task.JobID != lost.JobID })
	b.heldBack(2)
	require.Zero(t, ask[int](b, "SELECT count(*) FROM task_attempt"))

	_, err = b.Pauses.ResumeDefinition(b.ctx, "held", because)
	require.NoError(t, err)
	b.becomes(retried.TaskID, Completed)
	b.becomes(lost.TaskID, Completed)
}

// Who pauses a queue is recorded whichever way it is done, and claims go by it.
func TestQueuePausesAreRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rows := func() string {
		return ask[string](b, `
			SELECT string_agg(concat_ws(' ', name, in_force, paused_by, pause_reason, resumed_by, resume_reason), '; ' ORDER BY paused_at)
			FROM report.pause WHERE scope = 'queue'`)
	}
	me := ask[string](b, "SELECT 'role:' || session_user")
	b.exec("UPDATE river_queue SET paused_at = now() WHERE name = $1", LaneAutomated)
	require.Equal(t, LaneAutomated+" t "+me+" ", rows())
	p, err := b.Pauses.PauseQueue(b.ctx, LaneAutomated, because)
	require.NoError(t, err)
	require.Equal(t, []any{me, "", PauseOfQueue}, []any{p.PausedBy, p.Reason, p.Scope}, "the first pause stands")
	b.work(noop(does(`{}`, nil)))
	task := b.create()
	require.Equal(t, Pending, Status(b.get(task.TaskID).Status))
	p, err = b.Pauses.ResumeQueue(b.ctx, LaneAutomated, Actor{Name: "dev", Reason: "mended"})
	require.NoError(t, err)
	require.Equal(t, []string{"dev", "mended"}, []string{p.ResumedBy, p.ResumeReason})
	again, err := b.Pauses.ResumeQueue(b.ctx, LaneAutomated, because)
	require.NoError(t, err)
	require.Equal(t, p, again)
	b.becomes(task.TaskID, Completed)

	_, err = b.Pauses.PauseQueue(b.ctx, LaneManual, because)
	require.NoError(t, err)
	b.exec("UPDATE river_queue SET paused_at = NULL WHERE name = $1", LaneManual)
	require.Equal(t, LaneAutomated+" f "+me+"  dev mended; "+LaneManual+" f ops "+because.Reason+" "+me+" ", rows())
	b.exec("UPDATE river_queue SET paused_at = now() WHERE name = $1", LaneManual)
	b.exec("DELETE FROM river_queue WHERE name = $1", LaneManual)
	require.Zero(t, ask[int](b, "SELECT count(*) FROM pause WHERE resumed_at IS NULL OR NOT released"))

	for _, do := range []func(context.Context, string, Actor) (Pause, error){b.Pauses.PauseQueue, b.Pauses.ResumeQueue, b.Pauses.PauseDefinition, b.Pauses.ResumeDefinition} {
		_, err = do(b.ctx, "nowhere", because)
		require.ErrorIs(t, err, ErrNotFound)
	}
	_, err = b.Pauses.ResumeQueue(b.ctx, LaneRetry, because)
	require.ErrorIs(t, err, ErrNotFound, "never paused")
	_, err = b.Pauses.PauseTask(b.ctx, uuid.New(), because)
	require.ErrorIs(t, err, ErrNotFound)
}

// Two hundred pauses and resumes while two thousand tasks run, by two processes and a remote
// worker: no task is lost, none runs twice, and every rule holds at any time.
func TestPausesRaceWithClaims(t *testing.T) {
	t.Parallel()
	b := setup(t)
	define(t, b, pausable("held", "noop"))
	define(t, b, pausable("remote", ExecutorWorker))
	other := join(t, b.pool, "p2")
	for _, p := range []*testBundle{b, other} {
		p.work(noop(does(`{}`, nil)), func(cfg *RunnerConfig) { cfg.Slots = map[string]int{LaneAutomated: 20} })
	}
	working, stop := context.WithCancel(b.ctx)
	worked := make(chan error, 1)
	go func() { worked <- b.workRemotely(working) }()

	const tasks, rounds = 2000, 200
	made := make(chan error, 1)
	go func() {
		for n := range tasks {
			definition := "held"
			if n%10 == 0 {
				definition = "remote"
			}
			if _, _, err := b.Create(b.ctx, request(of(definition))); err != nil {
				made <- err
				return
			}
		}
		made <- nil
	}()
	for round := range rounds {
		p := []*testBundle{b, other}[round%2]
		for _, definition := range []string{"held", "remote"} {
			_, err := p.Pauses.PauseDefinition(p.ctx, definition, because)
			require.NoError(t, err)
		}
		if round%50 == 25 {
			report, err := check.Run(b.ctx, b.pool, check.Options{})
			require.NoError(t, err)
			require.Empty(t, report.Offending())
		}
		for _, definition := range []string{"held", "remote"} {
			_, err := p.Pauses.ResumeDefinition(p.ctx, definition, because)
			require.NoError(t, err)
		}
	}
	require.NoError(t, receive(t, made))
	waitFor(t, "every task to end", func() bool { return ask[int](b, "SELECT count(*) FROM task WHERE status = 'COMPLETED'") == tasks })
	stop()
	require.NoError(t, receive(t, worked))
	require.Equal(t, tasks, ask[int](b, "SELECT count(*) FROM task_attempt"))
	waitFor(t, "every pause to be released", func() bool { return ask[int](b, "SELECT count(*) FROM pause WHERE NOT released") == 0 })
	require.Equal(t, 2*rounds, ask[int](b, "SELECT count(*) FROM pause"))
}

// workRemotely leases and completes until ctx ends.
func (b *testBundle) workRemotely(ctx context.Context) error {
	for ctx.Err() == nil {
		found, err := b.Leases.Acquire(ctx, LeaseRequest{Worker: "w", Most: 5, Wait: 50 * time.Millisecond, Select: []Selection{{Lane: LaneAutomated}}})
		if err != nil && ctx.Err() == nil {
			return err
		}
		for _, l := range found {
			if err := b.completeLease(l); err != nil {
				return err
			}
		}
	}
	return nil
}
