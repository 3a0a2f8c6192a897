package api

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/tidwall/gjson"

	"github.com/seed-3f7a0631/tes/jobs"
)

// mostTasks is the largest number of tasks in a batch.
const mostTasks = 1000

// keyOfItem derives the idempotency key of an item without a requestId from the key of the batch. No
// request can send this key: keys of requests are ASCII, and § is not.
func keyOfItem(batch string, item int) string { return batch + "§" + strconv.Itoa(item) }

// BatchRequest is the body of POST /api/internal/tasks/batch, for the document only. createTasks
// reads the items one by one, so that an invalid item does not invalidate the others.
type BatchRequest struct {
	Tasks []batchedTask `json:"tasks" minItems:"1" maxItems:"1000" doc:"The requests, each as POST /api/internal/tasks takes it."`
}

type batchedTask json.RawMessage

// Schema implements huma.SchemaProvider.
func (batchedTask) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[TaskRequest](), true, "")
}

// batchSchema is the schema of the body, with items of any form.
var batchSchema = func() *huma.Schema {
	tasks := &huma.Schema{Type: huma.TypeArray, MinItems: new(1), MaxItems: new(mostTasks), Items: &huma.Schema{}}
	s := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{"tasks": tasks}, Required: []string{"tasks"}, AdditionalProperties: false}
	tasks.PrecomputeMessages()
	s.PrecomputeMessages()
	return s
}()

// BatchAnswer holds one result for each task of a batch.
type BatchAnswer struct {
	Results []BatchResult `json:"results" doc:"One result for each request, in the order of the requests."`
}

// BatchResult is the result of one task of a batch.
type BatchResult struct {
	TaskID   *uuid.UUID  `json:"taskId,omitempty" format:"uuid" doc:"The id of the new task, or of the task that an earlier request with the same requestId created."`
	Status   jobs.Status `json:"status,omitempty" doc:"The task's current status."`
	Replayed bool        `json:"replayed,omitempty" doc:"true: an earlier request with this requestId created the task."`
	Error    *ErrorBody  `json:"error,omitempty" doc:"The reason why the task was not created. Its locations begin with body, which stands for the item."`
}

type (
	createTasksInput  struct{ Body BatchRequest }
	createTasksOutput struct{ Body *BatchAnswer }
)

var createTasksDoc = doc{
	id: "createTasks", tag: tagTasks, summary: "Create up to 1000 tasks",
	description: "Creates many tasks and responds when all are committed. Each item succeeds or fails on its own: a task is created, found by " +
		"its requestId, or refused, whatever the results of the other items. The body may be eight times as long as the body of other " +
		"requests. Idempotency-Key identifies the batch, requestId an item; both may be given. In a batch with a key, an item without " +
		"a requestId gets one that is derived from the key and the item's position, so that a repeated batch creates no task twice.",
	errors: []int{409, 413, 415}, bulk: true,
	request: map[string]any{"tasks": []any{
		map[string]any{"taskDefinitionId": "calculate-order-total", "workflowId": "order-workflow-123", "requestId": "order-123-total", "input": map[string]any{"orderId": "ORD-123", "taxRate": 0.08, "items": []any{map[string]any{"id": "ITEM-1", "quantity": 2, "price": 10.99}}}},
		map[string]any{"taskDefinitionId": "calculate-order-total", "workflowId": "order-workflow-124", "requestId": "order-124-total", "input": map[string]any{"orderId": "ORD-124"}},
	}},
	answer: map[string]any{"results": []any{
		map[string]any{"taskId": exampleTask["taskId"], "status": "PENDING"},
		map[string]any{"error": map[string]any{
			"code": codeValidation, "message": "the input does not match the definition's schema",
			"details": map[string]any{"errors": []any{map[string]any{"location": "body.input.items", "message": "is required"}}},
		}},
	}},
}

