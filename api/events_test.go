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
	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/inbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// ears is the door with a real bus beside it, and everything that is heard.
type ears struct {
	*testBundle
	bus     *natsbus.Bus
	letters chan outbox.Delivery
}

// patience bounds every wait; none is expected to last.
const patience = time.Minute

func listening(t *testing.T, b *testBundle) *ears {
	t.Helper()
	e := &ears{testBundle: b, letters: make(chan outbox.Delivery, 64)}
	var err error
	e.bus, err = natsbus.Open(t.Context(), natsbus.Config{StoreDir: t.TempDir(), NoSync: true, Logger: slog.New(slog.NewJSONHandler(b.log, nil))})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.bus.Close(context.Background())) })
	require.NoError(t, e.bus.Subscribe(t.Context(), "deadletter.>", natsbus.All, func(d outbox.Delivery, _ uint64) { e.letters <- d }))
	e.hear(t)
	return e
}

// hear consumes all subjects until the test ends, as one process does.
func (e *ears) hear(t *testing.T) {
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

func (e *ears) send(t *testing.T, subject string, body any, headers ...string) {
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
func becomes[T comparable](t *testing.T, e *ears, want T, sql string, args ...any) {
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

// letter is the next dead letter's reason.
func (e *ears) letter(t *testing.T) outbox.Delivery {
	t.Helper()
	select {
	case d := <-e.letters:
		return d
	case <-time.After(patience):
		require.FailNow(t, "no dead letter", "%s", e.log)
		return outbox.Delivery{}
	}
}

// counted waits until the metrics say what came of the messages of a subject.
func (e *ears) counted(t *testing.T, subject string, acted, ignored, repeated, dead int) {
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
	e := listening(t, setup(t))
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
	require.Empty(t, e.letters)
}

// What can never succeed ends on the dead-letter subject: once, with a reason that
// names places and not what stands there, counted, and with nothing behind it held up.
func TestTaskRequestHandlerBuriesWhatCanNeverSucceed(t *testing.T) {
	t.Parallel()
	e := listening(t, setup(t))
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
		"no definition":   {envelope(requestedSubject, strict(object{"taskDefinitionId": "canary"})), "data.taskDefinitionId: there is no such task definition"},
		"another type":    {envelope(requestedSubject, strict(object{"taskType": "MANUAL"})), "data.taskType: is another than the definition's"},
		"input":           {envelope(requestedSubject, strict(object{"input": object{"n": "canary"}})), "data.input.n: "},
		"key reused":      {envelope(requestedSubject, strict(object{"requestId": "taken", "input": object{"n": 2}})), "data.requestId, or else id, was used before"},
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
		d := e.letter(t)
		tc := bad[d.Header["Case"]]
		require.Equal(t, "deadletter."+requestedSubject, d.Subject)
		require.Regexp(t, tc.reason, d.Header["Tes-Reason"], d.Header["Case"])
		require.NotContains(t, d.Header["Tes-Reason"], "canary", d.Header["Case"])
	}
	e.counted(t, requestedSubject, 2, 0, 0, len(bad))
	becomes(t, e, len(bad), "SELECT count(*)::int FROM inbox WHERE outcome = 'dead' AND detail <> ''")
	becomes(t, e, 2, "SELECT count(*)::int FROM task")
	require.Empty(t, e.letters)
}

// A database that is away is no fault of the message: it is acted upon when the
// database is back, and no delivery is spent on the wait.
func TestTaskRequestHandlerWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	pool := dbtest.Get(t)
	e := listening(t, setupOn(t, pool, dbtest.URL(pool)))
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
	require.Empty(t, e.letters)
}

// Messages share commits, as requests over HTTP do.
func TestTaskRequestHandlerSharesCommits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := &ears{testBundle: b}
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
	e.hear(t)
	e.counted(t, requestedSubject, n, 0, 0, 0)
	took := time.Since(begun)
	becomes(t, e, n, "SELECT count(*)::int FROM task")
	var flushes int
	require.NoError(t, e.pool.QueryRow(t.Context(), "SELECT count(DISTINCT xmin::text)::int FROM task").Scan(&flushes))
	t.Logf("%d task requests in %v: %.0f/s, in %d commits", n, took.Round(time.Millisecond), n/took.Seconds(), flushes)
	require.Less(t, flushes, n/4, "each in a commit of its own")
}

