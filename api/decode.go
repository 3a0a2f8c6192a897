package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/danielgtaylor/huma/v2"
	"github.com/tidwall/gjson"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Huma decodes a body twice: into maps, to hold it against its schema, and into
// the operation's type. encoding/json makes these two the dearest part of creating
// a task, for it checks the syntax each time and builds all of the input, which no
// schema of ours looks into. The body has passed jsonguard.Check, so its syntax is
// known to be good, and it is enough to find the way in it.

// formats are huma's, with this decoding.
var formats = func() map[string]huma.Format {
	f := huma.Format{Marshal: encode, Unmarshal: decode}
	return map[string]huma.Format{"application/json": f, "json": f}
}()

// encode panics where there is no JSON for a value: huma would send the status of a
// success all the same, and then a text that is no JSON. observe answers 500 instead.
func encode(w io.Writer, v any) error {
	err := huma.DefaultJSONFormat.Marshal(w, v)
	var value *json.UnsupportedValueError
	var kind *json.UnsupportedTypeError
	var marshaler *json.MarshalerError
	if errors.As(err, &value) || errors.As(err, &kind) || errors.As(err, &marshaler) {
		panic(fmt.Errorf("write the answer: %w", err))
	}
	return err
}

func decode(data []byte, to any) error {
	switch to := to.(type) {
	case *any:
		*to = outline(gjson.ParseBytes(data))
		return nil
	case *TaskRequest:
		return to.fill(gjson.ParseBytes(data))
	case *BatchRequest:
		return nil // createTasks takes it apart, one by one
	}
	return readJSON(data, to)
}

// freeMembers are objects whose members are not ours to say: see freeObject.
var freeMembers = map[string]bool{
	"input": true, "output": true, "workflowContext": true, "details": true, "inputSchema": true, "outputSchema": true,
	"progress": true, "checkpoint": true,
}

// something stands for a free object: that it is one is all that a schema asks.
var something = map[string]any{}

// outline is what encoding/json would make of a document, free objects apart, and with times
// as huma takes them.
func outline(v gjson.Result) any {
	switch v.Type {
	case gjson.String:
		return momentText(v.Str)
	case gjson.Number:
		return v.Num
	case gjson.True:
		return true
	case gjson.False:
		return false
	case gjson.Null:
		return nil
	}
	if v.IsArray() {
		list := []any{}
		v.ForEach(func(_, item gjson.Result) bool {
			list = append(list, outline(item))
			return true
		})
		return list
	}
	members := map[string]any{}
	v.ForEach(func(name, member gjson.Result) bool {
		if member.IsObject() && freeMembers[name.Str] {
			members[name.Str] = something
		} else {
			members[name.Str] = outline(member)
		}
		return true
	})
	return members
}

// fill is json.Unmarshal for a body that has passed its schema; a test holds the
// two against each other.
func (b *TaskRequest) fill(doc gjson.Result) (err error) {
	doc.ForEach(func(name, v gjson.Result) bool {
		if v.Type == gjson.Null && name.Str != "input" && name.Str != "workflowContext" {
			return true
		}
		switch name.Str {
		case "taskDefinitionId":
			b.TaskDefinitionID = v.Str
		case "workflowId":
			b.WorkflowID = v.Str
		case "stepId":
			b.StepID = v.Str
		case "taskType":
			b.TaskType = jobs.Type(v.Str)
		case "priority":
			b.Priority = jobs.Priority(v.Str)
		case "input":
			b.Input = json.RawMessage(v.Raw)
		case "executionConfig":
			err = readMember(".executionConfig", []byte(v.Raw), &b.ExecutionConfig)
		case "workflowContext":
			b.WorkflowContext = json.RawMessage(v.Raw)
		case "correlationId":
			b.CorrelationID = v.Str
		case "requestId":
			b.RequestID = v.Str
		case "dueDate":
			err = readMember(".dueDate", []byte(`"`+momentText(v.Str)+`"`), &b.DueDate)
		case "callbackUrl":
			b.CallbackURL = v.Str
		case "reference":
			b.Reference = v.Str
		}
		return err == nil
	})
	return err
}
