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

// huma decodes a body twice: into maps, to validate it against its schema, and into the operation's
// type. With encoding/json these two decodings are the most expensive part of creating a task: each
// checks the syntax, and the first builds the whole input, which no schema looks into. Here both
// walk the body with gjson instead. That is safe because the body has passed jsonguard.Check, so its
// syntax is known to be valid.

// formats are huma's formats with this decoding.
var formats = func() map[string]huma.Format {
	f := huma.Format{Marshal: encode, Unmarshal: decode}
	return map[string]huma.Format{"application/json": f, "json": f}
}()

// encode panics if a value has no JSON form. huma has already set the status of a success at that
// point and would send broken JSON; observe turns the panic into a 500.
func encode(w io.Writer, v any) error {
	// A failed write to the client is returned. huma panics with the error, and observe logs a client
	// that has disconnected.
	err := huma.DefaultJSONFormat.Marshal(w, v)
	var value *json.UnsupportedValueError
	var kind *json.UnsupportedTypeError
	var marshaler *json.MarshalerError
	if errors.As(err, &value) || errors.As(err, &kind) || errors.As(err, &marshaler) {
		panic(fmt.Errorf("encode the response: %w", err))
	}
	return err
}

func decode(data []byte, to any) error {
	switch to := to.(type) {
	case *any:
		// The first decoding, for the schema.
		*to = outline(gjson.ParseBytes(data))
		return nil
	case *TaskRequest:
		// The second decoding, of the most frequent body.
		return to.fill(gjson.ParseBytes(data))
	case *BatchRequest:
		// createTasks reads the items one by one.
		return nil
	}
	return readJSON(data, to)
}

// freeMembers are members whose content is the caller's: see freeObject.
var freeMembers = map[string]bool{
	"input": true, "output": true, "workflowContext": true, "details": true, "inputSchema": true, "outputSchema": true,
	"progress": true, "checkpoint": true,
}

// something replaces the content of a free object: the schema only checks that it is an object.
var something = map[string]any{}

// outline builds the value that encoding/json would build, except for free objects, and with times
// in the form that huma accepts.
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

// fill is json.Unmarshal for a body that its schema has accepted. A test compares the two.
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
			err = readMember(".executionConfig", []byte(v.Raw), &b.Config)
		case "workflowContext":
			b.Context = json.RawMessage(v.Raw)
		case "correlationId":
			b.CorrelationID = v.Str
		case "requestId":
			b.Key = v.Str
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
