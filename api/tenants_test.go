package api_test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// operation is one operation of the OpenAPI document.
type operation struct {
	id, method, path string
	scopes           []string // any one of them will do
	callers          []string // "*": whoever holds the scope
	body             any      // the document's example; nil without a body
}

// operations reads the OpenAPI document, ordered by path and method.
func operations(t *testing.T, document object) (all []operation) {
	t.Helper()
	paths := document["paths"].(object)

	for _, path := range slices.Sorted(maps.Keys(paths)) {
		methods := paths[path].(object)
		for _, method := range slices.Sorted(maps.Keys(methods)) {
			op := methods[method].(object)
			o := operation{id: op["operationId"].(string), method: strings.ToUpper(method), path: path}
			for _, way := range op["security"].([]any) {
				for _, scope := range way.(object)["serviceJWT"].([]any) {
					o.scopes = append(o.scopes, scope.(string))
				}
			}
			for _, caller := range op["x-callers"].([]any) {
				o.callers = append(o.callers, caller.(string))
			}
			if body, ok := op["requestBody"].(object); ok {
				o.body = body["content"].(object)["application/json"].(object)["example"]
				require.NotNil(t, o.body, "%s has no example to be tried with", o.id)
			}
			all = append(all, o)
		}
	}

	return all
}

// belongings are what a tenant has, by the path parameters that name it.
type belongings map[string][]string

// belongingsOf gives a tenant one of everything: a waiting, a leased, an assigned and a
// failed task, a definition, a lease, and a redrive under way.
func (b *testBundle) belongingsOf(t *testing.T, tenant string) belongings {
	t.Helper()
	token := func(service string) string { return b.tenant(t, service, tenant) }
	create := func(body object) string {
		return b.askWith(t, token(orchestrator), "POST", tasksPath, body).is(t, 201)["taskId"].(string)
	}
	dequeue := func(service, queue string) string {
		w := object{"workerId": "w-" + tenant, "waitMs": 10000, "select": []any{object{"queue": queue, "maxTasks": 1}}}
		leases := b.askWith(t, token(service), "POST", "/api/internal/leases", w).is(t, 200)["leases"].([]any)
		require.Len(t, leases, 1)
		return leases[0].(object)["leaseToken"].(string)
	}
	remote := noop(object{"executionConfig": object{"executor": "worker"}, "input": object{"secret": "canary-" + tenant}})

	definition := definition(object{"type": "AUTOMATED", "description": "canary-" + tenant, "executionConfig": object{"executor": "worker"}})
	b.askWith(t, token(orchestrator), "PUT", definitionsPath+"/of-"+tenant, definition).is(t, 201)

	dead := create(remote)
	lost := dequeue("task-worker", "task-execution-automated")
	failure := object{"errorCode": "NO_STOCK", "errorMessage": "canary-" + tenant, "retryable": false}
	b.askWith(t, token("task-worker"), "POST", "/api/internal/leases/"+lost+"/fail", failure).is(t, 200)
	redrive := object{"filter": object{"errorCode": "NO_STOCK"}, "ratePerSecond": 1, "reason": "canary-" + tenant}
	operation := b.askWith(t, token(errorHandler), "POST", lettersPath+"/redrive", redrive).is(t, 202)["operationId"].(string)

	leased := create(remote)
	lease := dequeue("task-worker", "task-execution-automated")

	assigned := create(manual())
	b.askWith(t, token(ui), "POST", tasksPath+"/"+assigned+"/reassign", object{"assigneeId": "u-" + tenant}).is(t, 200)

	return belongings{
		"taskId": {create(remote), leased, assigned, dead}, "leaseToken": {lease, lost}, "operationId": {operation},
		"id": {"of-" + tenant}, "workflowId": {"wf-1"}, "userId": {"u-" + tenant},
	}
}

// kept is all that the database holds of a tenant, and of its redrive.
func (b *testBundle) kept(t *testing.T, tenant string, has belongings) (all []string) {
	t.Helper()
	for _, rows := range []string{
		"task WHERE tenant_id = $1",
		"task_attempt WHERE task_id IN (SELECT task_id FROM task WHERE tenant_id = $1)",
		"task_event WHERE task_id IN (SELECT task_id FROM task WHERE tenant_id = $1)",
		"task_checkpoint WHERE task_id IN (SELECT task_id FROM task WHERE tenant_id = $1)",
		"dead_letter_discard WHERE task_id IN (SELECT task_id FROM task WHERE tenant_id = $1)",
		"lease WHERE task_id IN (SELECT task_id FROM task WHERE tenant_id = $1)",
		"river_job WHERE args ->> 'task_id' IN (SELECT task_id::text FROM task WHERE tenant_id = $1)",
		"task_definition WHERE description = 'canary-' || $1",
	} {
		var digest string
		table, where, _ := strings.Cut(rows, " ")
		query := "SELECT count(*) || ' ' || coalesce(md5(string_agg(x::text, ' ' ORDER BY x::text)), '') FROM " + table + " x " + where
		require.NoError(t, b.pool.QueryRow(t.Context(), query, tenant).Scan(&digest), rows)
		all = append(all, table+" "+digest)
	}

	redrive := b.askWith(t, b.tenant(t, errorHandler, tenant), "GET", lettersPath+"/operations/"+has["operationId"][0], nil).is(t, 200)
	return append(all, fmt.Sprint(redrive))
}

