package outbox_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/relay/relaytest"
)

var golden = uuid.MustParse("019b7e1c-5a00-7abc-8def-0123456789ab")

// life is one task with every event there is; no task has such a life, but each of
// its rows is one that the engine writes.
func life(b *outboxtest.Bundle) {
	b.T.Helper()
	b.Exec(`
		INSERT INTO task (task_id, job_id, created_at, version, type, lane, revision, priority, tenant_id, workflow_id, definition_id, executor, correlation_id, traceparent, input)
		VALUES ($1, 1, '2026-01-02T03:04:05Z', 10, 'INTEGRATION', 'task-execution-integration', 1, 2, 'acme', 'order-4711', 'create-invoice', 'integration',
			'7d5c1b52-8d1e-4f0a-9a57-3c1c0f0a9e11', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', '{"secret": "canary"}')`, golden)
	b.Exec(`
		INSERT INTO task_attempt (task_id, attempt, outcome, job_id, started_at, ended_at, executor_id, error)
		VALUES
			($1, 1, 'FAILED', 1, '2026-01-02T03:04:06.1Z', '2026-01-02T03:04:07.25Z', 'host/1/a',
				'{"code": "SERVICE_UNAVAILABLE", "message": "books are closed", "timestamp": "2026-01-02T03:04:07Z", "retryable": true}'),
			($1, 2, 'COMPLETED', 2, '2026-01-02T03:04:08.5Z', '2026-01-02T03:04:09.000001Z', 'host/2/b', NULL),
			($1, 3, 'FAILED', 3, '2026-01-02T03:04:09.5Z', '2026-01-02T03:04:10Z', 'host/3/c',
				'{"code": "VALIDATION_ERROR", "message": "no such contact: \"CONT-1\"", "stackTrace": "at a\nat b", "timestamp": "2026-01-02T03:04:10Z", "retryable": false}')`, golden)
	b.Exec(`
		INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor, payload)
		VALUES
			(1, $1, '2026-01-02T03:04:05Z', 1, 0, 'created', NULL, 'PENDING', 'workflow-orchestrator', NULL),
			(2, $1, '2026-01-02T03:04:06.1Z', 2, 1, 'started', 'PENDING', 'RUNNING', 'host/1/a', NULL),
			(3, $1, '2026-01-02T03:04:07.25Z', 3, 1, 'retry', 'RUNNING', 'PENDING', 'host/1/a',
				'{"retryCount":1,"maxRetries":3,"retryDelay":1042,"nextRetryTime":"2026-01-02T03:04:08.292Z"}'),
			(4, $1, '2026-01-02T03:04:09.000001Z', 4, 2, 'completed', 'RUNNING', 'COMPLETED', 'host/2/b', '{"outputSummary":{"invoiceId":"INV-1","total":12.50}}'),
			(5, $1, '2026-01-02T03:04:09.000001Z', 5, 2, 'completed', 'RUNNING', 'COMPLETED', 'host/2/b', NULL),
			(6, $1, '2026-01-02T03:04:10Z', 6, 3, 'failed', 'RUNNING', 'FAILED', 'host/3/c', NULL),
			(7, $1, '2026-01-02T03:04:11Z', 7, 3, 'canceled', 'RUNNING', 'CANCELLED', 'workflow-orchestrator', '{"reason":"order withdrawn"}'),
			(8, $1, '2026-01-02T03:04:12Z', 8, 3, 'assigned', 'PENDING', 'ASSIGNED', 'ui-framework',
				'{"assigneeId":"ann","assigneeName":"Ann Smith","taskName":"Create invoice","taskDescription":"Writes the invoice of an order","dueDate":"2026-01-03T03:04:12Z"}'),
			(9, $1, '2026-01-02T03:04:13Z', 9, 3, 'assigned', 'ASSIGNED', 'ASSIGNED', 'ui-framework',
				'{"groupId":"accounting","taskName":"Create invoice","taskDescription":"Writes the invoice of an order","dueDate":"2026-01-03T03:04:12Z","reason":"holiday"}'),
			-- A person's start, of an attempt whose row is gone: it was given back.
			(10, $1, '2026-01-02T03:04:14Z', 10, 4, 'started', 'ASSIGNED', 'RUNNING', 'ui-framework', '{"executorId":"ann"}')`, golden)
	b.Exec("INSERT INTO outbox (lo, hi) VALUES (1, 11)")
}

