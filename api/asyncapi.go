package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/yaml"
	"github.com/tidwall/gjson"

	"github.com/seed-3f7a0631/tes/outbox"
)

// subject describes one subject of the bus: its messages, and whether the service publishes or
// consumes them. The schemas come from the Go types.
type subject struct {
	id, address, kind, summary string
	data                       reflect.Type
	handler                    string // of consumed messages; empty: the service publishes the subject
	example                    any    // an example of data
}

// subjects are all subjects of the service; a test fails if one is missing.
var subjects = []subject{
	{
		id: "taskCreated", address: outbox.SubjectCreated, kind: "task.instance.created", summary: "A task was accepted.", data: reflect.TypeFor[outbox.TaskCreated](),
		example: exampleData("AUTOMATED", map[string]any{"taskDefinitionId": "calculate-order-total", "status": "PENDING", "priority": "HIGH", "createdAt": exampleTime}),
	},
	{
		id: "taskStarted", address: outbox.SubjectStarted, kind: "task.instance.started", summary: "An attempt began, or a person claimed the task.", data: reflect.TypeFor[outbox.TaskStarted](),
		example: exampleData("AUTOMATED", map[string]any{"executorId": "host-1/4711/21694ea8", "startTime": exampleTime}),
	},
	{
		id: "taskCompleted", address: outbox.SubjectCompleted, kind: "task.instance.completed", summary: "A task was completed.", data: reflect.TypeFor[outbox.TaskCompleted](),
		example: exampleData("AUTOMATED", map[string]any{"executorId": "host-1/4711/21694ea8", "startTime": exampleTime, "endTime": exampleTime, "executionTime": 2, "outputSummary": map[string]any{"total": 23.74}}),
	},
	{
		id: "taskFailed", address: outbox.SubjectFailed, kind: "task.instance.failed", summary: "A task failed or timed out for good.", data: reflect.TypeFor[outbox.TaskFailed](),
		example: exampleData("INTEGRATION", map[string]any{"executorId": "host-1/4711/21694ea8", "startTime": exampleTime, "endTime": exampleTime, "errorCode": "VALIDATION_ERROR", "errorMessage": "no such account", "stackTrace": "", "retryable": false}),
	},
	{
		id: "taskCanceled", address: outbox.SubjectCanceled, kind: "task.instance.canceled", summary: "A task was cancelled.", data: reflect.TypeFor[outbox.TaskCanceled](),
		example: exampleData("MANUAL", map[string]any{"canceledBy": "workflow-orchestrator", "reason": "the order was withdrawn", "previousStatus": "ASSIGNED", "canceledAt": exampleTime}),
	},
	{
		id: "taskRetry", address: outbox.SubjectRetry, kind: "task.instance.retry", summary: "An attempt failed, and another is scheduled.", data: reflect.TypeFor[outbox.TaskRetry](),
		example: exampleData("INTEGRATION", map[string]any{"retryCount": 1, "maxRetries": 2, "retryDelay": 457, "nextRetryTime": exampleTime, "lastErrorCode": "RATE_LIMIT_ERROR", "lastErrorMessage": "slow down"}),
	},
	{
		id: "taskManualAssigned", address: outbox.SubjectAssigned, kind: outbox.SubjectAssigned, summary: "A manual task was assigned to a person or a group.", data: reflect.TypeFor[outbox.TaskAssigned](),
		example: map[string]any{"taskId": exampleTask["taskId"], "workflowId": "order-workflow-123", "assigneeId": "jane", "assigneeName": "jane", "taskName": "Approve an order", "taskDescription": "", "priority": "MEDIUM", "dueDate": exampleTime},
	},
	{
		id: "taskRequested", address: outbox.SubjectTaskRequested, kind: outbox.SubjectTaskRequested, handler: "TaskRequestHandler", data: reflect.TypeFor[TaskRequest](),
		summary: "Requests a task, like POST /api/internal/tasks. requestId, or else the event's id, is the idempotency key. The task belongs to the tenant executionConfig.securityContext.tenantId, or to no tenant.",
		example: map[string]any{"requestId": "order-123-total", "workflowId": "order-workflow-123", "taskDefinitionId": "calculate-order-total", "input": map[string]any{"orderId": "ORD-123"}},
	},
	{
		id: "integrationResponseReceived", address: outbox.SubjectIntegrationResponse, kind: outbox.SubjectIntegrationResponse, handler: "IntegrationResponseHandler", data: reflect.TypeFor[outbox.IntegrationResponse](),
		summary: "Ends the attempt that the Integration Service accepted with a 202.",
		example: map[string]any{"taskId": exampleTask["taskId"], "invocationId": "8ebf407d-40bf-5791-8792-991a6496c332", "integrationId": "mail", "status": "SUCCESS", "data": map[string]any{"message_id": "m-1"}},
	},
	{
		id: "shutdownRequested", address: outbox.SubjectShutdown, kind: outbox.SubjectShutdown, handler: "SystemEventHandler", data: reflect.TypeFor[outbox.ShutdownRequested](),
		summary: "Stops the processes that match target and were running when the event was sent.",
		example: map[string]any{"target": "task-execution-service", "graceSeconds": 30, "reason": "the rack is moved"},
	},
	{
		id: "maintenanceMode", address: outbox.SubjectMaintenance, kind: outbox.SubjectMaintenance, handler: "SystemEventHandler", data: reflect.TypeFor[outbox.MaintenanceMode](),
		summary: "Stops queues from handing out tasks, in every process, or lets them continue. Creating and reading tasks continue all the time. until is from year 2000 to 8999, in UTC.",
		example: map[string]any{"enabled": true, "lanes": []any{"task-execution-integration"}, "reason": "the accounting system is upgraded", "until": exampleTime},
	},
}