// aimed is an example body whose ids are somebody's.
func aimed(body any, at belongings) any {
	switch body := body.(type) {
	case object:
		out := object{}
		for name, v := range body {
			switch ids := at[strings.TrimSuffix(name, "s")]; {
			case name == "taskIds":
				out[name] = at["taskId"]
			case name == "waitMs":
				out[name] = 0 // nothing comes, however long the call waits
			case len(ids) > 0 && name != "id" && name != "workflowId":
				out[name] = ids[0]
			default:
				out[name] = aimed(v, at)
			}
		}
		return out
	case []any:
		var out []any
		for _, v := range body {
			out = append(out, aimed(v, at))
		}
		return out
	}
	return body
}

// places fills a path's parameters, with each of the ids that there are for the last.
func places(path string, at belongings) []string {
	out := []string{path}
	for name, ids := range at {
		parameter := "{" + name + "}"
		if !strings.Contains(path, parameter) {
			continue
		}
		var filled []string
		for _, id := range ids {
			filled = append(filled, strings.ReplaceAll(out[0], parameter, id))
		}
		out = filled
	}
	return out
}

// TestNoOperationReachesAnotherTenant asks every operation of the document, with a caller
// and a scope that it is for, for what is another tenant's: in the path, and in the
// body wherever the document's example names an id. Nothing of it is shown, and nothing
// of it is changed.
func TestNoOperationReachesAnotherTenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	all := operations(t, b.askWith(t, "", "GET", "/openapi.json", nil).is(t, 200))
	acme := b.belongingsOf(t, "acme")
	before := b.kept(t, "acme", acme)

	for _, stranger := range []string{"mallory", ""} {
		for _, op := range all {
			for _, caller := range op.callers {
				if caller == "*" {
					caller = "task-worker"
				}
				for _, scope := range op.scopes {
					token, err := b.auth.Mint(peertest.TokenOptions{Service: caller, Tenant: stranger, Scopes: []string{scope}})
					require.NoError(t, err)

					for _, place := range places(op.path, acme) {
						r := b.askWith(t, token, op.method, place, aimed(op.body, acme))
						named := fmt.Sprintf("%s by %s of tenant %q: %d %s", op.id, caller, stranger, r.status, r.body)

						require.Less(t, r.status, 500, named)
						require.NotEqual(t, http.StatusUnauthorized, r.status, named)
						if r.status == http.StatusForbidden && strings.Contains(op.path, "{queue}") { // all tenants'
							require.Equal(t, "mallory", stranger, named)
						} else if r.status == http.StatusForbidden { // the scope of dead letters leases nothing else
							require.Equal(t, "tasks:deadletter", scope, named)
							require.Contains(t, op.path, "/leases", named)
						} else if strings.Contains(op.path, "{taskId}") || strings.Contains(op.path, "{leaseToken}") || strings.Contains(op.path, "{operationId}") || op.id == "getTaskDefinition" {
							require.Equal(t, http.StatusNotFound, r.status, named)
						}
						require.NotContains(t, string(r.body), "canary-acme", named)
						require.Equal(t, before, b.kept(t, "acme", acme), named)
					}
				}
			}
		}
	}
}

// TestAuthorizationTable holds the table of docs/security.md against the OpenAPI document.
func TestAuthorizationTable(t *testing.T) {
	t.Parallel()
	const page, begin, end = "../docs/security.md", "<!-- begin: go test ./api -run TestAuthorizationTable -update -->\n", "<!-- end -->\n"
	b := setup(t)

	var table strings.Builder
	table.WriteString("| operation | callers | scope | what another tenant gets |\n|---|---|---|---|\n")
	for _, op := range operations(t, b.askWith(t, "", "GET", "/openapi.json", nil).is(t, 200)) {
		callers := strings.Join(op.callers, ", ")
		if callers == "*" {
			callers = "any service"
		}
		fmt.Fprintf(&table, "| `%s %s` | %s | `%s` | %s |\n", op.method, op.path, callers, strings.Join(op.scopes, "` or `"), elsewhere(op))
	}

	text, err := os.ReadFile(page)
	require.NoError(t, err)
	head, rest, ok := strings.Cut(string(text), begin)
	require.True(t, ok, "the page has no place for the table")
	_, tail, ok := strings.Cut(rest, end)
	require.True(t, ok, "the page's table has no end")
	want := head + begin + table.String() + end + tail
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(want), 0o644))
		return
	}
	require.Equal(t, want, string(text), "run go test ./api -run TestAuthorizationTable -update")
}

// elsewhere says what an operation answers to a token of another tenant;
// TestNoOperationReachesAnotherTenant shows it.
func elsewhere(op operation) string {
	switch {
	case op.id == "getTaskMetrics":
		return "the same: counts over all tenants, without an id"
	case op.id == "putTaskDefinition":
		return "its own definition of that id"
	case strings.Contains(op.path, "{taskId}"), strings.Contains(op.path, "{leaseToken}"), strings.Contains(op.path, "{operationId}"), op.id == "getTaskDefinition":
		return "404"
	case op.id == "pauseTaskDefinition", op.id == "resumeTaskDefinition":
		return "its own definition of that id, or its own tasks of the platform's; else 404"
	case strings.Contains(op.path, "{queue}"):
		return "403: takes a token without a tenant"
	case op.id == "listPauses":
		return "its own, and those of queues and of the platform's definitions"
	}
	return "its own alone"
}
