package api_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Who works for a tenant is shown to that tenant, with what each asks for.
func TestWorkersAreListed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(t, "INSERT INTO worker (tenant_id, worker_id, queue, definition_ids, seen_at) VALUES ('', 'w-1', 'task-execution-automated', '{a,b}', now())")
	b.exec(t, "INSERT INTO worker (tenant_id, worker_id, queue, definition_ids, seen_at) VALUES ('', 'w-2', 'task-execution-automated', '{}', now() - interval '1 min')")
	b.exec(t, "INSERT INTO worker (tenant_id, worker_id, queue, definition_ids, seen_at) VALUES ('', 'w-2', 'task-execution-retry', '{}', now())")
	b.exec(t, "INSERT INTO worker (tenant_id, worker_id, queue, definition_ids, seen_at) VALUES ('', 'w-3', 'task-execution-automated', '{}', now() - interval '1 min')")
	b.exec(t, "INSERT INTO worker (tenant_id, worker_id, queue, definition_ids, seen_at) VALUES ('acme', 'w-4', 'task-execution-automated', '{}', now())")
	var seen []any
	path := "/api/internal/workers?limit=2"
	for next := ""; ; {
		page := b.ask(t, ui, "GET", path+next, nil).is(t, 200)
		for _, item := range page["items"].([]any) {
			w := item.(object)
			require.NotEmpty(t, w["since"])
			require.NotEmpty(t, w["lastSeen"])
			seen = append(seen, []any{w["workerId"], w["queue"], w["present"], w["taskDefinitionIds"]})
		}
		if page["nextCursor"] == nil {
			break
		}
		next = "&cursor=" + page["nextCursor"].(string)
	}
	require.Equal(t, []any{
		[]any{"w-1", "task-execution-automated", true, []any{"a", "b"}},
		[]any{"w-2", "task-execution-automated", false, []any{}},
		[]any{"w-2", "task-execution-retry", true, []any{}},
		[]any{"w-3", "task-execution-automated", false, []any{}},
	}, seen)
}