const responseSubject = outbox.SubjectIntegrationResponse

// waiting makes a task that waits for an answer, as the integration executor does.
func (e *ears) waiting(t *testing.T) (id string) {
	t.Helper()
	path, task := e.create(t, noop())
	e.ask(t, orchestrator, "PUT", path+"/status", object{"status": "RUNNING"}).is(t, 200)
	e.exec(t, "UPDATE lease SET kind = 'response', invocation_id = 'inv-1' WHERE task_id = $1", task["taskId"])
	return task["taskId"].(string)
}

func response(id string, change ...object) object {
	return envelope(responseSubject, merge(object{"taskId": id, "invocationId": "inv-1", "integrationId": "mail", "status": "SUCCESS", "data": object{"sent": true}}, change...))
}

// integration.response_received → IntegrationResponseHandler.
func TestIntegrationResponseHandlerEndsTheAttempt(t *testing.T) {
	t.Parallel()
	e := listening(t, setup(t))
	id := e.waiting(t)
	in := response(id)
	e.send(t, responseSubject, in)
	becomes(t, e, `COMPLETED {"sent": true}`, "SELECT status || ' ' || output::text FROM task WHERE task_id = $1", id)
	e.counted(t, responseSubject, 1, 0, 0, 0)
	becomes(t, e, "completed "+id, "SELECT outcome || ' ' || detail FROM inbox WHERE event_id = $1", in["id"])

	// A failure, with the task named in the metadata and members that are null.
	failing := e.waiting(t)
	e.send(t, responseSubject, merge(response("", object{
		"taskId": nil, "status": "FAILED", "data": nil, "retryable": nil, "error": object{"code": "VALIDATION_ERROR", "message": "no such account", "details": []any{1}},
	}), object{"metadata": object{"taskId": failing}}))
	becomes(t, e, "FAILED VALIDATION_ERROR", "SELECT status || ' ' || (error ->> 'code') FROM task WHERE task_id = $1", failing)
	e.counted(t, responseSubject, 2, 0, 0, 0)
	require.Empty(t, e.letters)
}

// One that comes late, twice, or for nobody changes nothing and is recorded; one that
// can never be acted upon is buried.
func TestIntegrationResponseHandlerRecordsWhatChangesNothing(t *testing.T) {
	t.Parallel()
	e := listening(t, setup(t))
	id := e.waiting(t)
	in := response(id)
	e.send(t, responseSubject, in)
	e.counted(t, responseSubject, 1, 0, 0, 0)
	version := func() (v string) {
		require.NoError(t, e.pool.QueryRow(t.Context(), "SELECT md5(t::text) FROM task t WHERE task_id = $1", id).Scan(&v))
		return v
	}
	before := version()

	e.send(t, responseSubject, in)
	e.counted(t, responseSubject, 1, 0, 1, 0)
	tardy := response(id, object{"status": "FAILED"})
	e.send(t, responseSubject, tardy)
	becomes(t, e, "late", "SELECT outcome FROM inbox WHERE event_id = $1", tardy["id"])
	nobodys := response("order-7")
	e.send(t, responseSubject, nobodys)
	becomes(t, e, "unknown", "SELECT outcome FROM inbox WHERE event_id = $1", nobodys["id"])
	e.counted(t, responseSubject, 1, 2, 1, 0)
	require.Equal(t, before, version())

	for _, bad := range []object{
		response(id, object{"status": "canary"}), response(id, object{"status": nil}), response("", object{"taskId": nil}),
		response(id, object{"taskId": strings.Repeat("canary", 40)}), response(id, object{"error": "canary"}),
	} {
		e.send(t, responseSubject, bad)
		reason := e.letter(t).Header["Tes-Reason"]
		require.Contains(t, reason, "not a integration.response_received: data")
		require.NotContains(t, reason, "canary")
	}
	e.counted(t, responseSubject, 1, 2, 1, 5)
}

