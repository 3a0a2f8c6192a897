package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// patience bounds every wait of a test; none is expected to last.
const patience = outboxtest.Patience

// testBundle is one process's engine, on a database of the test's own.
type testBundle struct {
	*Tasks
	t    *testing.T
	ctx  context.Context
	pool *pgxpool.Pool
	log  *logBook
}

// setup gives a test its engine. When the test has passed, the database is held
// against everything that must always be true (books_test.go).
func setup(t *testing.T, change ...func(*Config)) *testBundle {
	t.Helper()
	pool := dbtest.Get(t)
	t.Cleanup(func() {
		if !t.Failed() {
			requireBooks(t, pool)
		}
	})
	return join(t, pool, "p1", change...)
}

// join is another process on the same database.
func join(t *testing.T, pool *pgxpool.Pool, name string, change ...func(*Config)) *testBundle {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	log := &logBook{}
	cfg := Config{ProcessID: name, Queue: retry.Policy{Backoff: 20 * time.Millisecond, MaxBackoff: 20 * time.Millisecond}, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, fn := range change {
		fn(&cfg)
	}
	b := &testBundle{Tasks: New(pool, cfg), t: t, ctx: ctx, pool: pool, log: log}
	t.Cleanup(func() {
		b.Drain(context.Background())
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, log)
		}
	})
	return b
}

// working is a Runner at work.
type working struct {
	*Runner
	stop func() // asks it to stop and waits until it has
}

// work runs a Runner until the test ends. Its rhythm is quick, for nobody wants
// to wait for a reaper; a test that is about a rhythm sets its own.
func (b *testBundle) work(executors map[string]Registration, change ...func(*RunnerConfig)) *working {
	b.t.Helper()
	return b.workWithGrace(0, executors, change...)
}

func (b *testBundle) workWithGrace(grace time.Duration, executors map[string]Registration, change ...func(*RunnerConfig)) *working {
	b.t.Helper()
	cfg := RunnerConfig{Executors: executors, Poll: 20 * time.Millisecond, Tick: 20 * time.Millisecond}
	for _, fn := range change {
		fn(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &working{Runner: NewRunner(b.Tasks, cfg)}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx, grace) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(b.t, receive(b.t, ended))
	})
	b.t.Cleanup(w.stop)
	return w
}

// stalled is the rhythm of a process that neither beats nor reaps.
func stalled(cfg *RunnerConfig) { cfg.Tick = time.Hour }

// noop registers fn for the executor "noop", which needs no configuration.
func noop(fn ExecutorFunc) map[string]Registration {
	return map[string]Registration{"noop": {Executor: fn}}
}

// does returns an executor that always comes to the same.
func does(output string, err error) ExecutorFunc {
	return func(context.Context, Job) (Result, error) {
		if err != nil {
			return Result{}, err
		}
		return Result{Output: json.RawMessage(output)}, nil
	}
}

// request is a task for the executor "noop" that does not retry.
func request(change ...func(*Request)) Request {
	req := Request{
		TaskDefinitionID: "adhoc", WorkflowID: "wf-1", TaskType: Automated, Actor: "workflow-orchestrator",
		Config: &RequestConfig{RetryPolicy: &RetryPolicy{}, ExecutionConfig: ExecutionConfig{Executor: "noop"}},
	}
	for _, fn := range change {
		fn(&req)
	}
	return req
}

// remote leaves the task to remote workers, so that nobody here takes it.
func remote(req *Request) { req.Config.Executor = ExecutorWorker }

func policy(p RetryPolicy) func(*Request) {
	return func(req *Request) { req.Config.RetryPolicy = &p }
}

func timeout(d time.Duration) func(*Request) {
	return func(req *Request) { req.Config.Timeout = d.Milliseconds() }
}

func visibility(d time.Duration) func(*Request) {
	return func(req *Request) { req.Config.VisibilityTimeout = d.Milliseconds() }
}

