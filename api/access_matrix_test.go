package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// callers is the Callers column of the interface document, and what was settled
// beside it. The routes say the same in api.go; here it is said again on purpose.
var callers = map[string]struct {
	scope    string
	services []string // nil: anyone who holds the scope
	or       string   // another scope that will do
}{
	"createTask":          {"tasks:create", []string{orchestrator}, ""},
	"createTasks":         {"tasks:create", []string{orchestrator}, ""},
	"getTask":             {"tasks:read", []string{orchestrator, ui}, ""},
	"updateTaskStatus":    {"tasks:update", []string{orchestrator}, ""},
	"cancelTask":          {"tasks:cancel", []string{orchestrator}, ""},
	"listTasksByWorkflow": {"tasks:read", []string{orchestrator, ui}, ""},
	"reassignTask":        {"tasks:reassign", []string{ui}, ""},
	"claimTask":           {"tasks:update", []string{ui}, ""},
	"unclaimTask":         {"tasks:update", []string{ui}, ""},
	"completeTask":        {"tasks:update", []string{ui}, ""},
	"claimNextTask":       {"tasks:update", []string{ui}, ""},
	"listTasksByUser":     {"tasks:read", []string{ui}, ""},
	"getTaskMetrics":      {"tasks:metrics", []string{monitoring}, ""},
	"whyTask":             {"tasks:read", nil, ""},
	"listTaskEvents":      {"tasks:read", nil, ""},
	"listTaskAttempts":    {"tasks:read", nil, ""},
	"putTaskDefinition":   {"tasks:define", []string{orchestrator}, ""},
	"getTaskDefinition":   {"tasks:read", nil, ""},
	"listTaskDefinitions": {"tasks:read", nil, ""},
	"dequeueTasks":        {"tasks:work", nil, "tasks:deadletter"},
	"heartbeat":           {"tasks:work", nil, "tasks:deadletter"},
	"heartbeats":          {"tasks:work", nil, "tasks:deadletter"},
	"completeLease":       {"tasks:work", nil, "tasks:deadletter"},
	"failLease":           {"tasks:work", nil, "tasks:deadletter"},
	"releaseLease":        {"tasks:work", nil, "tasks:deadletter"},

	"listWorkers": {"tasks:read", nil, ""},

	"pauseQueue":           {"tasks:pause", nil, ""},
	"resumeQueue":          {"tasks:pause", nil, ""},
	"pauseTaskDefinition":  {"tasks:pause", nil, ""},
	"resumeTaskDefinition": {"tasks:pause", nil, ""},
	"pauseTask":            {"tasks:pause", nil, ""},
	"resumeTask":           {"tasks:pause", nil, ""},
	"listPauses":           {"tasks:read", nil, ""},

	"listDeadLetters":      {"tasks:deadletter", []string{errorHandler}, ""},
	"redriveDeadLetters":   {"tasks:deadletter", []string{errorHandler}, ""},
	"getRedriveOperation":  {"tasks:deadletter", []string{errorHandler}, ""},
	"stopRedriveOperation": {"tasks:deadletter", []string{errorHandler}, ""},
	"undoRedriveOperation": {"tasks:deadletter", []string{errorHandler}, ""},
	"discardDeadLetter":    {"tasks:deadletter", []string{errorHandler}, ""},
}

var services = []string{orchestrator, ui, monitoring, "task-worker", errorHandler, "stranger", "workflow-orchestrator ", "Workflow-Orchestrator"}

var scopes = api.Scopes

