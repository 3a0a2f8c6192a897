package api_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/jobs"
)

const pausesPath = "/api/internal/pauses"

// Whatever is paused is listed with who, when and why, holds its tasks back, and says so.
func TestPauses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.obeying(t)
	b.ask(t, orchestrator, "PUT", definitionsPath+"/total", definition(object{"type": "AUTOMATED", "executionConfig": object{"executor": "noop"}})).is(t, 201)
	why := object{"reason": "the tax table is wrong"}
	listed := func(query string) (all []any) {
		for _, item := range b.ask(t, ui, "GET", pausesPath+query, nil).is(t, 200)["items"].([]any) {
			p := item.(object)
			all = append(all, []any{p["scope"], p["name"], p["pausedBy"], p["reason"], p["resumedBy"], p["resumeReason"]})
		}
		return all
	}

	queue, of := "/api/internal/queues/"+jobs.LaneAutomated, definitionsPath+"/total"
	path, _ := b.create(t, noop(object{"executionConfig": object{"executor": "worker"}}))
	id := strings.TrimPrefix(path, tasksPath+"/")
	var held []string
	for _, place := range []string{queue, of, path} {
		first := b.ask(t, orchestrator, "POST", place+"/pause", why).is(t, 200)
		require.Equal(t, []any{"workflow-orchestrator", why["reason"], nil, nil, nil}, []any{first["pausedBy"], first["reason"], first["resumedAt"], first["resumedBy"], first["resumeReason"]})
		require.Equal(t, first, b.ask(t, orchestrator, "POST", place+"/pause", object{"reason": "another"}).is(t, 200), "the first pause stands")
		held = append(held, first["pausedAt"].(string))
	}
	all := []any{
		[]any{"task", id, "workflow-orchestrator", why["reason"], nil, nil},
		[]any{"definition", "total", "workflow-orchestrator", why["reason"], nil, nil},
		[]any{"queue", jobs.LaneAutomated, "workflow-orchestrator", why["reason"], nil, nil},
	}
	require.Equal(t, all, listed(""))
	next := b.ask(t, ui, "GET", pausesPath+"?limit=2", nil).is(t, 200)["nextCursor"].(string)
	require.Equal(t, all[2:], listed("?limit=2&cursor="+next))
	b.ask(t, ui, "GET", pausesPath+"?all=true&cursor="+next, nil).fails(t, 422, "VALIDATION_ERROR")

	made, _ := b.create(t, object{"taskDefinitionId": "total", "workflowId": "w", "input": object{"orderId": "o", "taxRate": 1}})
	b.why(t, made, "PAUSED", "^task-execution-automated has been paused since "+held[0]+" by workflow-orchestrator: the tax table is wrong$")
	b.ask(t, orchestrator, "POST", queue+"/resume", object{"reason": "mended"}).is(t, 200)
	const definitions = "^definition total has been paused since 20[^ ]+Z by workflow-orchestrator: the tax table is wrong$"
	eventually(t, func() bool {
		var n int
		require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT count(*) FROM river_job WHERE state = 'pending'").Scan(&n))
		return n == 1
	})
	b.why(t, made, "PAUSED", definitions)
	b.why(t, path, "PAUSED", "^task "+id+" has been paused since "+held[2]+" by workflow-orchestrator: the tax table is wrong$")

	for _, place := range []string{of, path} {
		last := b.ask(t, orchestrator, "POST", place+"/resume", object{"reason": "mended"}).is(t, 200)
		require.NotNil(t, last["resumedAt"])
		require.Equal(t, last, b.ask(t, orchestrator, "POST", place+"/resume", object{"reason": "again"}).is(t, 200), "the last pause, as it ended")
	}
	b.stands(t, made, "COMPLETED")
	require.Empty(t, listed(""))
	for i := range all {
		all[i] = append(all[i].([]any)[:4], "workflow-orchestrator", "mended")
	}
	require.Equal(t, all, listed("?all=true"))

	b.ask(t, orchestrator, "POST", made+"/pause", why).fails(t, 409, "CONFLICT")
	for _, place := range []string{"/api/internal/queues/nowhere", definitionsPath + "/nowhere", tasksPath + "/nowhere", tasksPath + "/0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01"} {
		b.ask(t, orchestrator, "POST", place+"/pause", why).fails(t, 404, "NOT_FOUND")
		b.ask(t, orchestrator, "POST", place+"/resume", why).fails(t, 404, "NOT_FOUND")
	}
	for _, bad := range []any{object{}, object{"reason": ""}, object{"reason": "a\nb"}, object{"reason": strings.Repeat("x", 501)}, object{"reason": nil}} {
		b.ask(t, orchestrator, "POST", queue+"/pause", bad).fails(t, 422, "VALIDATION_ERROR")
	}
}

// A pause under an idempotency key is answered as the first time, also when it has been
// resumed since: it does not pause again.
func TestPauseIsAnsweredOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, _ := b.create(t, noop())
	for _, place := range []string{"/api/internal/queues/" + jobs.LaneManual, path} {
		pause := func() *reply {
			return b.ask(t, orchestrator, "POST", place+"/pause", object{"reason": "r"}, "Idempotency-Key", "k-"+place)
		}
		first := pause().is(t, 200)
		b.ask(t, orchestrator, "POST", place+"/resume", object{"reason": "r"}).is(t, 200)
		again := pause()
		require.Equal(t, first, again.is(t, 200))
		require.Equal(t, "true", again.header.Get("Idempotency-Replayed"))
	}
	require.Empty(t, b.ask(t, ui, "GET", pausesPath, nil).is(t, 200)["items"])
}

// A tenant pauses what is its own, sees what holds its tasks back, and no queue.
func TestTenantsPauseTheirOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	as := func(tenant string) string {
		token, err := b.auth.Mint(peertest.TokenOptions{Service: "operations", Tenant: tenant, Scopes: []string{"tasks:pause", "tasks:read", "tasks:create"}})
		require.NoError(t, err)
		return token
	}
	why := object{"reason": "r"}
	b.ask(t, orchestrator, "PUT", definitionsPath+"/shared", definition(object{"type": "AUTOMATED", "executionConfig": object{"executor": "noop"}})).is(t, 201)
	path, _ := b.create(t, noop())
	b.askWith(t, as("acme"), "POST", "/api/internal/queues/"+jobs.LaneAutomated+"/pause", why).fails(t, 403, "FORBIDDEN")
	b.askWith(t, as("acme"), "POST", "/api/internal/queues/"+jobs.LaneAutomated+"/resume", why).fails(t, 403, "FORBIDDEN")
	b.askWith(t, as("acme"), "POST", path+"/pause", why).fails(t, 404, "NOT_FOUND")
	b.askWith(t, as("acme"), "POST", definitionsPath+"/shared/pause", why).is(t, 200)
	b.ask(t, orchestrator, "POST", path+"/pause", why).is(t, 200)
	b.ask(t, orchestrator, "POST", "/api/internal/queues/"+jobs.LaneManual+"/pause", why).is(t, 200)

	sees := func(tenant string) (scopes []any) {
		for _, item := range b.askWith(t, as(tenant), "GET", pausesPath, nil).is(t, 200)["items"].([]any) {
			scopes = append(scopes, item.(object)["scope"])
		}
		return scopes
	}
	require.Equal(t, []any{"queue", "definition"}, sees("acme"))
	require.Equal(t, []any{"queue"}, sees("mallory"))
	require.Equal(t, []any{"queue", "task"}, sees(""))
}
