package api_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
)

// inContext is a request whose security context names a tenant.
func inContext(tenant string) object {
	return object{"executionConfig": object{"executor": "worker", "securityContext": object{"tenantId": tenant, "roles": []any{"admin"}}}}
}

const tenantPlace = "body.executionConfig.securityContext.tenantId"

// TestSecurityContextIsOfTheCallersTenant: nobody asks for work, or says what work is, in
// the name of another tenant.
func TestSecurityContextIsOfTheCallersTenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	mallory := b.tenant(t, orchestrator, "mallory")
	define := definition(inContext("acme"))

	b.unchanged(t, func() {
		for _, tenant := range []string{"acme", "Mallory", "mallory "} {
			p := b.askWith(t, mallory, "POST", tasksPath, noop(inContext(tenant))).fails(t, 422, "VALIDATION_ERROR")
			require.Equal(t, []string{tenantPlace}, violations(p), tenant)
		}
		p := b.askWith(t, mallory, "PUT", definitionsPath+"/render", define).fails(t, 422, "VALIDATION_ERROR")
		require.Equal(t, []string{tenantPlace}, violations(p))
	})

	results := b.askWith(t, mallory, "POST", tasksPath+"/batch", object{"tasks": []any{
		noop(inContext("mallory")), noop(inContext("acme")), noop(), noop(inContext("")),
	}}).is(t, 200)["results"].([]any)
	for i, fine := range []bool{true, false, true, true} {
		result := results[i].(object)
		require.Equal(t, fine, result["taskId"] != nil, "%d: %v", i, result)
		if !fine {
			refused := result["error"].(object)
			require.Equal(t, "VALIDATION_ERROR", refused["code"])
			require.Equal(t, tenantPlace, refused["details"].(object)["errors"].([]any)[0].(object)["location"])
		}
	}

	// The tenant's own, and a token without a tenant, which may name one.
	b.askWith(t, mallory, "POST", tasksPath, noop(inContext("mallory"))).is(t, 201)
	_, task := b.create(t, noop(inContext("acme")))
	var tenant string
	require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT tenant_id FROM task WHERE task_id = $1", task["taskId"]).Scan(&tenant))
	require.Empty(t, tenant, "it is the caller's all the same")
	b.ask(t, orchestrator, "PUT", definitionsPath+"/render", define).is(t, 201)
}

// TestLeasesNameTheTasksTenant: what reaches a worker names the task's own tenant, also
// where the request said nothing of one, and where another's was stored before it was
// held against the token.
func TestLeasesNameTheTasksTenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, stored := range map[string]*jobs.SecurityContext{
		"none":      nil,
		"of nobody": {UserID: "u", Roles: []string{"admin"}},
		"its own":   {UserID: "u", TenantID: "acme", Roles: []string{"admin"}},
		"another's": {UserID: "u", TenantID: "mallory", Roles: []string{"admin"}},
	} {
		config := &jobs.RequestConfig{ExecutionConfig: jobs.ExecutionConfig{Executor: "worker", SecurityContext: stored}}
		_, _, err := b.tasks.Create(t.Context(), jobs.Request{
			TaskDefinitionID: "render", WorkflowID: "w", TaskType: jobs.Automated, Config: config, Tenant: "acme", Actor: orchestrator,
		})
		require.NoError(t, err)
		w := b.worker(t)
		w.token = b.tenant(t, "task-worker", "acme")
		leases := w.call("", object{"workerId": "w-7", "maxTasks": 1, "waitMs": 20000}).is(t, 200)["leases"].([]any)
		require.Len(t, leases, 1, name)
		security := leases[0].(object)["message"].(object)["executionConfig"].(object)["securityContext"].(object)
		want := object{"tenantId": "acme"}
		if stored != nil {
			want = object{"tenantId": "acme", "userId": "u", "roles": []any{"admin"}}
		}
		require.Equal(t, want, security, name)
		w.call("/"+leases[0].(object)["leaseToken"].(string)+"/complete", object{}).is(t, 200)
	}
}
