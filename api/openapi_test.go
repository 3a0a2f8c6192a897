package api_test

import (
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
)

var update = flag.Bool("update", false, "write openapi.yaml anew")

func TestDocumentIsCheckedIn(t *testing.T) {
	t.Parallel()
	printed, err := api.OpenAPI()
	require.NoError(t, err)
	again, err := api.OpenAPI()
	require.NoError(t, err)
	require.Equal(t, string(printed), string(again), "the order is stable")
	if *update {
		require.NoError(t, os.WriteFile("openapi.yaml", printed, 0o644))
	}
	kept, err := os.ReadFile("openapi.yaml")
	require.NoError(t, err)
	require.Equal(t, string(kept), string(printed), "the interface has changed: go test ./api -run Document -update")
}

// document is the OpenAPI document as a client gets it.
func document(t *testing.T) object {
	t.Helper()
	b := setup(t)
	r := b.askWith(t, "", "GET", "/openapi.json", nil)
	require.Equal(t, "application/openapi+json", r.header.Get("Content-Type"))
	yaml := b.askWith(t, "", "GET", "/openapi.yaml", nil)
	require.Equal(t, http.StatusOK, yaml.status)
	printed, err := api.OpenAPI()
	require.NoError(t, err)
	require.Equal(t, string(printed), string(yaml.body), "what is served is what is printed")
	return r.is(t, 200)
}

