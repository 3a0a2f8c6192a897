package api_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

const batchPath = tasksPath + "/batch"

// batch sends items, each as text or as something to encode, and tells of each
// what a request of its own would be told: status, and task or problem.
func (b *testBundle) batch(t *testing.T, items ...any) []object {
	t.Helper()
	var out []object
	for _, result := range b.ask(t, orchestrator, "POST", batchPath, object{"tasks": items}).is(t, 200)["results"].([]any) {
		out = append(out, b.alone(t, result.(object)))
	}
	require.Len(t, out, len(items))
	return out
}

func (b *testBundle) alone(t *testing.T, result object) object {
	t.Helper()
	if failure, failed := result["error"].(object); failed {
		require.Len(t, result, 1)
		problem := object{"code": failure["code"], "detail": failure["message"]}
		if details, ok := failure["details"].(object); ok {
			problem["errors"] = details["errors"]
		}
		return object{"status": map[any]float64{"VALIDATION_ERROR": 422, "CONFLICT": 409}[failure["code"]], "problem": problem}
	}
	status := 201.0
	if result["replayed"] == true {
		status = 200
	}
	task := b.ask(t, ui, "GET", tasksPath+"/"+result["taskId"].(string), nil).is(t, 200)
	require.Equal(t, task["status"], result["status"])
	return object{"status": status, "task": task}
}

func statuses(items []object) (out []int) {
	for _, item := range items {
		out = append(out, int(item["status"].(float64)))
	}
	return out
}

