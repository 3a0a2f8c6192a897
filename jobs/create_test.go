package jobs

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// What Create answers is made from memory; it must be what a read answers later.
func TestCreateAnswersWhatTheTableHolds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	due := time.Now().In(time.FixedZone("CET", 3600)).Add(time.Hour)
	task := b.create(key("k1"), timeout(time.Minute), priority(High), func(req *Request) {
		req.StepID, req.CorrelationID, req.Reference, req.CallbackURL = "s", "c", "r", "https://example.org/cb"
		req.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		req.Input, req.Context, req.DueDate = json.RawMessage(`{"a":1}`), json.RawMessage(`{"b":2}`), &due
	})
	read := b.get(task.TaskID)
	for _, doc := range []struct{ made, read *json.RawMessage }{
		{&task.Input, &read.Input}, {&task.Context, &read.Context}, {&task.Config, &read.Config},
	} {
		require.JSONEq(t, string(*doc.read), string(*doc.made))
		*doc.made, *doc.read = nil, nil
	}
	require.Equal(t, asJSON(t, read), asJSON(t, task))
	require.Equal(t, "created", b.story(task.TaskID))

	var job struct {
		queue, kind, state string
		priority           int16
		attempts           int16
		args, metadata     string
		tags               []string
	}
	require.NoError(t, b.pool.QueryRow(b.ctx, "SELECT queue, kind, state::text, priority, max_attempts, args::text, metadata::text, tags FROM river_job WHERE id = $1", task.JobID).
		Scan(&job.queue, &job.kind, &job.state, &job.priority, &job.attempts, &job.args, &job.metadata, &job.tags))
	require.Equal(t, []any{LaneAutomated, KindAutomated, "available", int16(2), int16(1)}, []any{job.queue, job.kind, job.state, job.priority, job.attempts})
	require.JSONEq(t, `{"task_id": "`+task.TaskID.String()+`", "attempt": 1, "timeout_ms": 60000}`, job.args, "nothing of what the task is about")
	require.JSONEq(t, `{"correlationId": "c", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`, job.metadata)
	require.Equal(t, []string{"task-" + task.TaskID.String(), "wf-wf-1"}, job.tags)
}

func TestTagsAreFitForRiver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	name := "a b/ü,;" + strings.Repeat("x", 300)
	task := b.create(func(req *Request) { req.WorkflowID = name })
	require.Equal(t, name, task.WorkflowID)
	require.Regexp(t, `^wf-[\w-]{1,200}$`, ask[string](b, "SELECT tags[2] FROM river_job WHERE id = $1", task.JobID))
}

func TestSameKeyIsTheSameTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.create(key("k"))
	again, created, err := b.Create(b.ctx, request(key("k"), func(req *Request) { req.Body = []byte(`{ "key":"k" }`) }))
	require.NoError(t, err)
	require.False(t, created)
	require.Equal(t, first.TaskID, again.TaskID)

	_, _, err = b.Create(b.ctx, request(key("k"), func(req *Request) { req.Body = []byte(`{"key": "other"}`) }))
	require.ErrorIs(t, err, ErrKeyReused)

	elsewhere, created, err := b.Create(b.ctx, request(key("k"), func(req *Request) { req.Tenant = "acme" }))
	require.NoError(t, err)
	require.True(t, created, "each tenant has its own keys")
	require.NotEqual(t, first.TaskID, elsewhere.TaskID)
	require.Equal(t, 2, ask[int](b, "SELECT count(*) FROM task"))
}

func TestFiftyWithOneKeyMakeOneTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	processes := []*testBundle{b, join(t, b.pool, "p2"), join(t, b.pool, "p3")}
	var mu sync.Mutex
	made, ids := 0, map[uuid.UUID]bool{}
	start := make(chan struct{})
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			<-start
			p := processes[i%len(processes)]
			task, created, err := p.Create(p.ctx, request(key("one")))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("create: %v", err)
			}
			ids[task.TaskID] = true
			if created {
				made++
			}
		})
	}
	close(start)
	all.Wait()
	require.Equal(t, 1, made)
	require.Len(t, ids, 1)
	require.Equal(t, []int{1, 1, 1}, []int{
		ask[int](b, "SELECT count(*) FROM task"), ask[int](b, "SELECT count(*) FROM river_job"), ask[int](b, "SELECT count(*) FROM task_event"),
	})
}