// A response that comes before its task is committed waits for it, for about a
// minute; what nobody ever knew of is recorded then.
func TestIntegrationResponseHandlerWaitsForItsTask(t *testing.T) {
	t.Parallel()
	e := listening(t, setup(t))
	other := e.waiting(t)
	id := uuid.NewString()
	in := response(id)
	e.send(t, responseSubject, in)
	waitFor(t, func() error {
		if !strings.Contains(e.log.String(), "there is no such task") {
			return errors.New("it was not asked for again")
		}
		return nil
	})
	becomes(t, e, 0, "SELECT count(*)::int FROM inbox")
	// Its task is committed only now.
	e.force(t, `WITH moved AS (UPDATE lease SET task_id = $2 WHERE task_id = $1 RETURNING 1),
		renamed AS (UPDATE task_attempt SET task_id = $2 WHERE task_id = $1 RETURNING 1)
		UPDATE task SET task_id = $2, version = version WHERE task_id = $1`, other, id)
	becomes(t, e, "COMPLETED", "SELECT status::text FROM task WHERE task_id = $1", id)
	e.counted(t, responseSubject, 1, 0, 0, 0)

	// The same handler, with a message that is a minute old.
	var handle outbox.Handler
	for _, s := range api.Subscriptions(api.EventsConfig{Tasks: e.tasks, Inbox: inbox.New(e.pool)}) {
		if s.Subject == responseSubject {
			handle = s.Handle
		}
	}
	old := response(uuid.NewString())
	text, err := json.Marshal(old)
	require.NoError(t, err)
	d := outbox.Delivery{Subject: responseSubject, Body: text, Redelivered: 3, At: time.Now().Add(-50 * time.Second)}
	require.ErrorIs(t, handle(t.Context(), d), jobs.ErrNotYet)
	d.At = time.Now().Add(-61 * time.Second)
	require.NoError(t, handle(t.Context(), d))
	becomes(t, e, "unknown", "SELECT outcome FROM inbox WHERE event_id = $1", old["id"])
	require.Empty(t, e.letters)
}

const maintenanceSubject = outbox.SubjectMaintenance

// claims says whether a lane gives a job out.
func (e *ears) claims(t *testing.T, lane, kind string) bool {
	t.Helper()
	rows, err := db.New(e.pool).LaneClaim(t.Context(), db.LaneClaimParams{Lane: lane, Kind: kind, Becomes: kind, Slots: 1, ExecutorID: "p1"})
	require.NoError(t, err)
	return len(rows) > 0
}

