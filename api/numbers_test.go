package api_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two orders that differ past 2^53 are two orders, not one that is sent again.
func TestIdempotencyKeysCompareNumbersAsDecimals(t *testing.T) {
	t.Parallel()
	b := setup(t)
	order := func(n string) string {
		return `{"taskDefinitionId": "nothing", "workflowId": "wf-1", "taskType": "AUTOMATED", "executionConfig": {"executor": "noop"}, "requestId": "order-1", "input": {"n": ` + n + `}}`
	}

	first := b.ask(t, orchestrator, "POST", tasksPath, order("9007199254740992")).is(t, 201)["taskId"]
	b.ask(t, orchestrator, "POST", tasksPath, order("9007199254740993")).fails(t, 409, "CONFLICT")
	require.Equal(t, first, b.ask(t, orchestrator, "POST", tasksPath, order("9007199254740992.0")).is(t, 200)["taskId"])
	require.Equal(t, first, b.ask(t, orchestrator, "POST", tasksPath, order("9007199254740992e0")).is(t, 200)["taskId"])

	batch := b.ask(t, orchestrator, "POST", tasksPath+"/batch", `{"tasks": [`+order("9007199254740993")+`]}`).is(t, 200)
	require.Equal(t, "CONFLICT", batch["results"].([]any)[0].(object)["error"].(object)["code"])
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