func TestCreateTasks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rows := func(t *testing.T, workflow string) (n int) {
		t.Helper()
		require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT count(*) FROM task WHERE workflow_id = $1", workflow).Scan(&n))
		return n
	}

	t.Run("each stands for itself", func(t *testing.T) {
		t.Parallel()
		b.ask(t, orchestrator, "PUT", definitionsPath+"/order-total", definition()).is(t, 201)
		items := b.batch(t,
			noop(object{"workflowId": "mixed", "priority": "HIGH"}),
			"no object", nil, 1, []any{},
			noop(object{"workflowId": "mixed", "priority": "URGENT", "sercet": "SUPERSECRET"}),
			object{"taskDefinitionId": "order-total", "workflowId": "mixed", "input": object{"orderId": 1, "taxRate": 0.1, "items": []any{}}},
			object{"taskDefinitionId": "unheard-of", "workflowId": "mixed", "input": object{}},
			noop(object{"workflowId": "mixed", "requestId": "mixed-1"}),
			noop(object{"workflowId": "mixed", "dueDate": "tomorrow"}),
		)
		require.Equal(t, []int{201, 422, 422, 422, 422, 422, 422, 422, 201, 422}, statuses(items))
		for i, at := range map[int]string{1: "body", 2: "body", 3: "body", 4: "body", 5: "body.priority", 6: "body.input.orderId", 7: "body.taskDefinitionId", 9: "body.dueDate"} {
			p := items[i]["problem"].(object)
			require.Equal(t, "VALIDATION_ERROR", p["code"])
			require.NotEmpty(t, p["detail"])
			require.Contains(t, violations(p), at)
			require.NotContains(t, fmt.Sprint(p), "SUPERSECRET")
		}
		require.Contains(t, violations(items[5]["problem"].(object)), "body.sercet")
		task := items[0]["task"].(object)
		require.Equal(t, "HIGH", task["priority"])
		require.Equal(t, task, b.ask(t, ui, "GET", tasksPath+"/"+task["taskId"].(string), nil).is(t, 200))
		require.Equal(t, "mixed-1", items[8]["task"].(object)["requestId"])
		require.Equal(t, 2, rows(t, "mixed"))
	})

	t.Run("it is told as it would be alone", func(t *testing.T) {
		t.Parallel()
		for name, item := range map[string]object{
			"bad":         noop(object{"workflowId": "", "executionConfig": object{"executor": "noop", "tiemout": 1}}),
			"null inside": noop(object{"priority": nil, "input": object{"a": nil}}),
			"null input":  merge(noop(), object{"taskDefinitionId": "b", "input": []any{}}),
			"no executor": noop(object{"executionConfig": object{"executor": "expression"}}),
		} {
			alone := b.ask(t, orchestrator, "POST", tasksPath, item)
			among := b.batch(t, item)[0]
			require.EqualValues(t, alone.status, among["status"], name)
			if alone.status >= 400 {
				p := alone.object(t)
				want := object{"code": p["code"], "detail": p["detail"], "errors": p["errors"]}
				require.Equal(t, want, among["problem"], name)
			}
		}
		config := func(path string) (text string) {
			require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT config::text FROM task WHERE task_id = $1", taskID(t, path)).Scan(&text))
			return text
		}
		for _, change := range []object{
			{"executionConfig": object{"executor": "http", "http": object{"url": "http://localhost/"}}},
			{"taskType": "INTEGRATION", "executionConfig": object{"executor": "integration", "integration": object{"instance": "books", "method": "create_invoice"}}},
		} {
			path, _ := b.create(t, noop(change))
			item := b.batch(t, noop(change))[0]
			require.EqualValues(t, 201, item["status"], "%v", item)
			require.JSONEq(t, config(path), config(tasksPath+"/"+item["task"].(object)["taskId"].(string)), "with the same defaults")
		}
	})

	t.Run("a batch may be sent again", func(t *testing.T) {
		t.Parallel()
		one, other := noop(object{"workflowId": "again", "requestId": "again-1"}), noop(object{"workflowId": "again", "requestId": "again-2"})
		first := b.batch(t, one, other)
		require.Equal(t, []int{201, 201}, statuses(first))
		changed := noop(object{"workflowId": "again", "requestId": "again-2", "priority": "LOW"})
		second := b.batch(t, other, one, changed, noop(object{"workflowId": "again", "requestId": "again-3"}))
		require.Equal(t, []int{200, 200, 409, 201}, statuses(second))
		require.Equal(t, first[1]["task"], second[0]["task"])
		require.Equal(t, first[0]["task"], second[1]["task"])
		require.Equal(t, "CONFLICT", second[2]["problem"].(object)["code"])

		// The key and the body are those of a request of its own.
		alone := b.ask(t, orchestrator, "POST", tasksPath, one)
		require.Equal(t, first[0]["task"], any(alone.is(t, 200)))
		mine := b.ask(t, orchestrator, "POST", tasksPath, noop(object{"workflowId": "again", "requestId": "again-4"})).is(t, 201)
		require.Equal(t, mine["taskId"], b.batch(t, noop(object{"workflowId": "again", "requestId": "again-4"}))[0]["task"].(object)["taskId"])
		require.Equal(t, 4, rows(t, "again"))
	})

	t.Run("one key twice in a batch", func(t *testing.T) {
		t.Parallel()
		twin := noop(object{"workflowId": "twins", "requestId": "twin"})
		items := b.batch(t, twin, twin, noop(object{"workflowId": "twins", "requestId": "twin", "reference": "other"}))
		require.Equal(t, []int{201, 200, 409}, statuses(items))
		require.Equal(t, items[0]["task"], items[1]["task"])
		require.Equal(t, 1, rows(t, "twins"))
	})

	t.Run("a key is its tenant's", func(t *testing.T) {
		t.Parallel()
		body := object{"tasks": []any{noop(object{"requestId": "tenant", "workflowId": "tenants"})}}
		for _, tenant := range []string{"", "a", "b"} {
			r := b.askWith(t, b.tenant(t, orchestrator, tenant), "POST", batchPath, body).is(t, 200)
			require.NotContains(t, r["results"].([]any)[0], "replayed")
		}
		require.Equal(t, 3, rows(t, "tenants"))
	})

	t.Run("the same batch at once makes it once", func(t *testing.T) {
		t.Parallel()
		var items []any
		for i := range 20 {
			items = append(items, noop(object{"workflowId": "race", "requestId": fmt.Sprintf("race-%d", i)}))
		}
		var all sync.WaitGroup
		var mu sync.Mutex
		made := 0
		for range 8 {
			all.Go(func() {
				r := b.ask(t, orchestrator, "POST", batchPath, object{"tasks": items})
				if r.status != 200 {
					t.Errorf("%d %s", r.status, r.body)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				for _, item := range r.object(t)["results"].([]any) {
					if item.(object)["taskId"] == nil {
						t.Errorf("%v", item)
					}
					if item.(object)["replayed"] == nil {
						made++
					}
				}
			})
		}
		all.Wait()
		require.Equal(t, 20, made)
		require.Equal(t, 20, rows(t, "race"))
	})

	t.Run("as many as there may be", func(t *testing.T) {
		t.Parallel()
		one := `{"taskDefinitionId":"x","workflowId":"many","taskType":"AUTOMATED","executionConfig":{"executor":"noop"},"input":{"a":"` + strings.Repeat("x", 2000) + `"}}`
		body := func(n int) string { return `{"tasks":[` + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + `]}` }
		r := b.ask(t, orchestrator, "POST", batchPath, body(1000)).is(t, 200)
		require.Len(t, r["results"], 1000)
		require.Equal(t, 1000, rows(t, "many"))
		require.Equal(t, []string{"body.tasks"}, violations(b.ask(t, orchestrator, "POST", batchPath, body(1001)).fails(t, 422, "VALIDATION_ERROR")))
		require.Equal(t, 1000, rows(t, "many"))
		large := `{"tasks":[` + strings.Replace(one, strings.Repeat("x", 2000), strings.Repeat("y", 8<<20-400), 1) + `]}`
		r = b.ask(t, orchestrator, "POST", batchPath, large).is(t, 200)
		require.Equal(t, "PENDING", r["results"].([]any)[0].(object)["status"])
		b.ask(t, orchestrator, "POST", batchPath, large+strings.Repeat(" ", 400)).fails(t, 413, "PAYLOAD_TOO_LARGE")
		b.ask(t, orchestrator, "POST", batchPath, io.MultiReader(strings.NewReader(large), io.LimitReader(letters{}, 1<<20))).fails(t, 413, "PAYLOAD_TOO_LARGE")
	})

	t.Run("what is no batch", func(t *testing.T) {
		t.Parallel()
		for body, at := range map[string]string{
			`{}`: "body", `null`: "body", `[]`: "body", `"SUPERSECRET"`: "body", `{"tasks":null}`: "body.tasks", `{"tasks":{}}`: "body.tasks",
			`{"tasks":"SUPERSECRET"}`: "body.tasks", `{"tasks":[]}`: "body.tasks", `{"tasks":[{}],"more":1}`: "body.more", `{"Tasks":[{}]}`: "body",
			`{"tasks":[{}],"` + strings.Repeat("more", 1000) + `":[[[1]]]}`: "",
		} {
			r := b.ask(t, orchestrator, "POST", batchPath, body)
			p := r.fails(t, 422, "VALIDATION_ERROR")
			if at != "" {
				require.Contains(t, violations(p), at, body)
			}
			require.NotContains(t, string(r.body), "SUPERSECRET")
		}
		for _, body := range []string{"[", `{"tasks":[{"a":1,"a":2}]}`, `{"tasks":[{"a":"\u0000"}]}`, `{"tasks":[` + strings.Repeat("[", 100_000)} {
			b.ask(t, orchestrator, "POST", batchPath, body).fails(t, 400, "VALIDATION_ERROR")
		}
		b.ask(t, orchestrator, "POST", batchPath, nil).fails(t, 400, "VALIDATION_ERROR")
		b.ask(t, orchestrator, "POST", batchPath, `{"tasks":[{}]}`, "Content-Type", "text/plain").fails(t, 415, "UNSUPPORTED_MEDIA_TYPE")
	})
}