func priority(p Priority) func(*Request) {
	return func(req *Request) { req.Priority = p }
}

func key(k string) func(*Request) {
	return func(req *Request) { req.Key, req.Body = k, []byte(`{"key": "`+k+`"}`) }
}

// elsewhere is work that another system answers; see awaiting.
func elsewhere(req *Request) {
	req.TaskType = Integration
	req.Config.Executor = "integration"
	req.Config.Integration = &IntegrationCall{Method: "create_invoice", Instance: "books"}
}

func manual(req *Request) {
	req.TaskType = Manual
	req.Config.Executor = "manual"
}

// assigning gives every manual task to one person.
func assigning(person string) map[string]Registration {
	return map[string]Registration{"manual": {Assigns: true, Executor: ExecutorFunc(func(context.Context, Job) (Result, error) {
		return Result{Assign: &Assignment{AssigneeID: person}}, nil
	})}}
}

func (b *testBundle) create(change ...func(*Request)) db.Task {
	b.t.Helper()
	task, created, err := b.Create(b.ctx, request(change...))
	require.NoError(b.t, err)
	require.True(b.t, created)
	return task
}

func (b *testBundle) get(id uuid.UUID) db.Task {
	b.t.Helper()
	task, err := b.Get(b.ctx, "", id)
	require.NoError(b.t, err)
	return task
}

// becomes waits until the task is in that status.
func (b *testBundle) becomes(id uuid.UUID, want Status) db.Task {
	b.t.Helper()
	return b.until(id, string(want), func(task db.Task) bool { return task.Status == db.TaskStatus(want) })
}

func (b *testBundle) until(id uuid.UUID, what string, met func(db.Task) bool) (task db.Task) {
	b.t.Helper()
	waitFor(b.t, "task to be "+what, func() bool {
		task = b.get(id)
		return met(task)
	})
	return task
}

// exec is a statement of the engine's, outside of any move.
func (b *testBundle) exec(sql string, args ...any) int64 {
	b.t.Helper()
	done, err := b.pool.Exec(b.ctx, sql, args...)
	require.NoError(b.t, err)
	return done.RowsAffected()
}

// force is exec past the triggers, for what no move comes to.
func (b *testBundle) force(sql string, args ...any) {
	b.t.Helper()
	require.NoError(b.t, pgx.BeginFunc(b.ctx, b.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(b.ctx, "SET LOCAL session_replication_role = replica")
		require.NoError(b.t, err)
		_, err = tx.Exec(b.ctx, sql, args...)
		return err
	}))
}

// ask answers a query of one value.
func ask[T any](b *testBundle, sql string, args ...any) (value T) {
	b.t.Helper()
	require.NoError(b.t, b.pool.QueryRow(b.ctx, sql, args...).Scan(&value))
	return value
}

// story is the task's events in order.
func (b *testBundle) story(id uuid.UUID) string {
	b.t.Helper()
	return ask[string](b, "SELECT string_agg(type::text, ' ' ORDER BY seq) FROM task_event WHERE task_id = $1", id)
}

// expire makes the task's lease run out now.
func (b *testBundle) expire(id uuid.UUID) {
	b.t.Helper()
	require.EqualValues(b.t, 1, b.exec("UPDATE lease SET expires_at = now() - interval '1 ms' WHERE task_id = $1", id))
}

// waitFor polls, for what no signal tells.
func waitFor(t *testing.T, what string, met func() bool) {
	t.Helper()
	outboxtest.WaitFor(t, what, met)
}

// receive takes one value or fails the test.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	return outboxtest.Receive(t, from)
}

func codeOf(t *testing.T, task db.Task) string {
	t.Helper()
	var problem struct{ Code string }
	require.NoError(t, json.Unmarshal(task.Error, &problem))
	return problem.Code
}

func ptr[T any](v T) *T { return &v }

// logBook keeps what a process logged.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logBook) says(what string) bool { return strings.Contains(l.String(), what) }
