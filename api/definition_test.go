package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const definitionsPath = "/api/internal/task-definitions"

func definition(change ...object) object {
	return merge(object{
		"name": "Order total", "description": "Adds up", "type": "AUTOMATED", "version": "1.0.0", "timeout": 60000,
		"inputSchema": object{
			"type": "object", "required": []string{"orderId", "taxRate"},
			"properties": object{
				"orderId": object{"type": "string"}, "taxRate": object{"type": "number"},
				"items": object{"type": "array", "items": object{"properties": object{"price": object{"type": "number"}}}},
			},
		},
		"outputSchema":    object{"type": "object", "properties": object{"total": object{"type": "number"}}},
		"retryPolicy":     object{"maxRetries": 3, "retryInterval": 1000, "backoffMultiplier": 2},
		"executionConfig": object{"executor": "noop"},
	}, change...)
}

func TestTaskDefinitions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const path = definitionsPath + "/order-total"

	first := b.ask(t, orchestrator, "PUT", path, definition(), "If-Match", "")
	def := first.is(t, 201)
	require.Equal(t, `"1"`, first.header.Get("ETag"))
	require.Equal(t, "order-total", def["id"])
	require.EqualValues(t, 1, def["revision"])
	require.Equal(t, "workflow-orchestrator (subject workflow-orchestrator)", def["createdBy"])

	same := b.ask(t, orchestrator, "PUT", path, definition(object{"id": "order-total"}))
	require.Equal(t, def["revision"], same.is(t, 200)["revision"], "the same again changes nothing")

	b.ask(t, orchestrator, "PUT", path, definition(object{"timeout": 1}), "If-Match", `"2"`).fails(t, 412, "PRECONDITION_FAILED")
	changed := b.ask(t, orchestrator, "PUT", path, definition(object{"timeout": 5000}), "If-Match", `"1"`)
	require.EqualValues(t, 2, changed.is(t, 200)["revision"])
	require.Equal(t, `"2"`, changed.header.Get("ETag"))

	got := b.ask(t, "error-handler", "GET", path, nil)
	require.Equal(t, changed.object(t), got.is(t, 200), "anyone who may read reads the newest")
	require.Equal(t, `"2"`, got.header.Get("ETag"))

	b.ask(t, orchestrator, "GET", definitionsPath+"/unheard-of", nil).fails(t, 404, "NOT_FOUND")
	b.ask(t, orchestrator, "PUT", definitionsPath+"/new", definition(), "If-Match", "*").fails(t, 412, "PRECONDITION_FAILED")
	b.ask(t, orchestrator, "PUT", path, definition(object{"timeout": 5000}), "If-Match", "*").is(t, 200)
	b.ask(t, orchestrator, "PUT", path, definition(), "If-Match", "1").fails(t, 422, "VALIDATION_ERROR")

	for at, body := range map[string]object{
		"body.id":                                        definition(object{"id": "another"}),
		"body.version":                                   definition(object{"version": "1.0"}),
		"body.type":                                      definition(object{"type": "ROBOT"}),
		"body.timeout":                                   definition(object{"timeout": -1}),
		"body.inputSchema":                               definition(object{"inputSchema": object{"type": "nonsense"}}),
		"body.outputSchema":                              definition(object{"outputSchema": object{"$ref": "file:///etc/passwd"}}),
		"body.executionConfig.executor":                  definition(object{"executionConfig": object{}}),
		"body.executionConfig.http.url":                  definition(object{"executionConfig": object{"executor": "http", "http": object{"url": "gopher://x"}}}),
		"body.executionConfig.http.extra":                definition(object{"executionConfig": object{"executor": "http", "http": object{"url": "http://x/", "extra": 1}}}),
		"body.executionConfig.timeout":                   definition(object{"executionConfig": object{"executor": "noop", "timeout": 1}}),
		"body.retryPolicy.retryableErrors":               definition(object{"retryPolicy": object{"retryableErrors": make([]string, 65)}}),
		"body.executionConfig.notifications.channels[0]": definition(object{"executionConfig": object{"executor": "noop", "notifications": object{"channels": []string{"fax"}}}}),
		"body.extra":                                     definition(object{"extra": 1}),
	} {
		p := b.ask(t, orchestrator, "PUT", path, body).fails(t, 422, "VALIDATION_ERROR")
		require.Contains(t, violations(p), at)
	}
	for _, id := range []string{"..", "a%2Fb", "-x", "a%20b"} {
		r := b.ask(t, orchestrator, "PUT", definitionsPath+"/"+id, definition())
		require.Contains(t, []int{404, 422}, r.status, id)
	}
}

func TestListTaskDefinitions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	empty := b.ask(t, orchestrator, "GET", definitionsPath, nil)
	require.Equal(t, object{"items": []any{}, "nextCursor": nil}, empty.is(t, 200))

	for i := range 5 {
		b.ask(t, orchestrator, "PUT", fmt.Sprintf("%s/def-%d", definitionsPath, i), definition()).is(t, 201)
	}
	b.ask(t, orchestrator, "PUT", definitionsPath+"/def-2", definition(object{"timeout": 7})).is(t, 200)
	var ids []any
	path := definitionsPath + "?limit=2"
	for range 3 {
		page := b.ask(t, "task-worker", "GET", path, nil).is(t, 200)
		for _, item := range page["items"].([]any) {
			ids = append(ids, item.(object)["id"], item.(object)["revision"])
		}
		if page["nextCursor"] == nil {
			break
		}
		path = definitionsPath + "?limit=2&cursor=" + page["nextCursor"].(string)
	}
	require.Equal(t, []any{"def-0", 1.0, "def-1", 1.0, "def-2", 2.0, "def-3", 1.0, "def-4", 1.0}, ids)
	b.ask(t, orchestrator, "GET", definitionsPath+"?cursor=AAAA", nil).fails(t, 422, "VALIDATION_ERROR")
	b.ask(t, orchestrator, "GET", definitionsPath+"?limit=0", nil).fails(t, 422, "VALIDATION_ERROR")
}

// A definition that changes past 2^53 has changed.
func TestDefinitionsCompareNumbersAsDecimals(t *testing.T) {
	t.Parallel()
	b := setup(t)
	put := func(maximum string) *reply {
		body := `{"type": "AUTOMATED", "version": "1.0.0", "executionConfig": {"executor": "noop"}, "inputSchema": {"properties": {"n": {"maximum": MAXIMUM}}}}`
		return b.ask(t, orchestrator, "PUT", definitionsPath+"/limit", strings.Replace(body, "MAXIMUM", maximum, 1))
	}

	require.EqualValues(t, 1, put("9007199254740992").is(t, 201)["revision"])
	require.EqualValues(t, 1, put("9007199254740992.0").is(t, 200)["revision"])
	require.EqualValues(t, 2, put("9007199254740993").is(t, 200)["revision"])
}
