package api_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// worker speaks the worker protocol.
type worker struct {
	*testBundle
	t     *testing.T
	token string
}

func (b *testBundle) worker(t *testing.T) *worker {
	t.Helper()
	return &worker{b, t, b.auth.Token("task-worker")}
}

func (w *worker) call(path string, body any) *reply {
	w.t.Helper()
	return w.askWith(w.t, w.token, "POST", "/api/internal/leases"+path, body)
}

// forWorkers makes a task that is left to workers.
func (b *testBundle) forWorkers(t *testing.T) string {
	t.Helper()
	return b.ask(t, orchestrator, "POST", "/api/internal/tasks", object{
		"taskDefinitionId": "render-report", "workflowId": "w-1", "taskType": "AUTOMATED", "input": object{"month": "2026-01"},
		"executionConfig": object{"executor": "worker", "securityContext": object{"tenantId": "t"}},
	}).is(t, 201)["taskId"].(string)
}

func TestWorkerProtocol(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.worker(t)
	empty := w.call("", object{"workerId": "w-7"}).is(t, 200)
	require.Equal(t, []any{}, empty["leases"], "never 204, never null")
	require.NotEmpty(t, empty["serverTime"])

	id := b.forWorkers(t)
	leases := w.call("", object{"workerId": "w-7", "requestId": "r-1", "waitMs": 20000, "maxTasks": 10, "select": []any{
		object{"queue": "task-execution-automated", "taskDefinitionIds": []any{"render-report"}, "maxTasks": 8, "visibilityTimeout": 30000},
	}}).is(t, 200)["leases"].([]any)
	require.Len(t, leases, 1)
	lease := leases[0].(object)
	require.EqualValues(t, 1, lease["attempt"])
	message := lease["message"].(object)
	for _, member := range []string{"workflowId", "taskType", "priority", "executionConfig", "input", "correlationId", "enqueueTime", "visibilityTimeout", "dequeueCount"} {
		require.Contains(t, message, member, "the interface document's TaskQueueMessage")
	}
	require.Equal(t, id, message["taskId"])
	require.Equal(t, object{"month": "2026-01"}, message["input"])
	require.Equal(t, object{"tenantId": "t"}, message["executionConfig"].(object)["securityContext"])
	require.EqualValues(t, 1, message["dequeueCount"])

	token := "/" + lease["leaseToken"].(string)
	beat := w.call(token+"/heartbeat", object{"extendMs": 30000, "progress": object{"percent": 40}, "checkpoint": object{"page": 12}}).is(t, 200)
	require.Equal(t, "CONTINUE", beat["directive"])
	require.Equal(t, "CONTINUE", w.call(token+"/heartbeat", nil).is(t, 200)["directive"])
	many := w.call("/heartbeats", object{"heartbeats": []any{object{"leaseToken": token[1:], "extendMs": 5000}, object{"leaseToken": "none"}}}).is(t, 200)["results"].([]any)
	require.Equal(t, "CONTINUE", many[0].(object)["directive"])
	require.Equal(t, "NOT_FOUND", many[1].(object)["error"].(object)["code"])

	end := w.call(token+"/complete", object{"output": object{"pages": 24}}).is(t, 200)
	require.Equal(t, "COMPLETED", end["status"])
	require.Equal(t, end, w.call(token+"/complete", object{"output": object{"pages": 24}}).is(t, 200))
	w.call(token+"/complete", object{"output": object{"pages": 25}}).fails(t, 409, "CONFLICT")
	gone := w.call(token+"/heartbeat", nil).fails(t, 410, "TASK_TERMINAL")
	require.Equal(t, "COMPLETED", gone["currentStatus"])
	require.Equal(t, "COMPLETED", b.ask(t, orchestrator, "GET", "/api/internal/tasks/"+id, nil).is(t, 200)["status"])
}

// What a worker says of how far it has come is seen by whoever asks of the task.
func TestProgressIsShown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.worker(t)
	id := b.forWorkers(t)
	take := func() string {
		lease := w.call("", object{"workerId": "w-7", "waitMs": 30000}).is(t, 200)["leases"].([]any)[0].(object)
		return "/" + lease["leaseToken"].(string)
	}
	shows := func(progress any) {
		t.Helper()
		for _, of := range []object{
			b.ask(t, orchestrator, "GET", tasksPath+"/"+id, nil).is(t, 200),
			b.ask(t, orchestrator, "GET", tasksPath+"/"+id+"/why", nil).is(t, 200),
		} {
			require.Equal(t, progress, of["progress"])
		}
	}
	attempts := func() []any {
		return b.ask(t, orchestrator, "GET", tasksPath+"/"+id+"/attempts", nil).is(t, 200)["items"].([]any)
	}
	first := take()
	shows(nil)
	w.call(first+"/heartbeat", object{"progress": object{"percent": 40.0, "message": "rendering"}, "checkpoint": object{"page": 12}}).is(t, 200)
	w.call(first+"/heartbeat", object{"checkpoint": object{"page": 13}}).is(t, 200)
	shows(object{"percent": 40.0, "message": "rendering"})
	require.Equal(t, object{"percent": 40.0, "message": "rendering"}, attempts()[0].(object)["progress"])
	w.call(first+"/fail", object{"errorCode": "NO_INK"}).is(t, 200)
	shows(nil)

	second := take()
	w.call(second+"/heartbeat", object{"checkpoint": object{"page": 14}}).is(t, 200)
	shows(nil)
	w.call(second+"/heartbeat", object{"progress": object{"percent": 50.0}}).is(t, 200)
	shows(object{"percent": 50.0})
	w.call(second+"/complete", nil).is(t, 200)
	shows(nil)
	require.Equal(t, object{"percent": 50.0}, attempts()[1].(object)["progress"])
}

