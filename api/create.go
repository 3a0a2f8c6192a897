package api

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/seed-3f7a0631/tes/jobs"
)

// TaskRequest is a request as a body or message has it: without the fields that request sets.
type TaskRequest jobs.Request

type createTaskInput struct {
	Key  string `header:"Idempotency-Key" minLength:"1" maxLength:"255" pattern:"^[ -~]+$" doc:"An idempotency key, valid for ever: the same key and body again return the task that the first request created; a different body is a 409 with details.reason IDEMPOTENCY_KEY_REUSED."`
	Body TaskRequest
}

type createTaskOutput struct {
	Status   int
	Location string `header:"Location" doc:"The URL of the task."`
	ETag     string `header:"ETag" doc:"The task's version, for If-Match."`
	Replayed string `header:"Idempotency-Replayed" enum:"true" doc:"true: an earlier request with this key created the task."`
	Body     *Task
}

var createTaskDoc = doc{
	id: "createTask", tag: tagTasks, summary: "Create a task",
	description: "Creates a task and responds when the task, its first event and its job are committed. With an idempotency key (header or " +
		"requestId) the request can be repeated: the same body returns 200 with the existing task, even if its definition has changed " +
		"since; a different body is a 409.",
	ownKey: true, status: http.StatusCreated, also: http.StatusOK, alsoText: "An earlier request with this key created the task.",
	errors:  []int{409, 413, 415},
	request: map[string]any{"taskDefinitionId": "calculate-order-total", "workflowId": "order-workflow-123", "priority": "MEDIUM", "input": map[string]any{"orderId": "ORD-123", "taxRate": 0.08, "items": []any{map[string]any{"id": "ITEM-1", "quantity": 2, "price": 10.99}}}},
	answer:  exampleTask,
}

func (h *taskHandlers) createTask(ctx context.Context, in *createTaskInput) (*createTaskOutput, error) {
	c := callOf(ctx)
	body := &in.Body
	if p := owns(c.caller, "body", body.Config); p != nil {
		return nil, p
	}

	// The header and the member mean the same key, so they must not contradict each other.
	key := in.Key
	switch {
	case key == "":
		key = body.Key
	case body.Key != "" && body.Key != key:
		return nil, violation("body.requestId", "is another key than that of the header Idempotency-Key: give one of them, or the same twice")
	}
	row, created, err := h.tasks.Create(ctx, body.request(c.creator(), key, c.body))
	if err != nil {
		return nil, err
	}

	task := taskOf(&row)
	c.task = task.TaskID.String()
	out := &createTaskOutput{Status: http.StatusCreated, Location: "/api/internal/tasks/" + c.task, ETag: etag(task.Version), Body: task}
	if !created {
		out.Status, out.Replayed = http.StatusOK, "true"
	}

	return out, nil
}

// creator is the caller in whose name a task is created.
type creator struct{ name, tenant, traceparent string }

func (c *call) creator() creator { return creator{c.caller.Name, c.caller.Tenant, c.traceparent} }

// request completes the body for package jobs. text is the body as it was sent, which an idempotency
// key is compared by.
func (b *TaskRequest) request(by creator, key string, text []byte) jobs.Request {
	req := jobs.Request(*b)
	req.Context = given(b.Context)
	req.Key, req.Body = key, text
	req.Tenant, req.Actor, req.Traceparent = by.tenant, by.name, by.traceparent
	return req
}

// given returns nil for null: an optional member may be null or absent.
func given(raw json.RawMessage) json.RawMessage {
	if string(raw) == "null" {
		return nil
	}
	return raw
}