const (
	exampleTime = "2026-11-23T01:42:11.527549Z"
	exampleID   = "6b2fc1ad-6d51-4a1a-8f0c-2f6b1a4f3b0e"
)

// exampleData is an example of a published event's data, with the members common to events.
func exampleData(kind string, members map[string]any) map[string]any {
	members["taskId"], members["workflowId"], members["taskType"] = exampleTask["taskId"], "order-workflow-123", kind
	return members
}

// eventSchemas holds the schemas of all messages.
type eventSchemas struct {
	reader
	envelopes map[string]*huma.Schema // by subject
}

func newEventSchemas() *eventSchemas {
	cfg := describe()
	b := &eventSchemas{reader{cfg.Components.Schemas}, map[string]*huma.Schema{}}
	for _, s := range subjects {
		b.schemas.Schema(s.data, true, "")
	}

	limit(b.schemas)
	all := b.schemas.Map()
	for _, s := range subjects {
		if s.data != reflect.TypeFor[TaskRequest]() {
			// Consumers must accept new members.
			all[s.data.Name()].AdditionalProperties = nil
		}
	}

	// A peer service's error has fewer members than a Problem.
	all["Problem"].AdditionalProperties, all["Problem"].Required = nil, nil
	all["Problem"].Properties["details"] = &huma.Schema{}
	// Any JSON: an integration's data need not be an object.
	all["IntegrationResponse"].Properties["data"] = &huma.Schema{Description: all["IntegrationResponse"].Properties["data"].Description}
	all["IntegrationResponse"].Required = []string{"status"}
	for _, s := range subjects {
		b.envelopes[s.address] = b.envelope(s)
	}

	// After the changes: messages contain the bounds.
	for _, s := range all {
		s.PrecomputeMessages()
	}

	return b
}

// envelope is the schema of a whole message. A consumed message needs only id and data.
func (b *eventSchemas) envelope(s subject) *huma.Schema {
	text := func(doc string, most int) *huma.Schema {
		return &huma.Schema{Type: huma.TypeString, Description: doc, MaxLength: &most}
	}

	correlation, source := text("Links the event to its workflow.", 128), text("The sender of the event.", 256)
	metadata := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{"correlationId": correlation, "source": source}}
	id := text("The event's id, the same for every repetition.", 255)
	e := &huma.Schema{
		Type: huma.TypeObject, Description: s.summary, Required: []string{"id", "data"},
		Properties: map[string]*huma.Schema{
			"type":      {Type: huma.TypeString, Enum: []any{s.kind}},
			"id":        id,
			"timestamp": {Type: huma.TypeString, Format: "date-time"},
			"data":      b.schemas.Schema(s.data, true, ""),
			"metadata":  metadata,
		},
	}

	// Published messages promise everything; consumed messages are accepted with little.
	if s.handler == "" {
		e.Required = []string{"type", "id", "timestamp", "data", "metadata"}
		metadata.Required, id.Format, source.Enum = []string{"correlationId", "source"}, "uuid", []any{outbox.Source}
	} else {
		one := 1
		id.MinLength, id.Pattern = &one, "^[ -~]+$"
		correlation.Pattern = "^[!-~]*$"
		metadata.Properties["taskId"] = text("The task, if data does not name it.", 128)
	}

	for _, of := range []*huma.Schema{metadata, e} {
		for _, p := range of.Properties {
			p.PrecomputeMessages()
		}
		of.PrecomputeMessages()
	}

	return e
}

