package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/inbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// busBundle is a testBundle with a real bus, and the dead letters of the bus.
type busBundle struct {
	*testBundle
	bus         *natsbus.Bus
	deadLetters chan outbox.Delivery
}

// patience bounds every wait; none is expected to last.
const patience = time.Minute

func withBus(t *testing.T, b *testBundle) *busBundle {
	t.Helper()
	e := &busBundle{testBundle: b, deadLetters: make(chan outbox.Delivery, 64)}
	var err error
	e.bus, err = natsbus.Open(t.Context(), natsbus.Config{StoreDir: t.TempDir(), NoSync: true, Logger: slog.New(slog.NewJSONHandler(b.log, nil))})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.bus.Close(context.Background())) })
	require.NoError(t, e.bus.Subscribe(t.Context(), "deadletter.>", natsbus.All, func(d outbox.Delivery, _ uint64) { e.deadLetters <- d }))
	e.consume(t)
	return e
}

// consume handles all subjects until the test ends, as one process does.
func (e *busBundle) consume(t *testing.T) {
	t.Helper()
	inbox := inbox.New(e.pool)
	e.bus.OnDeadLetter(inbox.Dead)
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() { stop(); all.Wait() })
	for _, s := range api.Subscriptions(api.EventsConfig{Tasks: e.tasks, Inbox: inbox, Logger: slog.New(slog.NewJSONHandler(e.log, nil))}) {
		all.Go(func() { _ = e.bus.Consume(ctx, s.Durable, s.Subject, s.Handle) })
	}
}

// envelope is a message as the interface document has it.
func envelope(subject string, data object, change ...object) object {
	return merge(object{
		"type": subject, "id": uuid.NewString(), "timestamp": time.Now().UTC().Format(time.RFC3339Nano), "data": data,
		"metadata": object{"correlationId": "c-1", "source": "workflow-orchestrator"},
	}, change...)
}

func (e *busBundle) send(t *testing.T, subject string, body any, headers ...string) {
	t.Helper()
	text, ok := body.(string)
	if !ok {
		raw, err := json.Marshal(body)
		require.NoError(t, err)
		text = string(raw)
	}
	header := map[string]string{}
	for i := 0; i < len(headers); i += 2 {
		header[headers[i]] = headers[i+1]
	}
	require.NoError(t, e.bus.Send(t.Context(), subject, header, []byte(text)))
}

// becomes waits until a query answers what is wanted.
func becomes[T comparable](t *testing.T, e *busBundle, want T, sql string, args ...any) {
	t.Helper()
	waitFor(t, func() error {
		var got T
		if err := e.pool.QueryRow(t.Context(), sql, args...).Scan(&got); err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%s: %v, not %v\n%s", sql, got, want, e.log)
		}
		return nil
	})
}

func waitFor(t *testing.T, check func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			require.NoError(t, err)
		}
	}
}

// deadLetter waits for the next dead letter.
func (e *busBundle) deadLetter(t *testing.T) outbox.Delivery {
	t.Helper()
	select {
	case d := <-e.deadLetters:
		return d
	case <-time.After(patience):
		require.FailNow(t, "no dead letter", "%s", e.log)
		return outbox.Delivery{}
	}
}

// counted waits until the metrics say what came of the messages of a subject.
func (e *busBundle) counted(t *testing.T, subject string, acted, ignored, repeated, dead int) {
	t.Helper()
	want := object{"subject": subject, "acted": float64(acted), "ignored": float64(ignored), "repeated": float64(repeated), "dead": float64(dead)}
	waitFor(t, func() error {
		m := e.ask(t, monitoring, "GET", tasksPath+"/metrics", nil).is(t, 200)
		for _, of := range m["inbound"].([]any) {
			if fmt.Sprint(of) == fmt.Sprint(want) {
				return nil
			}
		}
		return fmt.Errorf("%v, not %v\n%s", m["inbound"], want, e.log)
	})
}

const requestedSubject = outbox.SubjectTaskRequested

