package api_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/inbox"
)

const responseSubject = outbox.SubjectIntegrationResponse

// waiting makes a task that waits for an answer, as the integration executor does.
func (e *busBundle) waiting(t *testing.T) (id string) {
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
	e := withBus(t, setup(t))
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
	require.Empty(t, e.deadLetters)
}

// One that comes late, twice, or for nobody changes nothing and is recorded; one that
// can never be acted upon is buried.
func TestIntegrationResponseHandlerRecordsWhatChangesNothing(t *testing.T) {
	t.Parallel()
	e := withBus(t, setup(t))
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
		reason := e.deadLetter(t).Header["Tes-Reason"]
		require.Contains(t, reason, "not a integration.response_received: data")
		require.NotContains(t, reason, "canary")
	}
	e.counted(t, responseSubject, 1, 2, 1, 5)
}

// A response that comes before its task is committed waits for it, for about a
// minute; what nobody ever knew of is recorded then.
func TestIntegrationResponseHandlerWaitsForItsTask(t *testing.T) {
	t.Parallel()
	e := withBus(t, setup(t))
	other := e.waiting(t)
	id := uuid.NewString()
	in := response(id)
	e.send(t, responseSubject, in)
	waitFor(t, func() error {
		if !strings.Contains(e.log.String(), "no such task:") {
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
	require.Empty(t, e.deadLetters)
}