// One flush carries many requests; what PostgreSQL refuses of one must not touch
// the others.
func TestBadRequestDoesNotFailItsFlush(t *testing.T) {
	t.Parallel()
	b := setup(t)
	good := prepared(b, key("good"))
	bad := prepared(b, func(req *Request) { req.Input = json.RawMessage(`{"a": "\u0000"}`) })
	twin := prepared(b, key("good"))
	plain := prepared(b)
	answers := []chan error{good.answer, bad.answer, twin.answer, plain.answer}
	b.creates.Add(good, bad, twin, plain)
	require.NoError(t, receive(t, answers[0]))
	require.ErrorContains(t, receive(t, answers[1]), "22P05")
	require.NoError(t, receive(t, answers[2]))
	require.NoError(t, receive(t, answers[3]))
	b.creates.Drain()
	require.True(t, good.created)
	require.False(t, twin.created)
	require.True(t, plain.created)
	require.Equal(t, 2, ask[int](b, "SELECT count(*) FROM task"))
}

// A batch is one flush: its tasks share their commit, and each has its own answer.
func TestCreateMany(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.Empty(t, b.CreateMany(b.ctx, nil))
	other := request(key("taken"), func(req *Request) { req.Body = []byte(`{}`) })
	first := b.create(key("taken"))
	flushes := ask[int](b, "SELECT count(*) FROM outbox")

	out := b.CreateMany(b.ctx, []Request{
		request(), request(key("taken")), other, request(func(req *Request) { req.Config = nil }), request(key("twin")), request(key("twin")),
		request(key("taken"), func(req *Request) { req.Tenant = "acme" }),
	})
	require.Len(t, out, 7)
	fresh := []bool{true, false, false, false, true, false, true}
	for i, one := range out {
		require.Equal(t, fresh[i], one.Fresh, i)
		if i == 2 || i == 3 {
			continue
		}
		require.NoError(t, one.Err, i)
	}
	require.Equal(t, first.TaskID, out[1].Task.TaskID)
	require.ErrorIs(t, out[2].Err, ErrKeyReused)
	var bad *Invalid
	require.ErrorAs(t, out[3].Err, &bad)
	require.Equal(t, out[4].Task.TaskID, out[5].Task.TaskID)
	require.Equal(t, "acme", out[6].Task.TenantID)
	require.Equal(t, 4, ask[int](b, "SELECT count(*) FROM task"))
	require.Equal(t, flushes+1, ask[int](b, "SELECT count(*) FROM outbox"), "one commit")

	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	gone := b.CreateMany(ctx, []Request{request(func(req *Request) { req.TaskDefinitionID = "not-known-here-yet" })})
	require.ErrorIs(t, gone[0].Err, ErrUnavailable)
}

func TestRequestsThatCannotBe(t *testing.T) {
	t.Parallel()
	b := setup(t)
	define(t, b)
	for name, tc := range map[string]struct {
		change func(*Request)
		path   string
	}{
		"no definition and no executor": {func(req *Request) { req.Config = nil }, "/taskDefinitionId"},
		"no definition and no type":     {func(req *Request) { req.TaskType = "" }, "/taskDefinitionId"},
		"another type":                  {func(req *Request) { of("calculate")(req); req.TaskType = Manual }, "/taskType"},
		"unknown executor":              {func(req *Request) { req.Config.Executor = "magic" }, "/executionConfig/executor"},
		"input":                         {func(req *Request) { of("calculate")(req); req.Input = json.RawMessage(`{"n": "one"}`) }, "/input/n"},
		"visibility":                    {func(req *Request) { req.Config.VisibilityTimeout = 1 }, "/executionConfig/visibilityTimeout"},
	} {
		_, _, err := b.Create(b.ctx, request(tc.change))
		var bad *Invalid
		require.ErrorAs(t, err, &bad, name)
		require.Equal(t, tc.path, bad.Violations[0].Path, name)
	}
	require.Zero(t, ask[int](b, "SELECT count(*) FROM task"))
}

func TestTenantsDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(func(req *Request) { req.Tenant = "" })
	theirs, _, err := b.Create(b.ctx, request(func(req *Request) { req.Tenant = "acme" }))
	require.NoError(t, err)
	for tenant, id := range map[string]uuid.UUID{"acme": task.TaskID, "": theirs.TaskID, "other": theirs.TaskID} {
		_, err := b.Get(b.ctx, tenant, id)
		require.ErrorIs(t, err, ErrNotFound)
		_, err = b.Cancel(b.ctx, id, Actor{Tenant: tenant})
		require.ErrorIs(t, err, ErrNotFound)
		_, err = b.SetStatus(b.ctx, id, Actor{Tenant: tenant}, Update{Status: Failed})
		require.ErrorIs(t, err, ErrNotFound)
		_, err = b.Worklist.Reassign(b.ctx, id, Actor{Tenant: tenant}, Reassignment{AssigneeID: "ann"})
		require.ErrorIs(t, err, ErrNotFound)
	}
	list, err := b.q.TaskListByWorkflow(b.ctx, db.TaskListByWorkflowParams{WorkflowID: "wf-1", TenantID: "acme", Page: 10})
	require.NoError(t, err)
	require.Len(t, list, 1)
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.MarshalIndent(v, "", " ")
	require.NoError(t, err)
	return string(text)
}