// validate checks an envelope against the schema of its subject; nil: valid. Null counts as absent,
// except in a task request, which follows the rules of POST /api/internal/tasks.
func (b *eventSchemas) validate(address string, doc gjson.Result) *Problem {
	if !doc.IsObject() {
		return b.holds("", b.envelopes[address], outline(doc))
	}

	members := map[string]any{}
	doc.ForEach(func(name, member gjson.Result) bool {
		seen := outline(member)
		if seen == nil {
			return true
		}
		members[name.Str] = seen
		// One level down as well: data and metadata.
		if of, ok := seen.(map[string]any); ok && address != outbox.SubjectTaskRequested {
			maps.DeleteFunc(of, func(_ string, value any) bool { return value == nil })
		}
		return true
	})
	return b.holds("", b.envelopes[address], members)
}

// AsyncAPI returns the document (3.0, YAML) that is checked in as asyncapi.yaml.
func AsyncAPI() ([]byte, error) {
	text, err := asyncJSON()
	if err != nil {
		return nil, err
	}

	var out bytes.Buffer
	if err := yaml.Convert(&out, bytes.NewReader(text)); err != nil {
		return nil, fmt.Errorf("print asyncapi.yaml: %w", err)
	}

	return out.Bytes(), nil
}

// asyncDocument is the document. Its fields are in the order of the printed document.
type asyncDocument struct {
	AsyncAPI    string         `json:"asyncapi"`
	Info        map[string]any `json:"info"`
	ContentType string         `json:"defaultContentType"`
	Channels    map[string]any `json:"channels"`
	Operations  map[string]any `json:"operations"`
	Components  struct {
		Messages map[string]any `json:"messages"`
		Schemas  map[string]any `json:"schemas"`
	} `json:"components"`
}

var asyncJSON = sync.OnceValues(func() ([]byte, error) {
	schemas := newEventSchemas()
	doc := asyncDocument{AsyncAPI: "3.0.0", ContentType: "application/json", Channels: map[string]any{}, Operations: map[string]any{}}
	doc.Info = map[string]any{
		"title": "Task Execution Service", "version": documentVersion,
		"description": "The messages that the Task Execution Service publishes and consumes on the event bus (NATS JetStream). The address of a channel is a subject; the body is an envelope, whose type is the name of the message. " +
			"Events are delivered at least once, in order for each task; a repetition has the same id and the same bytes.",
	}
	doc.Components.Messages, doc.Components.Schemas = map[string]any{}, map[string]any{}
	for name, s := range schemas.schemas.Map() {
		doc.Components.Schemas[name] = s
	}
	// SpokenHeaders, HeardHeaders and the operations named hear… are published names.
	doc.Components.Schemas["SpokenHeaders"] = publishedHeaders()
	doc.Components.Schemas["HeardHeaders"] = consumedHeaders()
	doc.Components.Schemas["DeadLetterHeaders"] = deadLetterHeaders()
	for _, s := range subjects {
		envelope := s.id + "Envelope"
		doc.Components.Schemas[envelope] = schemas.envelopes[s.address]
		headers, payload := "HeardHeaders", s.payload("workflow-orchestrator")
		if s.handler == "" {
			headers, payload = "SpokenHeaders", s.payload(outbox.Source)
		}
		doc.add(s.id, s.address, s.handler, map[string]any{
			"name": s.kind, "title": s.kind, "summary": s.summary, "contentType": "application/json",
			"headers": ref("schemas/" + headers), "payload": ref("schemas/" + envelope),
			"correlationId": map[string]any{"location": "$message.payload#/metadata/correlationId"},
			"examples":      []any{map[string]any{"payload": payload}},
		})
	}
	// A consumed message can become a dead letter, and no other.
	consumed := []any{}
	for _, s := range subjects {
		if s.handler != "" {
			consumed = append(consumed, s.address)
		}
	}
	doc.add("deadLetter", "deadletter.{subject}", "", map[string]any{
		"name": "deadletter", "title": "deadletter", "summary": "A consumed message that could not be handled, unchanged, with the reason.",
		"headers": ref("schemas/DeadLetterHeaders"), "payload": map[string]any{"description": "The consumed message, unchanged."},
	})
	doc.Channels["deadLetter"].(map[string]any)["parameters"] = map[string]any{
		"subject": map[string]any{"description": "The subject of the consumed message.", "enum": consumed},
	}
	text, err := json.Marshal(&doc)
	if err != nil {
		return nil, fmt.Errorf("print asyncapi.json: %w", err)
	}
	return text, nil
})