// system.maintenance_mode → SystemEventHandler.
func TestSystemEventHandlerMaintenance(t *testing.T) {
	t.Parallel()
	e := listening(t, setup(t))
	e.attend(t)
	set := func(data object, change ...object) object {
		in := envelope(maintenanceSubject, data, change...)
		e.send(t, maintenanceSubject, in)
		return in
	}
	in := set(object{"enabled": true, "lanes": []string{jobs.LaneAutomated, jobs.LaneAutomated}, "reason": "new disks"})
	becomes(t, e, "begun", "SELECT outcome FROM inbox WHERE event_id = $1", in["id"])

	// Accepting and reading go on; nothing is taken, not by a worker either; why says so.
	path, _ := e.create(t, noop())
	e.create(t, noop(object{"executionConfig": object{"executor": "worker"}}))
	w := e.why(t, path, "MAINTENANCE", "^task-execution-automated is in maintenance since 20.*Z: new disks$")
	require.EqualValues(t, 0, w["position"])
	require.False(t, e.claims(t, jobs.LaneAutomated, jobs.KindAutomated))
	lease := func() []any {
		r := e.ask(t, "task-worker", "POST", "/api/internal/leases", object{"workerId": "w1", "requestId": uuid.NewString(), "select": []any{object{"queue": jobs.LaneAutomated}}})
		return r.is(t, 200)["leases"].([]any)
	}
	require.Empty(t, lease())
	// The page of River may say that the lane goes on: it does not.
	e.exec(t, "UPDATE river_queue SET paused_at = NULL WHERE name = $1", jobs.LaneAutomated)
	require.False(t, e.claims(t, jobs.LaneAutomated, jobs.KindAutomated))
	other, _ := e.create(t, manual())
	e.why(t, other, nil, "^next in line in task-execution-manual$")
	ready := e.askWith(t, "", "GET", "/readyz", nil).is(t, 200)
	require.Equal(t, "ok", ready["status"])
	resting := ready["maintenance"].([]any)
	require.Len(t, resting, 1)
	require.Equal(t, jobs.LaneAutomated, resting[0].(object)["lane"])
	require.Equal(t, "new disks", resting[0].(object)["reason"])

	// The same again, prolonged: since is what it was. Then until passes.
	since := w["since"]
	becomes(t, e, 1, "SELECT count(*)::int FROM report.maintenance WHERE in_force AND reason = 'new disks' AND actor = 'bus:system.maintenance_mode'")
	set(object{"enabled": true, "lanes": []string{jobs.LaneAutomated}, "until": "2100-01-01T00:00:00Z"})
	e.counted(t, maintenanceSubject, 2, 0, 0, 0)
	w = e.why(t, path, "MAINTENANCE", ", until 2100-01-01T00:00:00Z$")
	require.Equal(t, since, w["since"])
	e.exec(t, "UPDATE maintenance SET until = now() - interval '1 ms'")
	require.Len(t, lease(), 1, "it has ended by itself")
	require.True(t, e.claims(t, jobs.LaneAutomated, jobs.KindAutomated))
	require.Empty(t, e.askWith(t, "", "GET", "/readyz", nil).is(t, 200)["maintenance"])

	// None named are all five, and all five again.
	set(object{"enabled": true, "lanes": []string{}})
	e.counted(t, maintenanceSubject, 3, 0, 0, 0)
	becomes(t, e, 5, "SELECT count(*)::int FROM report.maintenance WHERE in_force")
	set(object{"enabled": false, "lanes": nil, "until": nil})
	e.counted(t, maintenanceSubject, 4, 0, 0, 0)
	becomes(t, e, 0, "SELECT count(*)::int FROM report.maintenance WHERE in_force")
	becomes(t, e, 12, "SELECT count(*)::int FROM report.maintenance_change")

	// Repeated, and from the past: what was said last is what holds.
	e.send(t, maintenanceSubject, in)
	e.counted(t, maintenanceSubject, 4, 0, 1, 0)
	becomes(t, e, 0, "SELECT count(*)::int FROM report.maintenance WHERE in_force")
	changed, err := e.tasks.Operators.SetMaintenance(t.Context(), jobs.Maintenance{EventID: "old", At: time.Now().Add(-time.Hour), Enabled: true, Lanes: jobs.Lanes})
	require.NoError(t, err)
	require.Zero(t, changed)
	becomes(t, e, 0, "SELECT count(*)::int FROM report.maintenance WHERE in_force")

	for _, bad := range []object{{"enabled": "canary"}, {}, {"enabled": true, "lanes": []string{"canary"}}, {"enabled": true, "until": "canary"}, {"enabled": true, "until": "9999-12-31T23:59:59-01:00"}} {
		set(bad)
		reason := e.letter(t).Header["Tes-Reason"]
		require.Contains(t, reason, "not a system.maintenance_mode: data")
		require.NotContains(t, reason, "canary")
	}
	e.counted(t, maintenanceSubject, 4, 0, 1, 5)
}

