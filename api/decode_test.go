package api

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"

	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

// TestFillKnowsEveryMember: a member that is added to TaskRequest is read too.
func TestFillKnowsEveryMember(t *testing.T) {
	t.Parallel()
	text := `{"taskDefinitionId":"a","workflowId":"b","stepId":"c","taskType":"MANUAL","priority":"LOW","input":{"d":1},"executionConfig":{"executor":"noop"},` +
		`"workflowContext":{"e":2},"correlationId":"f","requestId":"g","dueDate":"2030-01-01T00:00:00Z","callbackUrl":"http://h/","reference":"\u0069"}`
	var got, want TaskRequest
	require.NoError(t, decode([]byte(text), &got))
	require.NoError(t, json.Unmarshal([]byte(text), &want))
	require.Equal(t, want, got)
	v := reflect.ValueOf(got)
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("json") == "-" {
			continue // request sets it
		}
		require.False(t, v.Field(i).IsZero(), "%s is not read", v.Type().Field(i).Name)
	}
}

// FuzzDecode holds our decoding against encoding/json: what passes the guard looks
// the same to the schema, and what passes the schema fills the same request.
func FuzzDecode(f *testing.F) {
	f.Add(`{"taskDefinitionId":"a","workflowId":"b","input":{"a":[1,2.5e3,{"b":null}]},"priority":null,"executionConfig":{"executor":"noop","retryPolicy":{"maxRetries":1}}}`)
	f.Add(`{"taskDefinitionId":"\u00e9\ud83d\ude00\n","workflowId":"a","input":{},"workflowContext":null}`)
	f.Add(`{"input":[1,{"input":{"x":1}}],"x":true,"y":false,"dueDate":"x","executionConfig":null}`)
	f.Add(`[{"a":1},"b",-0.0,1e-7,[]]`)
	f.Add(` "\\\/\"" `)
	a, err := build(Config{})
	require.NoError(f, err)
	registry := a.huma.OpenAPI().Components.Schemas
	schema := registry.Map()["TaskRequest"]
	require.NotNil(f, schema)
	f.Fuzz(func(t *testing.T, text string) {
		if jsonguard.Check([]byte(text)) != nil {
			return
		}
		var want, got any
		require.NoError(t, json.Unmarshal([]byte(text), &want))
		require.NoError(t, decode([]byte(text), &got))
		require.Equal(t, hollow(want), got)

		var ours, theirs huma.ValidateResult
		huma.Validate(registry, schema, huma.NewPathBuffer(nil, 0), huma.ModeWriteToServer, got, &ours)
		huma.Validate(registry, schema, huma.NewPathBuffer(nil, 0), huma.ModeWriteToServer, want, &theirs)
		require.Len(t, ours.Errors, len(theirs.Errors))
		if len(ours.Errors) > 0 {
			return
		}
		var one, other TaskRequest
		errOne, errOther := one.fill(gjson.Parse(text)), json.Unmarshal([]byte(text), &other)
		require.Equal(t, errOther == nil, errOne == nil, "%v, %v", errOther, errOne)
		if errOne == nil {
			require.Equal(t, other, one)
		}
	})
}

// hollow empties the free objects, as outline does.
func hollow(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = hollow(v[i])
		}
	case map[string]any:
		for name, member := range v {
			if _, object := member.(map[string]any); object && freeMembers[name] {
				v[name] = map[string]any{}
			} else {
				v[name] = hollow(member)
			}
		}
	}
	return v
}