// TestWhoMayCallWhat asks every operation of the document for every caller, with
// every scope but its own, and with its own.
func TestWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	b := setup(t)
	document := b.askWith(t, "", "GET", "/openapi.json", nil).is(t, 200)
	token := func(service string, scopes ...string) string {
		text, err := b.auth.Mint(peertest.TokenOptions{Service: service, Scopes: scopes})
		require.NoError(t, err)
		return text
	}
	every := map[string]string{}
	for _, s := range services {
		every[s] = token(s, scopes...)
	}
	before := b.digest(t)
	seen := map[string]bool{}
	for path, item := range document["paths"].(object) {
		for method, op := range item.(object) {
			op := op.(object)
			id := op["operationId"].(string)
			want, ok := callers[id]
			require.True(t, ok, "who may call %s is not settled", id)
			seen[id] = true
			require.Contains(t, api.Scopes, want.scope, id)
			security := []any{object{"serviceJWT": []any{want.scope}}}
			if want.or != "" {
				security = append(security, object{"serviceJWT": []any{want.or}})
			}
			require.Equal(t, security, op["security"], id)
			list := []any{}
			for _, s := range want.services {
				list = append(list, s)
			}
			if want.services == nil {
				list = []any{"*"}
			}
			require.Equal(t, list, op["x-callers"], id)

			place := strings.NewReplacer("{taskId}", "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", "{workflowId}", "w", "{userId}", "u", "{id}", "d", "{queue}", "q", "{operationId}", "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01").Replace(path)
			ask := func(token string) *reply {
				// A body that nothing takes: whoever sees it was let in.
				var body any
				if op["requestBody"] != nil {
					body = "["
				}
				return b.askWith(t, token, strings.ToUpper(method), place, body)
			}
			ask("").fails(t, http.StatusUnauthorized, "UNAUTHORIZED")
			for _, service := range services {
				allowed := want.services == nil || slices.Contains(want.services, service)
				r := ask(every[service])
				if allowed {
					require.NotContains(t, []int{401, 403}, r.status, "%s by %s", id, service)
					require.Less(t, r.status, 500, "%s by %s: %s", id, service, r.body)
				} else {
					r.fails(t, http.StatusForbidden, "FORBIDDEN")
					require.Empty(t, r.header.Get("WWW-Authenticate"), "no scope is missing")
				}
				if allowed {
					others := slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return s == want.scope || s == want.or })
					r := ask(token(service, others...))
					r.fails(t, http.StatusForbidden, "FORBIDDEN")
					require.Equal(t, `Bearer realm="tes", error="insufficient_scope", scope="`+want.scope+`"`, r.header.Get("WWW-Authenticate"))
					ask(token(service, want.scope+"s", "tasks", "tasks:*", strings.ToUpper(want.scope))).fails(t, http.StatusForbidden, "FORBIDDEN")
					require.NotContains(t, []int{401, 403}, ask(token(service, want.scope)).status)
					if want.or != "" {
						require.NotContains(t, []int{401, 403}, ask(token(service, want.or)).status)
					}
				}
			}
		}
	}
	require.Len(t, seen, len(callers), "every settled operation is there")
	require.Equal(t, before, b.digest(t), "who is not let in, or sends nothing good, writes nothing")
}

func TestUnknownRoutes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, path := range []string{"/", "/api", "/api/internal/task", tasksPath + "/", tasksPath + "/a/b/c", "/livez/", "/debug/pprof/", "/riverui", "/docs", "/schemas/Task.json", "/openapi-3.0.json"} {
		b.ask(t, orchestrator, "GET", path, nil).fails(t, 404, "NOT_FOUND")
	}
	for path, allow := range map[string]string{
		tasksPath: "POST", tasksPath + "/metrics": "GET, HEAD", tasksPath + "/0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01": "GET, HEAD",
		tasksPath + "/x/status": "PUT", definitionsPath + "/x": "GET, HEAD, PUT", "/livez": "GET, HEAD",
	} {
		for _, method := range []string{"DELETE", "PATCH", "TRACE", "BREW"} {
			r := b.ask(t, orchestrator, method, path, nil)
			r.fails(t, 405, "METHOD_NOT_ALLOWED")
			require.Equal(t, allow, r.header.Get("Allow"), path)
		}
	}
	b.ask(t, orchestrator, "BREW", "/nowhere", nil).fails(t, 404, "NOT_FOUND")
}
