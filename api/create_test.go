package api_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

func TestCreateTask(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("everything that may be said is kept", func(t *testing.T) {
		t.Parallel()
		r := b.ask(t, orchestrator, "POST", tasksPath, noop(object{
			"stepId": "step-1", "priority": "HIGH", "reference": "ref", "workflowContext": object{"a": 1.5}, "correlationId": "c-1",
			"dueDate": "2030-01-02T03:04:05+01:00", "callbackUrl": "https://example.com/back", "requestId": "request 1",
			"executionConfig": object{"executor": "noop", "timeout": 1000, "visibilityTimeout": 5000, "securityContext": object{"userId": "canary-user", "tenantId": "t", "roles": []string{"r"}, "permissions": []string{"p:q"}, "securityLevel": "HIGH", "runAs": "robot"}, "retryPolicy": object{"maxRetries": 2, "retryInterval": 10}},
		}))
		task := r.is(t, 201)
		path := tasksPath + "/" + task["taskId"].(string)
		require.Equal(t, path, r.header.Get("Location"))
		require.Equal(t, `"1"`, r.header.Get("ETag"))
		require.Equal(t, "application/json", r.header.Get("Content-Type"))
		require.Empty(t, r.header.Get("Idempotency-Replayed"))

		want := object{
			"workflowId": "wf-1", "stepId": "step-1", "taskDefinitionId": "nothing", "taskType": "AUTOMATED", "status": "PENDING", "priority": "HIGH",
			"input": object{"n": 1.0}, "workflowContext": object{"a": 1.5}, "correlationId": "c-1", "reference": "ref", "dueDate": "2030-01-02T02:04:05Z",
			"callbackUrl": "https://example.com/back", "requestId": "request 1", "executor": "noop", "lane": "task-execution-automated",
			"retryCount": 0.0, "attempt": 0.0, "version": 1.0,
		}
		for name, value := range want {
			require.Equal(t, value, task[name], name)
		}
		got := b.ask(t, ui, "GET", path, nil)
		require.Equal(t, task, got.is(t, 200), "reading answers what creating answered")
		require.Equal(t, `"1"`, got.header.Get("ETag"))
		require.NotContains(t, string(got.body), "canary-user", "securityContext is not shown")
		require.NotContains(t, string(got.body), "$schema")
		require.Equal(t, "no-store", got.header.Get("Cache-Control"))
		require.Equal(t, "nosniff", got.header.Get("X-Content-Type-Options"))
	})

	t.Run("what may be left out has its default", func(t *testing.T) {
		t.Parallel()
		_, task := b.create(t, noop(object{"stepId": nil}))
		require.Equal(t, "MEDIUM", task["priority"])
		require.Len(t, task["correlationId"], 36)
		for _, name := range []string{"stepId", "output", "error", "assignee", "nextRetryTime", "startedAt", "endedAt", "executionTime"} {
			value, there := task[name]
			require.True(t, there && value == nil, "%s is there, and null", name)
		}
		for _, name := range []string{"dueDate", "reference", "callbackUrl", "requestId", "workflowContext", "groupId", "definitionRevision"} {
			require.NotContains(t, task, name)
		}
	})

	t.Run("numbers are kept to the last digit", func(t *testing.T) {
		t.Parallel()
		const input = `{"big": 12345678901234567890123, "price": 10.10, "tiny": 1e-7}`
		r := b.ask(t, orchestrator, "POST", tasksPath, `{"taskDefinitionId":"x","workflowId":"w","taskType":"AUTOMATED","executionConfig":{"executor":"noop"},"input":`+input+`,"workflowContext":null}`)
		path := r.header.Get("Location")
		r.is(t, 201)
		require.Contains(t, string(r.body), "12345678901234567890123")
		got := b.ask(t, orchestrator, "GET", path, nil)
		got.is(t, 200)
		require.Contains(t, string(got.body), "12345678901234567890123")
		require.Contains(t, string(got.body), "10.10")
		require.NotContains(t, got.object(t), "workflowContext")
	})

	t.Run("what is wrong is said place by place", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		long := strings.Repeat("x", 3000)
		secure := func(context object) object {
			return noop(object{"executionConfig": object{"executor": "noop", "securityContext": context}})
		}
		bad := map[string]struct {
			body object
			at   string
		}{
			"unknown member":            {noop(object{"sercet": 1}), "body.sercet"},
			"member in another case":    {noop(object{"Priority": "LOW"}), "body.Priority"},
			"unknown in config":         {noop(object{"executionConfig": object{"executor": "noop", "tiemout": 1}}), "body.executionConfig.tiemout"},
			"unknown in policy":         {noop(object{"executionConfig": object{"executor": "noop", "retryPolicy": object{"retries": 1}}}), "body.executionConfig.retryPolicy.retries"},
			"no workflow":               {noop(object{"workflowId": nil}), "body"},
			"empty workflow":            {noop(object{"workflowId": ""}), "body.workflowId"},
			"long workflow":             {noop(object{"workflowId": long}), "body.workflowId"},
			"control in workflow":       {noop(object{"workflowId": "a\nb"}), "body.workflowId"},
			"no input":                  {noop(object{"input": nil}), "body"},
			"input is a list":           {noop(object{"input": []int{1}}), "body.input"},
			"type that is none":         {noop(object{"taskType": "automated"}), "body.taskType"},
			"priority that is none":     {noop(object{"priority": "URGENT"}), "body.priority"},
			"timeout of zero":           {noop(object{"executionConfig": object{"executor": "noop", "timeout": 0}}), "body.executionConfig.timeout"},
			"timeout beyond a month":    {noop(object{"executionConfig": object{"executor": "noop", "timeout": 2_592_000_001}}), "body.executionConfig.timeout"},
			"timeout of a half":         {noop(object{"executionConfig": object{"executor": "noop", "timeout": 1.5}}), "body.executionConfig.timeout"},
			"short visibility":          {noop(object{"executionConfig": object{"executor": "noop", "visibilityTimeout": 999}}), "body.executionConfig.visibilityTimeout"},
			"executor that is none":     {noop(object{"executionConfig": object{"executor": "shell"}}), "body.executionConfig.executor"},
			"executor of another type":  {noop(object{"executionConfig": object{"executor": "manual"}}), "body.executionConfig.executor"},
			"expression without one":    {noop(object{"executionConfig": object{"executor": "expression"}}), "body.executionConfig.expression"},
			"unknown in security":       {secure(object{"zork": 1}), "body.executionConfig.securityContext.zork"},
			"tenant in another case":    {secure(object{"tenantid": "acme"}), "body.executionConfig.securityContext.tenantid"},
			"tenant that is a number":   {secure(object{"tenantId": 42}), "body.executionConfig.securityContext.tenantId"},
			"level that is none":        {secure(object{"securityLevel": "ZORK"}), "body.executionConfig.securityContext.securityLevel"},
			"user that is a number":     {secure(object{"userId": 5}), "body.executionConfig.securityContext.userId"},
			"long user":                 {secure(object{"userId": long}), "body.executionConfig.securityContext.userId"},
			"control in a user":         {secure(object{"runAs": "a\nb"}), "body.executionConfig.securityContext.runAs"},
			"roles that are no list":    {secure(object{"roles": "x"}), "body.executionConfig.securityContext.roles"},
			"long role":                 {secure(object{"roles": []string{"a", long}}), "body.executionConfig.securityContext.roles[1]"},
			"many permissions":          {secure(object{"permissions": strings.Split(long[:300], "")}), "body.executionConfig.securityContext.permissions"},
			"too many retries":          {noop(object{"executionConfig": object{"executor": "noop", "retryPolicy": object{"maxRetries": 101}}}), "body.executionConfig.retryPolicy.maxRetries"},
			"correlation with a space":  {noop(object{"correlationId": "a b"}), "body.correlationId"},
			"long correlation":          {noop(object{"correlationId": long[:129]}), "body.correlationId"},
			"callback to a file":        {noop(object{"callbackUrl": "file:///etc/passwd"}), "body.callbackUrl"},
			"callback with a line end":  {noop(object{"callbackUrl": "http://a/\r\nX: y"}), "body.callbackUrl"},
			"due some day":              {noop(object{"dueDate": "tomorrow"}), "body.dueDate"},
			"definition with a slash":   {noop(object{"taskDefinitionId": "../x"}), "body.taskDefinitionId"},
			"neither definition nor it": {object{"taskDefinitionId": "unheard-of", "workflowId": "w", "input": object{}}, "body.taskDefinitionId"},
		}
		b.unchanged(t, func() {
			p := b.ask(t, orchestrator, "POST", tasksPath, noop(object{"stepId": "", "executionConfig": object{"executor": "noop", "timeout": 2_592_000_001, "visibilityTimeout": 99_000_000}})).fails(t, 422, "VALIDATION_ERROR")
			require.ElementsMatch(t, []string{"body.stepId", "body.executionConfig.timeout", "body.executionConfig.visibilityTimeout"}, violations(p), "one mistake, one flaw")
			require.Contains(t, fmt.Sprint(p["errors"]), "expected number <= 2592000000")
			require.Contains(t, fmt.Sprint(p["errors"]), "expected number <= 43200000")
			for name, c := range bad {
				p := b.ask(t, orchestrator, "POST", tasksPath, c.body).fails(t, 422, "VALIDATION_ERROR")
				require.Contains(t, violations(p), c.at, name)
				require.Equal(t, p["errors"], p["error"].(map[string]any)["details"].(map[string]any)["errors"])
				require.NotContains(t, fmt.Sprint(p), long[:400], name)
			}
		})
	})

	t.Run("the input must match the definition's schema", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.ask(t, orchestrator, "PUT", definitionsPath+"/order-total", definition()).is(t, 201)
		body := object{"taskDefinitionId": "order-total", "workflowId": "w", "input": object{"taxRate": "8 %", "items": []any{object{"price": 1}, object{"price": "SECRET"}}}}
		b.unchanged(t, func() {
			r := b.ask(t, orchestrator, "POST", tasksPath, body)
			p := r.fails(t, 422, "VALIDATION_ERROR")
			require.Equal(t, []string{"body.input.items[1].price", "body.input.orderId", "body.input.taxRate"}, violations(p))
			require.NotContains(t, string(r.body), "SECRET")
		})

		body["input"] = object{"orderId": "o", "taxRate": 0.1, "items": []any{}}
		_, task := b.create(t, body)
		require.EqualValues(t, 1, task["definitionRevision"])
		require.Equal(t, "AUTOMATED", task["taskType"])
		require.Equal(t, "noop", task["executor"])

		b.unchanged(t, func() {
			body["taskType"] = "MANUAL"
			require.Contains(t, violations(b.ask(t, orchestrator, "POST", tasksPath, body).fails(t, 422, "VALIDATION_ERROR")), "body.taskType")
			delete(body, "taskType")
			body["executionConfig"] = object{"handler": "mine"}
			require.Contains(t, violations(b.ask(t, orchestrator, "POST", tasksPath, body).fails(t, 422, "VALIDATION_ERROR")), "body.executionConfig")
		})
	})
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("fifty at once make one task", func(t *testing.T) {
		t.Parallel()
		var wg sync.WaitGroup
		var made, replayed int
		var mu sync.Mutex
		ids := map[any]bool{}
		for range 50 {
			wg.Go(func() {
				r := b.ask(t, orchestrator, "POST", tasksPath, noop(object{"workflowId": "fifty"}), "Idempotency-Key", "fifty")
				mu.Lock()
				defer mu.Unlock()
				switch {
				case r.status == 201 && r.header.Get("Idempotency-Replayed") == "":
					made++
				case r.status == 200 && r.header.Get("Idempotency-Replayed") == "true":
					replayed++
				default:
					t.Errorf("%d %s", r.status, r.body)
					return
				}
				ids[r.object(t)["taskId"]] = true
			})
		}
		wg.Wait()
		require.Equal(t, 1, made)
		require.Equal(t, 49, replayed)
		require.Len(t, ids, 1)
		list := b.ask(t, orchestrator, "GET", tasksPath+"/workflow/fifty", nil).is(t, 200)
		require.Len(t, list["items"], 1)
	})

	t.Run("the same body may look different", func(t *testing.T) {
		t.Parallel()
		const one = `{"taskDefinitionId":"x","workflowId":"w","taskType":"AUTOMATED","executionConfig":{"executor":"noop"},"input":{"a":1}}`
		const other = ` {"workflowId": "w", "taskDefinitionId": "\u0078", "input": {"a": 1.0}, "taskType": "AUTOMATED", "executionConfig": {"executor": "noop"}} `
		first := b.ask(t, orchestrator, "POST", tasksPath, one, "Idempotency-Key", "same").is(t, 201)
		again := b.ask(t, orchestrator, "POST", tasksPath, other, "Idempotency-Key", "same")
		require.Equal(t, first["taskId"], again.is(t, 200)["taskId"])
		require.Equal(t, tasksPath+"/"+first["taskId"].(string), again.header.Get("Location"))
	})

	t.Run("another body is a conflict", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.ask(t, orchestrator, "POST", tasksPath, noop(), "Idempotency-Key", "used").is(t, 201)
		b.unchanged(t, func() {
			b.ask(t, orchestrator, "POST", tasksPath, noop(object{"workflowId": "other"}), "Idempotency-Key", "used").fails(t, 409, "CONFLICT")
			b.ask(t, orchestrator, "POST", tasksPath, noop(), "Idempotency-Key", "used").is(t, 200)
		})
	})

	t.Run("the header and requestId are one key", func(t *testing.T) {
		t.Parallel()
		task := b.ask(t, orchestrator, "POST", tasksPath, noop(object{"requestId": "both"}), "Idempotency-Key", "both").is(t, 201)
		again := b.ask(t, orchestrator, "POST", tasksPath, noop(object{"requestId": "both"})).is(t, 200)
		require.Equal(t, task["taskId"], again["taskId"])
	})

	t.Run("a key is its tenant's", func(t *testing.T) {
		t.Parallel()
		one := b.askWith(t, b.tenant(t, orchestrator, "a"), "POST", tasksPath, noop(), "Idempotency-Key", "shared").is(t, 201)
		other := b.askWith(t, b.tenant(t, orchestrator, "b"), "POST", tasksPath, noop(object{"workflowId": "x"}), "Idempotency-Key", "shared").is(t, 201)
		require.NotEqual(t, one["taskId"], other["taskId"])
	})

	t.Run("a key is short and printable", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.unchanged(t, func() {
			for _, key := range []string{strings.Repeat("k", 256), "a\tb", "schlüssel"} {
				p := b.ask(t, orchestrator, "POST", tasksPath, noop(), "Idempotency-Key", key).fails(t, 422, "VALIDATION_ERROR")
				require.Equal(t, []string{"header.Idempotency-Key"}, violations(p)[:1])
			}
		})
		b.ask(t, orchestrator, "POST", tasksPath, noop(), "Idempotency-Key", strings.Repeat("k", 255)).is(t, 201)
	})
}

// tenant is a good token of a tenant.
func (b *testBundle) tenant(t *testing.T, service, tenant string) string {
	t.Helper()
	token, err := b.auth.Mint(peertest.TokenOptions{Service: service, Tenant: tenant})
	require.NoError(t, err)
	return token
}

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
