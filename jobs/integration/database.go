package integration

import (
	"bytes"
	"encoding/json"

	"github.com/seed-3f7a0631/tes/jobs"
)

// DATABASE "sends query parameters, receives result sets". The input names a query or
// an operation, by default the definition's method, and its parameters.
type databaseInput struct {
	Query      string          `json:"query,omitempty"`
	Operation  string          `json:"operation,omitempty"`
	Parameters json.RawMessage `json:"parameters"` // an object by name, or a list by position; default {}
}

func databaseRequest(call jobs.IntegrationCall, input json.RawMessage) (json.RawMessage, error) {
	var in databaseInput
	if err := strictly("the query", input, &in); err != nil {
		return nil, err
	}

	switch {
	case in.Query != "" && in.Operation != "":
		return nil, refuse("the input has a query and an operation; only one of them is allowed")
	case in.Query == "" && in.Operation == "":
		in.Operation = call.Method
	}

	if !given(in.Parameters) {
		in.Parameters = json.RawMessage("{}")
	}

	if first := in.Parameters[0]; first != '{' && first != '[' {
		return nil, refuse("parameters is neither an object nor a list")
	}

	return parameters(in)
}

// databaseAnswer accepts {rows, rowCount?, columns?}, or only the rows. Other members are
// kept.
func databaseAnswer(_ jobs.IntegrationCall, data json.RawMessage) (json.RawMessage, error) {
	if data = bytes.TrimSpace(data); len(data) > 0 && data[0] == '[' {
		data = json.RawMessage(`{"rows":` + string(data) + `}`)
	}

	var set struct {
		Rows     []json.RawMessage `json:"rows"`
		RowCount *int64            `json:"rowCount"`
		Columns  []string          `json:"columns"`
	}

	if err := loosely("the result set", data, &set); err != nil {
		return nil, err
	}

	if set.Rows == nil && set.RowCount == nil {
		return nil, refuse("the result set has neither rows nor a rowCount")
	}

	// Each row is an object, or a list of values in the order of columns.
	for i, row := range set.Rows {
		var list []json.RawMessage

		switch {
		case given(row) && row[0] == '{':
		case set.Columns != nil && json.Unmarshal(row, &list) == nil && list != nil && len(list) == len(set.Columns):
		default:
			return nil, refuse("row %d of the result set is neither an object nor a list of as many values as there are columns", i)
		}
	}

	if set.RowCount == nil {
		n := int64(len(set.Rows))
		set.RowCount = &n
	}

	if *set.RowCount < 0 {
		return nil, refuse("the rowCount of the result set is negative")
	}
	if set.Rows == nil {
		set.Rows = []json.RawMessage{}
	}

	return with(data, map[string]any{"rows": set.Rows, "rowCount": set.RowCount})
}

// with returns an object with some members replaced.
func with(object json.RawMessage, members map[string]any) (json.RawMessage, error) {
	var all map[string]any
	decoder := json.NewDecoder(bytes.NewReader(object))

	// float64 would change large numbers.
	decoder.UseNumber()
	if err := decoder.Decode(&all); err != nil {
		return nil, refuse("the answer is not an object")
	}

	for name, value := range members {
		all[name] = value
	}

	return parameters(all)
}