// add adds a channel, its message, and the operation of the service.
func (d *asyncDocument) add(id, address, handler string, message map[string]any) {
	d.Components.Messages[id] = message
	d.Channels[id] = map[string]any{"address": address, "messages": map[string]any{id: ref("messages/" + id)}}
	operation := map[string]any{
		"action": "send", "summary": message["summary"], "channel": map[string]any{"$ref": "#/channels/" + id},
		"messages": []any{map[string]any{"$ref": "#/channels/" + id + "/messages/" + id}},
	}

	name := strings.ToUpper(id[:1]) + id[1:]
	if handler == "" {
		d.Operations["send"+name] = operation
		return
	}

	operation["action"], operation["x-handler"] = "receive", handler
	d.Operations["hear"+name] = operation
}

func (s subject) payload(source string) map[string]any {
	return map[string]any{
		"type": s.kind, "id": exampleID, "timestamp": exampleTime, "data": s.example,
		"metadata": map[string]any{"correlationId": exampleTask["correlationId"], "source": source},
	}
}

func ref(component string) map[string]any { return map[string]any{"$ref": "#/components/" + component} }

// attributes are the CloudEvents attributes of a message, as headers.
func attributes() map[string]any {
	return map[string]any{
		"ce-specversion":     bound("enum", []any{"1.0"}, "The version of CloudEvents."),
		"ce-id":              header("The envelope's id."),
		"ce-type":            header("The envelope's type."),
		"ce-source":          header("The envelope's metadata.source."),
		"ce-time":            bound("format", "date-time", "The envelope's timestamp."),
		"ce-datacontenttype": bound("enum", []any{"application/json"}, "The media type of the body."),
		"ce-subject":         bound("format", "uuid", "The task's id."),
		"ce-correlationid":   header("The task's correlation id, percent-encoded as CloudEvents requires for headers."),
		"ce-sequence":        bound("pattern", "^[0-9]{10}$", "The number of the event within its task. Compares as text."),
		"ce-traceparent":     header("The span of the request that created the task, if there was one."),
		"traceparent":        header("The same as ce-traceparent."),
		"Nats-Msg-Id":        header("The id by which the stream recognizes a repetition."),
	}
}

func header(description string) map[string]any {
	return map[string]any{"type": "string", "description": description}
}

// bound is a header whose value is restricted by an enum, a format or a pattern.
func bound(by string, to any, description string) map[string]any {
	h := header(description)
	h[by] = to
	return h
}

func publishedHeaders() any {
	return map[string]any{
		"type": "object", "properties": attributes(),
		"required": []any{"ce-specversion", "ce-id", "ce-type", "ce-source", "ce-time", "ce-datacontenttype", "ce-subject", "ce-correlationid", "ce-sequence"},
	}
}

func consumedHeaders() any {
	return map[string]any{"type": "object", "properties": map[string]any{
		"traceparent":    header("The span of the request. The task's events repeat it."),
		"ce-traceparent": header("The same, if traceparent is absent."),
		"Nats-Msg-Id":    header("The id by which the stream recognizes a repetition."),
	}}
}

func deadLetterHeaders() any {
	return map[string]any{"type": "object", "required": []any{"Tes-Reason"}, "properties": map[string]any{
		"Tes-Reason":   header("The reason. It names places in the message and never their values."),
		"Tes-Cut-From": header("The original length of the body in bytes, if it was cut."),
	}}
}