func (h *taskHandlers) createTasks(ctx context.Context, _ *createTasksInput) (*createTasksOutput, error) {
	c := callOf(ctx)
	list, err := h.batch(gjson.ParseBytes(c.body))
	if err != nil {
		return nil, err
	}

	// Every item costs as much as a single create. One was spent when the token was checked.
	if p := h.gate.spend(c, len(list), 1); p != nil {
		return nil, p
	}

	// places maps a request to its result: invalid items have a result and no request.
	results := make([]BatchResult, len(list))
	reqs, places := make([]jobs.Request, 0, len(list)), make([]int, 0, len(list))
	for i, text := range list {
		var body TaskRequest
		if p := h.reader.task("body", text, &body); p != nil {
			results[i].Error = &p.at(nil).Err
			continue
		}
		if p := owns(c.caller, "body", body.Config); p != nil {
			results[i].Error = &p.at(nil).Err
			continue
		}
		key := body.Key
		if key == "" && c.keyed != nil {
			key = keyOfItem(c.keyed.Key, i)
		}
		reqs, places = append(reqs, body.request(c.creator(), key, []byte(text.Raw))), append(places, i)
	}

	// An item whose result is unknown may be committed. Under the batch's key it can be repeated.
	var away error
	lost := 0
	for i, made := range h.tasks.CreateMany(ctx, reqs) {
		result := &results[places[i]]
		if made.Err != nil {
			p := problemOf(ctx, made.Err)
			result.Error = &p.Err
			if p.Status == http.StatusServiceUnavailable {
				away, lost = made.Err, lost+1
			}
			continue
		}

		result.TaskID, result.Status, result.Replayed = &made.Task.TaskID, jobs.Status(made.Task.Status), !made.Fresh
	}

	// Repeating the batch creates the missing tasks.
	c.unsure = lost > 0
	if lost == len(results) {
		// No result is known, so the whole batch may be repeated.
		return nil, away
	}

	return &createTasksOutput{Body: &BatchAnswer{Results: results}}, nil
}

// batch returns the list in the body, with its items not validated yet.
func (h *taskHandlers) batch(doc gjson.Result) ([]gjson.Result, error) {
	// Only the list is validated here: a schema error of one item must not refuse the others.
	seen := outlineFlat(doc)
	if err := h.reader.holds("body", batchSchema, seen); err != nil {
		return nil, err
	}
	return doc.Get("tasks").Array(), nil
}

// outlineFlat is outline for the first two levels of a document: the body and the length of its list.
func outlineFlat(doc gjson.Result) any {
	if !doc.IsObject() {
		return outline(doc)
	}

	members := map[string]any{}
	doc.ForEach(func(name, member gjson.Result) bool {
		switch {
		case member.IsArray():
			members[name.Str] = make([]any, len(member.Array()))
		case member.IsObject():
			members[name.Str] = something
		default:
			members[name.Str] = outline(member)
		}
		return true
	})
	return members
}

// reader validates documents against schemas, as huma does with bodies.
type reader struct{ schemas huma.Registry }

// task reads and validates one item, as huma does with the body of createTask.
func (r reader) task(place string, text gjson.Result, into *TaskRequest) *Problem {
	if p := r.holds(place, r.schemas.Map()["TaskRequest"], outline(text)); p != nil {
		return p
	}
	return fillTask(place, text, into)
}

// fillTask decodes a request that the schema has accepted.
func fillTask(place string, text gjson.Result, into *TaskRequest) *Problem {
	if err := into.fill(text); err != nil {
		return newProblem(nil, http.StatusUnprocessableEntity, invalidText, &huma.ErrorDetail{Location: place, Message: err.Error()})
	}

	// huma applies the defaults of schemas only to bodies that huma decodes.
	if cfg := into.Config; cfg != nil {
		if cfg.HTTP != nil && cfg.HTTP.Method == "" {
			cfg.HTTP.Method = http.MethodPost
		}
		if cfg.Integration != nil && cfg.Integration.Type == "" {
			cfg.Integration.Type = "REST"
		}
	}

	return nil
}

// holds validates a document against a schema; nil: valid.
func (r reader) holds(place string, s *huma.Schema, doc any) *Problem {
	path := huma.NewPathBuffer(nil, 0)
	if place != "" {
		path.Push(place)
	}

	var found huma.ValidateResult
	huma.Validate(r.schemas, s, path, huma.ModeWriteToServer, doc, &found)
	if len(found.Errors) == 0 {
		return nil
	}

	return newProblem(nil, http.StatusUnprocessableEntity, invalidText, found.Errors...)
}
