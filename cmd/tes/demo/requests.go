package demo

import (
	"encoding/json"
	"fmt"
	"reflect"
)

// entry is one entry of requests.json: the body to send, and the state that the task must
// reach.
type entry struct {
	body   map[string]any
	expect struct {
		Status   string         `json:"status"`
		Output   map[string]any `json:"output"`
		Assignee string         `json:"assignee"`
		Error    *struct {
			Code string `json:"code"`
		} `json:"error"`
	}
}

// readRequests reads requests.json.
func readRequests() ([]entry, error) {
	raw, err := data.ReadFile("requests.json")
	if err != nil {
		return nil, err
	}

	var bodies []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &bodies); err != nil {
		return nil, fmt.Errorf("requests.json: %w", err)
	}

	out := make([]entry, len(bodies))
	for i, body := range bodies {
		if err := json.Unmarshal(body["expect"], &out[i].expect); err != nil {
			return nil, fmt.Errorf("requests.json, entry %d: %w", i, err)
		}

		delete(body, "expect") // the API refuses members that it does not know

		out[i].body = map[string]any{}

		for name, value := range body {
			out[i].body[name] = value
		}

		// As a string, for comparisons with a definition's id.
		var id string
		if err := json.Unmarshal(body["taskDefinitionId"], &id); err != nil {
			return nil, fmt.Errorf("requests.json, entry %d: %w", i, err)
		}

		out[i].body["taskDefinitionId"] = id
	}

	return out, nil
}

// check compares a task with its entry and returns the first difference, or an empty text.
func (e entry) check(now map[string]any) string {
	if e.expect.Output != nil && !reflect.DeepEqual(now["output"], any(e.expect.Output)) {
		return fmt.Sprintf("expected output %v, got %v", e.expect.Output, now["output"])
	}

	if e.expect.Assignee != "" && now["assignee"] != e.expect.Assignee {
		return fmt.Sprintf("expected assignee %s, got %v", e.expect.Assignee, now["assignee"])
	}

	if e.expect.Error != nil {
		problem, _ := now["error"].(map[string]any)
		if problem["code"] != e.expect.Error.Code {
			return fmt.Sprintf("expected error %s, got %v", e.expect.Error.Code, now["error"])
		}
	}

	return ""
}