// The schemas of the interface document, member by member and in its order.
var goldenFiles = []struct{ file, subject, kind string }{
	{"created", "task.created", "task.instance.created"},
	{"started", "task.started", "task.instance.started"},
	{"retry", "task.retry", "task.instance.retry"},
	{"completed", "task.completed", "task.instance.completed"},
	{"completed-empty", "task.completed", "task.instance.completed"},
	{"failed", "task.failed", "task.instance.failed"},
	{"canceled", "task.canceled", "task.instance.canceled"},
	{"assigned", "task.manual.assigned", "task.manual.assigned"},
	{"assigned-group", "task.manual.assigned", "task.manual.assigned"},
	{"started-person", "task.started", "task.instance.started"},
}

func TestEventsAreTheInterfaceDocuments(t *testing.T) {
	t.Parallel()
	b := outboxtest.New(t)
	life(b)
	relaytest.Run(b, b.Bus)
	b.AwaitPublished()
	messages := b.Bus.Deliveries()
	require.Len(t, messages, len(goldenFiles))
	for i, want := range goldenFiles {
		m := messages[i]
		text, err := os.ReadFile("testdata/" + want.file + ".json")
		require.NoError(t, err)
		var compact bytes.Buffer
		require.NoError(t, json.Compact(&compact, text))
		require.Equal(t, compact.String(), string(m.Body), want.file)

		require.Equal(t, want.subject, m.Subject)
		id := outbox.EventID(golden, int32(i+1)).String()
		require.Equal(t, id, m.ID)
		var envelope outbox.Envelope[json.RawMessage]
		require.NoError(t, json.Unmarshal(m.Body, &envelope))
		require.Equal(t, map[string]string{
			"ce-specversion": "1.0", "ce-id": id, "ce-type": want.kind, "ce-source": outbox.Source, "ce-subject": golden.String(),
			"ce-time": m.Header["ce-time"], "ce-datacontenttype": "application/json", "ce-sequence": fmt.Sprintf("%010d", i+1),
			"ce-correlationid": "7d5c1b52-8d1e-4f0a-9a57-3c1c0f0a9e11",
			"traceparent":      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
			"ce-traceparent":   "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		}, m.Header)
		require.Contains(t, string(text), `"timestamp": "`+m.Header["ce-time"]+`"`)
		require.NotContains(t, string(m.Body), "canary", "inputs are the callers'")
	}
}

// A message is made anew for every delivery. Whatever has happened to the task since,
// it comes out the same.
func TestRedeliveryIsEqualToTheByte(t *testing.T) {
	t.Parallel()
	b := outboxtest.New(t)
	life(b)
	r := relaytest.Run(b, b.Bus)
	b.AwaitPublished()
	first := b.Bus.Deliveries()

	b.Exec("SET timezone = 'Asia/Tokyo'")
	b.Force(`
		UPDATE task
		SET version = 11, status = 'CANCELLED', ended_at = now(), started_at = now(), attempt = 7, failures = 3, lane = 'task-execution-retry', job_id = 99,
			assignee_id = 'bob', assignee_name = 'Bob', due_at = now(), output = '{"x": 1}', error = '{"code": "LATER"}'
		WHERE task_id = $1`, golden)
	b.Exec("INSERT INTO task_attempt (task_id, attempt, job_id, started_at, executor_id) VALUES ($1, 4, 9, now(), 'later')", golden)
	b.Bus.Truncate(0)
	r.Recheck()
	outboxtest.WaitFor(t, "all to be told again", func() bool { return len(b.Bus.DeliveredIDs()) == 2*len(first) })
	require.Equal(t, first, b.Bus.Deliveries()[len(first):])
}
