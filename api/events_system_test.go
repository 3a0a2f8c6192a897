package api_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox"
)

const maintenanceSubject = outbox.SubjectMaintenance

// claims says whether a lane gives a job out.
func (e *busBundle) claims(t *testing.T, lane, kind string) bool {
	t.Helper()
	rows, err := db.New(e.pool).LaneClaim(t.Context(), db.LaneClaimParams{Lane: lane, Kind: kind, Becomes: kind, Slots: 1, ExecutorID: "p1"})
	require.NoError(t, err)
	return len(rows) > 0
}

// system.maintenance_mode → SystemEventHandler.
func TestSystemEventHandlerMaintenance(t *testing.T) {
	t.Parallel()
	e := withBus(t, setup(t))
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
	w := e.why(t, path, "MAINTENANCE", "^task-execution-automated has been in maintenance since 20.*Z: new disks$")
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
		reason := e.deadLetter(t).Header["Tes-Reason"]
		require.Contains(t, reason, "not a system.maintenance_mode: data")
		require.NotContains(t, reason, "canary")
	}
	e.counted(t, maintenanceSubject, 4, 0, 1, 5)
}

// system.shutdown_requested → SystemEventHandler: what is noted of it; that processes
// obey is shown in jobs and cmd/tes.
func TestSystemEventHandlerShutdown(t *testing.T) {
	t.Parallel()
	e := withBus(t, setup(t))
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
		require.Contains(t, e.deadLetter(t).Header["Tes-Reason"], "not a system.shutdown_requested: data")
	}
	e.counted(t, subject, 7, 3, 7, 4)
}

// TestActorsOfTheBus: who acts is who may publish on the subject, whatever the message
// calls itself; its own word for that is logged as no more than that.
func TestActorsOfTheBus(t *testing.T) {
	t.Parallel()
	e := withBus(t, setup(t))
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