func TestWorkerGivesBackAndFails(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.worker(t)
	b.forWorkers(t)
	one := func() string {
		lease := w.call("", object{"workerId": "w-7", "waitMs": 30000}).is(t, 200)["leases"].([]any)[0].(object)
		return "/" + lease["leaseToken"].(string)
	}
	first := one()
	require.Equal(t, "PENDING", w.call(first+"/release", object{"reason": "shutting down"}).is(t, 200)["status"])
	w.call(first+"/complete", nil).fails(t, 409, "LEASE_LOST")
	second := one()
	end := w.call(second+"/fail", object{"errorCode": "TIMEOUT", "errorMessage": "slow", "retryable": true, "retryAfterMs": nil}).is(t, 200)
	require.Equal(t, "PENDING", end["status"])
	require.NotNil(t, end["nextRetryTime"])
	w.call(second+"/fail", object{"errorMessage": "slow"}).fails(t, 422, "VALIDATION_ERROR")
	w.call("/"+strings.Repeat("A", 59)+"/complete", nil).fails(t, 404, "NOT_FOUND")
	w.call("", object{"workerId": "w-7", "select": []any{object{"queue": "task-execution-manual"}}}).fails(t, 422, "VALIDATION_ERROR")
	w.call("", object{"workerId": "w-7", "waitMs": 60001}).fails(t, 422, "VALIDATION_ERROR")
}

// The error handler leases dead letters, and nobody else does.
func TestDeadLettersAreTheErrorHandlers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.worker(t)
	id := b.forWorkers(t)
	lease := w.call("", object{"workerId": "w-7"}).is(t, 200)["leases"].([]any)[0].(object)
	require.Equal(t, "RUNNING", lease["status"])
	require.NotContains(t, lease, "error")
	w.call("/"+lease["leaseToken"].(string)+"/fail", object{"errorCode": "NO_PAPER", "retryable": false}).is(t, 200)

	letters := object{"workerId": "desk", "select": []any{object{"queue": "task-execution-deadletter", "taskDefinitionIds": []any{"render-report"}}}}
	w.call("", letters).fails(t, 403, "FORBIDDEN")
	alone, err := b.auth.Mint(peertest.TokenOptions{Service: errorHandler, Scopes: []string{"tasks:deadletter"}})
	require.NoError(t, err)
	h := &worker{b, t, alone}
	h.call("", object{"workerId": "desk", "select": []any{object{"queue": "task-execution-automated"}}}).fails(t, 403, "FORBIDDEN")
	letter := h.call("", letters).is(t, 200)["leases"].([]any)[0].(object)
	require.Equal(t, "FAILED", letter["status"])
	require.Equal(t, "NO_PAPER", letter["error"].(object)["code"])
	require.Equal(t, id, letter["message"].(object)["taskId"])
	token := "/" + letter["leaseToken"].(string)
	require.Equal(t, "CONTINUE", h.call(token+"/heartbeat", nil).is(t, 200)["directive"])
	for _, verb := range []string{"heartbeat", "complete", "fail", "release"} {
		body := object{}
		if verb == "fail" {
			body["errorCode"] = "X"
		}
		w.call(token+"/"+verb, body).fails(t, 403, "FORBIDDEN")
	}
	many := w.call("/heartbeats", object{"heartbeats": []any{object{"leaseToken": token[1:]}, object{"leaseToken": lease["leaseToken"]}}}).is(t, 200)["results"].([]any)
	require.Equal(t, "FORBIDDEN", many[0].(object)["error"].(object)["code"])
	require.Equal(t, "TASK_TERMINAL", many[1].(object)["error"].(object)["code"])
	require.Equal(t, "FAILED", h.call(token+"/release", nil).is(t, 200)["status"])
	h.call(token+"/heartbeat", nil).fails(t, 409, "LEASE_LOST")
	again := h.call("", object{"workerId": "desk"}).is(t, 200)["leases"].([]any)
	require.Len(t, again, 1, "without a choice it is given what it may have")
	require.Equal(t, "FAILED", h.call("/"+again[0].(object)["leaseToken"].(string)+"/complete", object{"output": object{"reason": "reported"}}).is(t, 200)["status"])
	require.Empty(t, h.call("", object{"workerId": "desk"}).is(t, 200)["leases"])
}

// A worker that hangs up while it is parked has nothing; the next one has it all.
func TestWorkerHangsUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, hangUp := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", b.url+"/api/internal/leases", strings.NewReader(`{"workerId": "w-1", "waitMs": 60000}`))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+b.auth.Token("task-worker"))
	req.Header.Set("Content-Type", "application/json")
	ended := make(chan error, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		ended <- err
	}()
	hangUp()
	require.Error(t, <-ended)
	id := b.forWorkers(t)
	lease := b.worker(t).call("", object{"workerId": "w-2", "waitMs": 30000}).is(t, 200)["leases"].([]any)[0].(object)
	require.Equal(t, id, lease["message"].(object)["taskId"])
	require.WithinDuration(t, time.Now(), at(t, lease["message"].(object)["enqueueTime"]), time.Minute)
}

func at(t *testing.T, v any) time.Time {
	t.Helper()
	when, err := time.Parse(time.RFC3339, v.(string))
	require.NoError(t, err)
	return when
}