// system.shutdown_requested → SystemEventHandler: what is noted of it; that processes
// obey is shown in jobs and cmd/tes.
func TestSystemEventHandlerShutdown(t *testing.T) {
	t.Parallel()
	e := listening(t, setup(t))
	e.exec(t, "INSERT INTO executor (executor_id) VALUES ('host-1/4711/21694ea8')")
	subject := outbox.SubjectShutdown
	for i, target := range []any{nil, "", "tes", "task-execution-service", "host-1", "host-1/4711", "host-1/4711/21694ea8"} {
		in := envelope(subject, object{"target": target, "graceSeconds": 1.5, "reason": "the rack is moved"})
		e.send(t, subject, in)
		e.send(t, subject, in)
		e.counted(t, subject, i+1, 0, i+1, 0)
		becomes(t, e, "1.5 the rack is moved bus:system.shutdown_requested", "SELECT concat_ws(' ', grace_seconds, reason, actor) FROM shutdown_order WHERE event_id = $1", in["id"])
	}
	for i, target := range []string{"user-service", "host", "host-1/47"} {
		e.send(t, subject, envelope(subject, object{"target": target}))
		e.counted(t, subject, 7, i+1, 7, 0)
	}
	becomes(t, e, 7, "SELECT count(*)::int FROM shutdown_order")
	for _, bad := range []object{{"graceSeconds": -1}, {"graceSeconds": "canary"}, {"target": 7}, {"graceSeconds": 1e9}} {
		e.send(t, subject, envelope(subject, bad))
		require.Contains(t, e.letter(t).Header["Tes-Reason"], "not a system.shutdown_requested: data")
	}
	e.counted(t, subject, 7, 3, 7, 4)
}

// TestActorsOfTheBus: who acts is who may publish on the subject, whatever the message
// calls itself; its own word for that is logged as no more than that.
func TestActorsOfTheBus(t *testing.T) {
	t.Parallel()
	e := listening(t, setup(t))
	posing := object{"metadata": object{"correlationId": "c-1", "source": "root@tes:escalation"}}
	e.send(t, requestedSubject, envelope(requestedSubject, noop(object{"requestId": "r-1"}), posing))
	becomes(t, e, "bus:workflow.task_requested", "SELECT actor FROM task_event WHERE type = 'created'")

	id := e.waiting(t)
	e.send(t, responseSubject, response(id, object{"integrationId": "root"}, posing))
	becomes(t, e, "bus:integration.response_received", "SELECT actor FROM task_event WHERE task_id = $1 AND type = 'completed'", id)

	e.send(t, outbox.SubjectMaintenance, envelope(outbox.SubjectMaintenance, object{"enabled": true, "lanes": []any{jobs.LaneRetry}}, posing))
	becomes(t, e, "bus:system.maintenance_mode", "SELECT actor FROM report.maintenance WHERE in_force")
	order := envelope(outbox.SubjectShutdown, object{"target": "", "reason": "posing"}, posing)
	e.exec(t, "INSERT INTO executor (executor_id, seen_at) VALUES ('host/1/x', now()) ON CONFLICT DO NOTHING")
	e.send(t, outbox.SubjectShutdown, order)
	becomes(t, e, "bus:system.shutdown_requested", "SELECT actor FROM shutdown_order WHERE event_id = $1", order["id"])

	for _, table := range []string{"task_event", "shutdown_order", "maintenance", "inbox"} {
		becomes(t, e, 0, "SELECT count(*)::int FROM "+table+" x WHERE x::text LIKE '%root@%'")
	}
	require.Contains(t, e.log.String(), `"claimed_source":"root@tes:escalation"`)
}