// workflow.task_requested → TaskRequestHandler.
func TestTaskRequestHandlerCreatesTheTask(t *testing.T) {
	t.Parallel()
	e := withBus(t, setup(t))
	span := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	body := envelope(requestedSubject, noop(object{
		"requestId": "r-1", "stepId": "s-1", "priority": "HIGH",
		"executionConfig": object{"executor": "noop", "securityContext": object{"tenantId": "acme", "userId": "u-1"}},
	}))
	e.send(t, requestedSubject, body, "traceparent", span)
	becomes(t, e, "acme c-1 r-1 s-1 2 "+span, `SELECT concat_ws(' ', tenant_id, correlation_id, request_id, step_id, priority, traceparent) FROM task`)
	becomes(t, e, "bus:workflow.task_requested", "SELECT actor FROM task_event WHERE type = 'created'")
	e.counted(t, requestedSubject, 1, 0, 0, 0)
	becomes(t, e, "created true", "SELECT outcome || ' ' || (detail = task_id::text) FROM inbox, task WHERE event_id = $1", body["id"])

	// The same message, the same request in another message, and the same over HTTP by
	// who may: one task.
	e.send(t, requestedSubject, body)
	e.counted(t, requestedSubject, 1, 0, 1, 0)
	e.send(t, requestedSubject, merge(body, object{"id": uuid.NewString()}))
	e.counted(t, requestedSubject, 1, 0, 2, 0)
	token, err := e.auth.Mint(peertest.TokenOptions{Service: orchestrator, Tenant: "acme"})
	require.NoError(t, err)
	e.askWith(t, token, "POST", tasksPath, body["data"]).is(t, 200)
	becomes(t, e, 1, "SELECT count(*)::int FROM task")

	// Without a requestId it is the event's id, and without a tenant it is nobody's.
	plain := envelope(requestedSubject, noop(), object{"metadata": nil})
	e.send(t, requestedSubject, plain, "ce-traceparent", strings.ReplaceAll(span, "-", "%2D")) // encoded, more than it must be
	becomes(t, e, " "+span, "SELECT tenant_id || ' ' || traceparent FROM task WHERE request_id = $1", plain["id"])
	becomes(t, e, 2, "SELECT count(*)::int FROM task_event WHERE type = 'created' AND actor = 'bus:workflow.task_requested'")
	require.Empty(t, e.deadLetters)
}

// What can never succeed ends on the dead-letter subject: once, with a reason that
// names places and not what stands there, counted, and with nothing behind it held up.
func TestTaskRequestHandlerBuriesWhatCanNeverSucceed(t *testing.T) {
	t.Parallel()
	e := withBus(t, setup(t))
	e.ask(t, orchestrator, "PUT", "/api/internal/task-definitions/strict", object{
		"name": "Strict", "type": "AUTOMATED", "version": "1.0.0",
		"inputSchema":     object{"type": "object", "required": []string{"n"}, "properties": object{"n": object{"type": "integer"}}},
		"executionConfig": object{"executor": "noop"},
	}).is(t, 201)
	strict := func(change ...object) object {
		return merge(object{"taskDefinitionId": "strict", "workflowId": "w", "input": object{"n": 1}}, change...)
	}
	first := envelope(requestedSubject, strict(object{"requestId": "taken"}))
	e.send(t, requestedSubject, first)
	e.counted(t, requestedSubject, 1, 0, 0, 0)

	bad := map[string]struct {
		body   any
		reason string
	}{
		"no JSON":         {`{"id": canary`, "not acceptable JSON: .*at byte 7"},
		"two values":      {`{} {"canary": 1}`, "not acceptable JSON: .*more than one value"},
		"not an object":   {`["canary"]`, "not a workflow.task_requested: .*object"},
		"no id":           {envelope(requestedSubject, strict(), object{"id": nil}), "not a workflow.task_requested: .*id"},
		"an endless id":   {envelope(requestedSubject, strict(), object{"id": strings.Repeat("canary", 100)}), "^not a workflow.task_requested: id: "},
		"another event":   {envelope("canary.event", strict()), "^not a workflow.task_requested: type: "},
		"no data":         {envelope(requestedSubject, nil, object{"data": nil}), "data"},
		"no workflow":     {envelope(requestedSubject, strict(object{"workflowId": nil})), "data.*workflowId"},
		"unknown member":  {envelope(requestedSubject, strict(object{"colour": "canary"})), "data.colour: "},
		"a wrong type":    {envelope(requestedSubject, strict(object{"priority": "canary"})), "data.priority: "},
		"no definition":   {envelope(requestedSubject, strict(object{"taskDefinitionId": "canary"})), "data.taskDefinitionId: no such task definition"},
		"another type":    {envelope(requestedSubject, strict(object{"taskType": "MANUAL"})), "data.taskType: is not the definition's type"},
		"input":           {envelope(requestedSubject, strict(object{"input": object{"n": "canary"}})), "data.input.n: "},
		"key reused":      {envelope(requestedSubject, strict(object{"requestId": "taken", "input": object{"n": 2}})), "data.requestId .or id, without one. was used before"},
		"a bad executor":  {envelope(requestedSubject, noop(object{"executionConfig": object{"executor": "manual"}})), "data.executionConfig.executor: "},
		"a correlation":   {envelope(requestedSubject, strict(), object{"metadata": object{"correlationId": "canary\n"}}), "metadata.correlationId: "},
		"a tenant of 42":  {envelope(requestedSubject, noop(object{"executionConfig": object{"executor": "noop", "securityContext": object{"tenantId": 42}}})), "data.executionConfig.securityContext.tenantId: "},
		"a tenantid":      {envelope(requestedSubject, noop(object{"executionConfig": object{"executor": "noop", "securityContext": object{"tenantid": "canary"}}})), "data.executionConfig.securityContext.tenantid: "},
		"a year too far":  {envelope(requestedSubject, strict(object{"dueDate": "9999-12-31T23:59:59-01:00"})), "data.dueDate: a time is in the years"},
		"null in a place": {envelope(requestedSubject, strict(object{"stepId": nil, "workflowId": 7})), "data.workflowId: "},
	}
	for name, tc := range bad {
		e.send(t, requestedSubject, tc.body, "Case", name)
	}
	e.send(t, requestedSubject, envelope(requestedSubject, strict()))
	for range bad {
		d := e.deadLetter(t)
		tc := bad[d.Header["Case"]]
		require.Equal(t, "deadletter."+requestedSubject, d.Subject)
		require.Regexp(t, tc.reason, d.Header["Tes-Reason"], d.Header["Case"])
		require.NotContains(t, d.Header["Tes-Reason"], "canary", d.Header["Case"])
	}
	e.counted(t, requestedSubject, 2, 0, 0, len(bad))
	becomes(t, e, len(bad), "SELECT count(*)::int FROM inbox WHERE outcome = 'dead' AND detail <> ''")
	becomes(t, e, 2, "SELECT count(*)::int FROM task")
	require.Empty(t, e.deadLetters)
}