func TestDocumentIsWhole(t *testing.T) {
	t.Parallel()
	doc := document(t)
	require.Equal(t, "3.1.0", doc["openapi"])
	schemas := doc["components"].(object)["schemas"].(object)
	require.Contains(t, doc["components"].(object)["securitySchemes"], "serviceJWT")
	ids := map[string]bool{}
	for path, item := range doc["paths"].(object) {
		for method, op := range item.(object) {
			op := op.(object)
			at := method + " " + path
			id := op["operationId"].(string)
			require.False(t, ids[id], "%s twice", id)
			ids[id] = true
			require.Regexp(t, `^[a-z]+[A-Za-z]+$`, id)
			for _, member := range []string{"summary", "description", "tags", "security", "x-callers", "responses"} {
				require.NotEmpty(t, op[member], "%s of %s", member, at)
			}
			responses := op["responses"].(object)
			for _, status := range []string{"401", "403", "422", "500", "503"} {
				require.Contains(t, responses, status, at)
			}
			for status, response := range responses {
				content, _ := response.(object)["content"].(object)
				require.NotEmpty(t, response.(object)["description"], "%s %s", at, status)
				if status >= "400" {
					require.Contains(t, content, "application/problem+json", "%s %s", at, status)
					continue
				}
				media := content["application/json"].(object)
				require.NotEmpty(t, media["schema"], "%s %s", at, status)
				if id != "getTaskMetrics" {
					valid(t, doc, media["schema"].(object), media["example"], at+" "+status)
				}
			}
			for _, p := range list(op["parameters"]) {
				bounded(t, schemas, p.(object)["schema"].(object), at+" "+p.(object)["name"].(string))
			}
			if body, ok := op["requestBody"].(object); ok {
				media := body["content"].(object)["application/json"].(object)
				valid(t, doc, media["schema"].(object), media["example"], at)
				bounded(t, schemas, media["schema"].(object), at)
				optional := slices.Contains([]string{"cancelTask", "heartbeat", "completeLease", "releaseLease", "stopRedriveOperation", "undoRedriveOperation"}, id)
				require.Equal(t, !optional, body["required"] == true, at)
			}
		}
	}
	require.Len(t, ids, len(callers))
	text, err := json.Marshal(doc)
	require.NoError(t, err)
	require.NotContains(t, string(text), "$schema")
	require.NotContains(t, string(text), `["array","null"]`)
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

// bounded demands that whatever a client may send has an end.
func bounded(t *testing.T, schemas, s object, at string) {
	t.Helper()
	if ref, ok := s["$ref"].(string); ok {
		s = schemas[strings.TrimPrefix(ref, "#/components/schemas/")].(object)
	}
	if one := list(s["oneOf"]); one != nil {
		for _, either := range one {
			bounded(t, schemas, either.(object), at)
		}
		return
	}
	kind := s["type"]
	if either := list(kind); len(either) == 2 && either[1] == "null" {
		kind = either[0]
	}
	switch kind {
	case nil:
		require.True(t, strings.HasSuffix(at, ".inputPatch[].value"), "%s may be anything", at)
	case "string":
		_, length := s["maxLength"]
		pattern, _ := s["pattern"].(string)
		ok := length || s["enum"] != nil || s["format"] == "date-time" || strings.HasSuffix(pattern, "}$")
		require.True(t, ok, "%s: a string without an end", at)
	case "integer", "number":
		_, low := s["minimum"]
		require.True(t, low, "%s: a number without a bound", at)
	case "array":
		require.Contains(t, s, "maxItems", at)
		bounded(t, schemas, s["items"].(object), at+"[]")
	case "object":
		if s["properties"] == nil {
			if of, ok := s["additionalProperties"].(object); ok {
				require.Contains(t, s, "maxProperties", at)
				bounded(t, schemas, of, at+".*")
				return
			}
			free := at[strings.LastIndex(at, ".")+1:]
			require.True(t, slices.Contains([]string{"input", "workflowContext", "output", "details", "inputSchema", "outputSchema", "progress", "checkpoint"}, free), "%s is free", at)
			return
		}
		require.Equal(t, false, s["additionalProperties"], at)
		for name, member := range s["properties"].(object) {
			bounded(t, schemas, member.(object), at+"."+name)
		}
	case "boolean":
	default:
		t.Errorf("%s: a schema of no type: %v", at, s)
	}
}

// valid holds an example against its schema, as huma would.
func valid(t *testing.T, doc, schema object, example any, at string) {
	t.Helper()
	require.NotNil(t, example, "%s has no example", at)
	registry := huma.NewMapRegistry("#/components/schemas/", func(reflect.Type, string) string { return "" })
	read := func(from any) *huma.Schema {
		text, err := json.Marshal(from)
		require.NoError(t, err)
		return schemaOf(t, text)
	}
	for name, s := range doc["components"].(object)["schemas"].(object) {
		registry.Map()[name] = read(s)
	}
	var result huma.ValidateResult
	huma.Validate(registry, read(schema), huma.NewPathBuffer(nil, 0), huma.ModeReadFromServer, example, &result)
	require.Empty(t, result.Errors, at)
}

// schemaOf reads a schema back: huma only writes them.
func schemaOf(t *testing.T, text []byte) *huma.Schema {
	t.Helper()
	var raw struct {
		Type                 any                        `json:"type"`
		Ref                  string                     `json:"$ref"`
		Format, Pattern      string                     `json:"-"`
		Items                json.RawMessage            `json:"items"`
		Properties           map[string]json.RawMessage `json:"properties"`
		AdditionalProperties json.RawMessage            `json:"additionalProperties"`
		Enum                 []any                      `json:"enum"`
		Required             []string                   `json:"required"`
		MaxLength            *int                       `json:"maxLength"`
		Minimum, Maximum     *float64
	}
	require.NoError(t, json.Unmarshal(text, &raw))
	s := &huma.Schema{Ref: raw.Ref, Enum: raw.Enum, Required: raw.Required, MaxLength: raw.MaxLength, Minimum: raw.Minimum, Maximum: raw.Maximum}
	switch of := raw.Type.(type) {
	case string:
		s.Type = of
	case []any:
		s.Type, s.Nullable = of[0].(string), true
	}
	if raw.Items != nil {
		s.Items = schemaOf(t, raw.Items)
	}
	if string(raw.AdditionalProperties) == "false" {
		s.AdditionalProperties = false
	}
	if raw.Properties != nil {
		s.Properties = map[string]*huma.Schema{}
		for name, p := range raw.Properties {
			s.Properties[name] = schemaOf(t, p)
		}
	}
	s.PrecomputeMessages()
	return s
}
