package demo

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

// requests.json holds the expectations. None may be lost while it is read.
func TestDemoReadsEveryExpectation(t *testing.T) {
	t.Parallel()
	requests, err := readRequests()
	require.NoError(t, err)
	definitions := []string{"calculate-order-total", "review-high-value-order", "review-term-sheet", "create-invoice", "send-email", "create-invoice"}
	require.Len(t, requests, len(definitions))
	for i, request := range requests {
		require.Equal(t, definitions[i], request.body["taskDefinitionId"])
		require.NotContains(t, request.body, "expect", "the service knows no such member")
		require.NotEmpty(t, request.expect.Status)
	}

	require.Equal(t, map[string]any{"orderId": "ORD-123", "subtotal": 46.97, "tax": 3.76, "total": 50.73}, requests[0].expect.Output)
	require.Equal(t, "reviewer-john-doe", requests[2].expect.Assignee)
	require.Equal(t, "VALIDATION_ERROR", requests[5].expect.Error.Code)
}

func TestDemoCheck(t *testing.T) {
	t.Parallel()
	read := func(expect string) (e entry) {
		require.NoError(t, json.Unmarshal([]byte(expect), &e.expect))
		return e
	}

	for _, c := range []struct{ expect, now, wrong string }{
		{`{}`, `{"status": "COMPLETED", "output": {"a": 1}}`, ""},
		{`{"output": {"a": 1, "b": [true]}}`, `{"output": {"b": [true], "a": 1.0}}`, ""},
		{`{"output": {"a": 1}}`, `{"output": {"a": 2}}`, "expected output map[a:1], got map[a:2]"},
		{`{"output": {"a": 1}}`, `{"output": {"a": 1, "b": 2}}`, "expected output map[a:1], got map[a:1 b:2]"},
		{`{"output": {"a": 1}}`, `{"output": null}`, "expected output map[a:1], got <nil>"},
		{`{"assignee": "john"}`, `{"assignee": "john"}`, ""},
		{`{"assignee": "john"}`, `{"assignee": null}`, "expected assignee john, got <nil>"},
		{`{"error": {"code": "E"}}`, `{"error": {"code": "E", "message": "m"}}`, ""},
		{`{"error": {"code": "E"}}`, `{"error": {"code": "F"}}`, "expected error E, got map[code:F]"},
		{`{"error": {"code": "E"}}`, `{}`, "expected error E, got <nil>"},
	} {
		var now map[string]any
		require.NoError(t, json.Unmarshal([]byte(c.now), &now))
		require.Equal(t, c.wrong, read(c.expect).check(now), "%s against %s", c.now, c.expect)
	}
}

// What a terminal shows.
func TestDemoColors(t *testing.T) {
	t.Parallel()
	d := &demo{color: true}
	require.Equal(t, "\x1b[32mtask.completed      \x1b[0m", d.colorize(outbox.SubjectCompleted))
	require.Equal(t, "\x1b[31mtask.failed         \x1b[0m", d.colorize(outbox.SubjectFailed))
	require.Equal(t, "\x1b[33mtask.retry          \x1b[0m", d.colorize(outbox.SubjectRetry))
	require.Equal(t, "\x1b[36mtask.created        \x1b[0m", d.colorize(outbox.SubjectCreated))
	d.color = false
	require.Equal(t, "task.completed      ", d.colorize(outbox.SubjectCompleted))
}