// A database that is away is no fault of the message: it is acted upon when the
// database is back, and no delivery is spent on the wait.
func TestTaskRequestHandlerWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	pool := dbtest.Get(t)
	e := withBus(t, setupOn(t, pool, dbtest.URL(pool)))
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)
	body := envelope(requestedSubject, noop(object{"requestId": "r-1"}))
	e.send(t, requestedSubject, body)
	// The server cuts whoever waits for the lock, as it does when it goes down.
	cut := 0
	waitFor(t, func() error {
		tag, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%FROM inbox%'`)
		require.NoError(t, err)
		if cut += int(tag.RowsAffected()); cut < 3 {
			return errors.New("nobody asks the inbox")
		}
		return nil
	})
	require.NoError(t, tx.Rollback(t.Context()))
	e.counted(t, requestedSubject, 1, 0, 0, 0)
	becomes(t, e, 1, "SELECT count(*)::int FROM task WHERE request_id = 'r-1'")
	require.NotContains(t, e.log.String(), "message will come again")
	require.Empty(t, e.deadLetters)
}

// Messages share commits, as requests over HTTP do.
func TestTaskRequestHandlerSharesCommits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := &busBundle{testBundle: b}
	var err error
	e.bus, err = natsbus.Open(t.Context(), natsbus.Config{StoreDir: t.TempDir(), NoSync: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.bus.Close(context.Background())) })
	const n = 5000
	var senders sync.WaitGroup
	for part := range 8 {
		senders.Go(func() {
			for i := range n / 8 {
				text, _ := json.Marshal(envelope(requestedSubject, noop(object{"requestId": fmt.Sprintf("r-%d-%d", part, i)})))
				if err := e.bus.Send(context.Background(), requestedSubject, nil, text); err != nil {
					t.Error(err)
				}
			}
		})
	}
	senders.Wait()
	begun := time.Now()
	e.consume(t)
	e.counted(t, requestedSubject, n, 0, 0, 0)
	took := time.Since(begun)
	becomes(t, e, n, "SELECT count(*)::int FROM task")
	var flushes int
	require.NoError(t, e.pool.QueryRow(t.Context(), "SELECT count(DISTINCT xmin::text)::int FROM task").Scan(&flushes))
	t.Logf("%d task requests in %v: %.0f/s, in %d commits", n, took.Round(time.Millisecond), n/took.Seconds(), flushes)
	require.Less(t, flushes, n/4, "each in a commit of its own")
}
