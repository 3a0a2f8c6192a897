package jobs

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// handled leaves the task to a Go handler.
func handled(handler string) func(*Request) {
	return func(req *Request) {
		req.Config.Executor, req.Config.Handler = executorGo, handler
	}
}

// withHandlers registers the executor "go" with these handlers: each says which it is.
func withHandlers(names ...string) map[string]Registration {
	return map[string]Registration{executorGo: {
		Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
			output, err := json.Marshal(map[string]string{"handler": job.Config.Handler})
			return Result{Output: output}, err
		}),
		Handlers: func() []string { return names },
	}}
}

// Processes with different Go handlers, and one with none, work side by side on one
// database: each task is run once, by a process that has its handler.
func TestProcessesTakeTheHandlersThatTheyHave(t *testing.T) {
	t.Parallel()
	b := setup(t)
	plain := noop(does(`{}`, nil))
	plain[executorGo] = Registration{Executor: ExecutorFunc(func(context.Context, Job) (Result, error) {
		return Result{}, &Failure{Code: "WRONG_PROCESS"}
	})}
	b.work(plain)
	one, two := join(t, b.pool, "p2"), join(t, b.pool, "p3")
	one.work(withHandlers("invoice", "mail"))
	two.work(withHandlers("ship"))

	ran := map[string]string{"invoice": "p2", "mail": "p2", "ship": "p3"}
	var tasks []db.Task
	for range 15 {
		for handler := range ran {
			tasks = append(tasks, b.create(handled(handler)))
		}
	}
	for _, task := range tasks {
		task = b.becomes(task.TaskID, Completed)
		require.EqualValues(t, 1, task.Attempt)
		var said struct{ Handler string }
		require.NoError(t, json.Unmarshal(task.Output, &said))
		require.Equal(t, ran[said.Handler], ask[string](b, "SELECT executor_id FROM task_attempt WHERE task_id = $1", task.TaskID))
	}
}

// What no process has waits for a process that has it, on its place in the queue, and
// nothing is spent. So does a job that an older program filed with all the others.
func TestWhatNobodyHasWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lacking := map[string]Registration{"expression": {Executor: does(`{}`, nil)}}
	b.work(lacking)
	someone := b.create(policy(RetryPolicy{MaxRetries: 5}))
	handler := b.create(handled("invoice"))
	b.exec("UPDATE river_job SET kind = $2 WHERE id = $1", handler.JobID, KindAutomated)
	remoteOne := b.create(func(req *Request) { elsewhere(req) })

	waitFor(t, "both to be filed anew", func() bool {
		return ask[int](b, "SELECT count(*) FROM river_job WHERE kind IN ('task.noop', 'task.go:invoice') AND state = 'available' AND attempt = 0") == 2
	})
	for _, task := range []db.Task{someone, handler, remoteOne} {
		now := b.get(task.TaskID)
		require.Equal(t, []any{Pending, int32(0), task.JobID}, []any{Status(now.Status), now.Attempt, now.JobID})
	}

	kinds := make(chan string, 1)
	executors := withHandlers("invoice")
	executors["integration"] = Registration{Executor: does(`{}`, nil)}
	executors["noop"] = Registration{Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
		kinds <- ask[string](b, "SELECT kind FROM river_job WHERE (args ->> 'task_id')::uuid = $1", job.TaskID)
		return Result{}, nil
	})}
	join(t, b.pool, "p2").work(executors)
	require.Equal(t, KindAutomated, receive(t, kinds), "River's leader discards running jobs of kinds that it does not know")
	for _, task := range []db.Task{someone, handler, remoteOne} {
		require.EqualValues(t, 1, b.becomes(task.TaskID, Completed).Attempt)
	}
}

// A retry waits for the handler as the first attempt does.
func TestRetriesWaitForTheirHandler(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(noop(does(`{}`, nil)))
	executors := withHandlers("flaky")
	works := executors[executorGo].Executor
	executors[executorGo] = Registration{Handlers: executors[executorGo].Handlers, Executor: ExecutorFunc(func(ctx context.Context, job Job) (Result, error) {
		if job.Attempt < 3 {
			return Result{}, &Failure{Code: "NOT_YET"}
		}
		return works.Execute(ctx, job)
	})}
	join(t, b.pool, "p2").work(executors)
	task := b.create(handled("flaky"), policy(RetryPolicy{MaxRetries: 5, RetryInterval: 1}))
	require.EqualValues(t, 3, b.becomes(task.TaskID, Completed).Attempt)
}

func TestWaitingKinds(t *testing.T) {
	t.Parallel()
	require.Equal(t, KindAutomated, waitingKind(Automated, "http", ""))
	require.Equal(t, KindWorker, waitingKind(Automated, ExecutorWorker, ""))
	require.Equal(t, KindIntegration, waitingKind(Integration, "integration", ""))
	require.Equal(t, "task.go:send-invoice", waitingKind(Automated, executorGo, "send-invoice"))
	require.Equal(t, "send-invoice", HandlerOf("task.go:send-invoice"))
	require.Empty(t, HandlerOf(KindAutomated))

	long := strings.Repeat("ü", 200)
	kind := waitingKind(Automated, executorGo, long+"a")
	require.LessOrEqual(t, len(kind), longestKind)
	require.NotEqual(t, kind, waitingKind(Automated, executorGo, long+"b"))
	b := setup(t)
	b.work(withHandlers(long + "a"))
	b.becomes(b.create(handled(long+"a")).TaskID, Completed)
}

// Every process says what it claims, for whoever asks why a task waits.
func TestProcessesSayWhatTheyClaim(t *testing.T) {
	t.Parallel()
	b := setup(t)
	executors := withHandlers("mail")
	executors["noop"] = Registration{Executor: does(`{}`, nil)}
	b.work(executors, stalled)
	b.becomes(b.create().TaskID, Completed) // so it is announced
	require.ElementsMatch(t, []string{KindAutomated, "task.noop", "task.go:mail"}, ask[[]string](b, "SELECT kinds FROM executor"))

	// A sign of life that knows no kinds, as a probe of the database gives, takes none away.
	require.NoError(t, b.seen(b.ctx, db.ExecutorSeenParams{ExecutorID: b.cfg.ProcessID}))
	require.Len(t, ask[[]string](b, "SELECT coalesce(kinds, '{}') FROM executor"), 3)
}

// What workers ask for is written some seconds later, by tenant and queue, and forgotten
// after an hour.
func TestWorkersAreSeen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(noop(does(`{}`, nil)))
	b.exec("INSERT INTO worker (tenant_id, worker_id, queue, definition_ids, seen_at) VALUES ('', 'gone', 'q', '{}', now() - interval '2 hours')")
	dequeue := func(req LeaseRequest) {
		req.Most = 1
		_, err := b.Leases.Acquire(b.ctx, req)
		require.NoError(t, err)
	}
	dequeue(LeaseRequest{Tenant: "acme", Worker: "w-1", Select: []Selection{
		{Lane: LaneAutomated, Definitions: []string{"b", "a"}}, {Lane: LaneAutomated, Definitions: []string{"a"}}, {Lane: LaneRetry},
	}})
	dequeue(LeaseRequest{Worker: "w-1", Select: []Selection{{Lane: LaneIntegration, Definitions: []string{"a"}}, {Lane: LaneIntegration}}})
	type row struct {
		Tenant, Worker, Queue string
		Definitions           []string
	}
	want := []row{
		{"", "w-1", LaneIntegration, []string{}}, {"acme", "w-1", LaneAutomated, []string{"a", "b"}}, {"acme", "w-1", LaneRetry, []string{}},
	}
	var got []row
	waitFor(t, "the workers to be written", func() bool {
		rows, err := b.pool.Query(b.ctx, "SELECT tenant_id, worker_id, queue, definition_ids FROM worker ORDER BY 1, 2, 3")
		require.NoError(t, err)
		got, err = pgx.CollectRows(rows, pgx.RowToStructByPos[row])
		require.NoError(t, err)
		return len(got) == len(want) && got[0].Worker != "gone"
	})
	require.Equal(t, want, got)

	// One that works sends heartbeats, and asks for nothing.
	b.create(remote)
	lease := b.dequeueOne("w-2")
	waitFor(t, "it to be written", func() bool { return ask[int](b, "SELECT count(*) FROM worker WHERE worker_id = 'w-2'") > 0 })
	b.exec("UPDATE worker SET seen_at = now() - interval '50 min' WHERE worker_id = 'w-2'")
	b.beat(lease.Token)
	waitFor(t, "its heartbeat to be written", func() bool {
		return ask[bool](b, "SELECT bool_or(seen_at > now() - interval '1 min') FROM worker WHERE worker_id = 'w-2'")
	})
}

// A tenant that makes up workers takes no room from the others.
func TestWorkersSeenAreBounded(t *testing.T) {
	t.Parallel()
	var w workersSeen
	for i := range 10 * mostWorkersSeen {
		w.note(&LeaseRequest{Tenant: "mallory", Worker: string(rune(i)), Select: []Selection{{Lane: LaneAutomated}}})
	}
	w.note(&LeaseRequest{Tenant: "acme", Worker: "w-1", Select: []Selection{{Lane: LaneAutomated}}})
	for i := range 10 * mostWorkersSeen {
		w.noteHeartbeat("mallory", string(rune(i)))
	}
	all, beats := w.take()
	require.LessOrEqual(t, len(beats), mostWorkersSeen)
	require.LessOrEqual(t, len(all), mostSeenOfOne+1)
	require.Contains(t, all, workerKey{"acme", "w-1", LaneAutomated})
	all, beats = w.take()
	require.Empty(t, all)
	require.Empty(t, beats)
}
