package api_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// put says where a task shall go.
func (b *testBundle) put(t *testing.T, path string, body any, headers ...string) *reply {
	t.Helper()
	return b.ask(t, orchestrator, "PUT", path+"/status", body, headers...)
}

func TestUpdateTaskStatus(t *testing.T) {
	t.Parallel()
	b := setup(t)
	t.Run("through a life", func(t *testing.T) {
		t.Parallel()
		path, _ := b.create(t, noop())
		r := b.put(t, path, object{"status": "RUNNING"}, "If-Match", `"1"`)
		task := r.is(t, 200)
		require.Equal(t, "RUNNING", task["status"])
		require.EqualValues(t, 1, task["attempt"])
		require.NotNil(t, task["startedAt"])
		require.Equal(t, fmt.Sprintf(`"%v"`, task["version"]), r.header.Get("ETag"))

		task = b.put(t, path, object{"status": "COMPLETED", "output": object{"total": 1.25}, "reason": "done"}, "If-Match", r.header.Get("ETag")).is(t, 200)
		require.Equal(t, "COMPLETED", task["status"])
		require.Equal(t, object{"total": 1.25}, task["output"])
		require.NotNil(t, task["endedAt"])
		require.NotNil(t, task["executionTime"])
	})

	t.Run("a failure is kept", func(t *testing.T) {
		t.Parallel()
		path, _ := b.create(t, noop())
		b.put(t, path, object{"status": "RUNNING"}).is(t, 200)
		task := b.put(t, path, object{"status": "FAILED", "error": object{"code": "BROKEN", "message": "it broke", "details": object{"a": 1}, "retryable": true, "timestamp": "2026-01-01T00:00:00Z"}}).is(t, 200)
		require.Equal(t, "FAILED", task["status"])
		require.Equal(t, "BROKEN", task["error"].(object)["code"])
		require.Equal(t, object{"a": 1.0}, task["error"].(object)["details"])
		require.EqualValues(t, 0, task["retryCount"], "nothing was tried again")
	})

	t.Run("an illegal move says where it may go", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		path, _ := b.create(t, noop())
		b.unchanged(t, func() {
			p := b.put(t, path, object{"status": "COMPLETED"}).fails(t, 409, "CONFLICT")
			require.Equal(t, "PENDING", p["currentStatus"])
			require.ElementsMatch(t, []any{"RUNNING", "ASSIGNED", "CANCELLED", "TIMED_OUT", "FAILED"}, p["legal"])
			require.Equal(t, p["legal"], p["error"].(object)["details"].(object)["legal"])
		})
		b.put(t, path, object{"status": "CANCELLED"}).is(t, 200)
		b.unchanged(t, func() {
			p := b.put(t, path, object{"status": "RUNNING"}).fails(t, 409, "CONFLICT")
			require.Equal(t, "CANCELLED", p["currentStatus"])
			require.Equal(t, []any{}, p["legal"], "an end")
		})
	})

	t.Run("a version that has passed", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		path, _ := b.create(t, noop())
		b.put(t, path, object{"status": "RUNNING"}, "If-Match", `"1"`).is(t, 200)
		b.unchanged(t, func() {
			b.put(t, path, object{"status": "COMPLETED"}, "If-Match", `"1"`).fails(t, 412, "PRECONDITION_FAILED")
		})
		b.put(t, path, object{"status": "COMPLETED"}, "If-Match", "*").is(t, 200)
	})

	t.Run("what If-Match may not be", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		path, _ := b.create(t, noop())
		b.unchanged(t, func() {
			for _, tag := range []string{"1", `"1`, `W/1`, `"1" "2"`, `*, "1"`, strings.Repeat("1", 65), `"` + strings.Repeat("1", 1024) + `"`} {
				for _, ask := range []func() *reply{
					func() *reply { return b.put(t, path, object{"status": "RUNNING"}, "If-Match", tag) },
					func() *reply {
						return b.ask(t, orchestrator, "POST", path+"/cancel", nil, "If-Match", tag)
					},
					func() *reply {
						return b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "u"}, "If-Match", tag)
					},
				} {
					require.Equal(t, "header.If-Match", violations(ask().fails(t, 422, "VALIDATION_ERROR"))[0], tag)
				}
			}
		})
	})

	t.Run("what the body may not be", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		path, _ := b.create(t, noop())
		b.unchanged(t, func() {
			for at, body := range map[string]object{
				"body":               {},
				"body.status":        {"status": "DONE"},
				"body.output":        {"status": "FAILED", "output": object{}},
				"body.error":         {"status": "RUNNING", "error": object{"code": "A", "message": ""}},
				"body.error.code":    {"status": "FAILED", "error": object{"code": "a b", "message": ""}},
				"body.error.message": {"status": "FAILED", "error": object{"code": "A", "message": strings.Repeat("x", 2001)}},
				"body.error.cause":   {"status": "FAILED", "error": object{"code": "A", "message": "", "cause": 1}},
				"body.version":       {"status": "RUNNING", "version": 1},
			} {
				require.Contains(t, violations(b.put(t, path, body).fails(t, 422, "VALIDATION_ERROR")), at)
			}
		})
	})

	t.Run("the output must match the definition's schema", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.ask(t, orchestrator, "PUT", definitionsPath+"/with-output", definition()).is(t, 201)
		path, _ := b.create(t, object{"taskDefinitionId": "with-output", "workflowId": "w", "input": object{"orderId": "o", "taxRate": 1}})
		b.put(t, path, object{"status": "RUNNING"}).is(t, 200)
		b.unchanged(t, func() {
			p := b.put(t, path, object{"status": "COMPLETED", "output": object{"total": "much"}}).fails(t, 422, "VALIDATION_ERROR")
			require.Equal(t, []string{"body.output.total"}, violations(p))
		})
	})
}

func TestCancelTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, _ := b.create(t, noop())
	b.unchanged(t, func() {
		b.ask(t, orchestrator, "POST", path+"/cancel", object{"reason": "x", "more": 1}).fails(t, 422, "VALIDATION_ERROR")
		b.ask(t, orchestrator, "POST", path+"/cancel", nil, "If-Match", `"7"`).fails(t, 412, "PRECONDITION_FAILED")
	})
	r := b.ask(t, orchestrator, "POST", path+"/cancel", nil)
	task := r.is(t, 200)
	require.Equal(t, "CANCELLED", task["status"])
	require.Equal(t, `"2"`, r.header.Get("ETag"))
	b.unchanged(t, func() {
		again := b.ask(t, orchestrator, "POST", path+"/cancel", object{"reason": "to be sure"})
		require.Equal(t, task, again.is(t, 200), "again changes nothing")
	})

	path, _ = b.create(t, noop())
	b.ask(t, orchestrator, "PUT", path+"/status", object{"status": "RUNNING"}).is(t, 200)
	b.ask(t, orchestrator, "PUT", path+"/status", object{"status": "COMPLETED"}).is(t, 200)
	b.unchanged(t, func() {
		p := b.ask(t, orchestrator, "POST", path+"/cancel", object{}).fails(t, 409, "CONFLICT")
		require.Equal(t, "COMPLETED", p["currentStatus"])
	})
}

func TestReassignTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, _ := b.create(t, manual())
	b.unchanged(t, func() {
		for _, body := range []object{{}, {"assigneeId": "a", "groupId": "g"}, {"assigneeId": ""}, {"assigneeId": "a\nb"}, {"assigneeId": "a", "priority": 1}} {
			b.ask(t, ui, "POST", path+"/reassign", body).fails(t, 422, "VALIDATION_ERROR")
		}
	})
	r := b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane", "reason": "hers", "dueDate": "2031-01-01T00:00:00Z"}, "If-Match", `"1"`)
	task := r.is(t, 200)
	require.Equal(t, "ASSIGNED", task["status"])
	require.Equal(t, "jane", task["assignee"])
	require.Equal(t, "2031-01-01T00:00:00Z", task["dueDate"])
	require.NotNil(t, task["assignedAt"])
	b.unchanged(t, func() {
		b.ask(t, ui, "POST", path+"/reassign", object{"groupId": "all"}, "If-Match", `"1"`).fails(t, 412, "PRECONDITION_FAILED")
	})

	list := b.ask(t, ui, "GET", tasksPath+"/user/jane", nil).is(t, 200)
	require.Equal(t, []any{task}, list["items"])

	task = b.ask(t, ui, "POST", path+"/reassign", object{"groupId": "all"}).is(t, 200)
	require.Nil(t, task["assignee"])
	require.Equal(t, "all", task["groupId"])
	require.Empty(t, b.ask(t, ui, "GET", tasksPath+"/user/jane", nil).is(t, 200)["items"])

	path, _ = b.create(t, noop())
	b.unchanged(t, func() {
		b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane"}).fails(t, 409, "CONFLICT")
	})
}

func TestUnknownAndForeignTasks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, _ := b.create(t, manual()) // of no tenant
	a := b.askWith(t, b.tenant(t, orchestrator, "a"), "POST", tasksPath, manual()).is(t, 201)

	before := b.digest(t)
	for _, c := range []struct {
		path   string
		tenant string
	}{
		{tasksPath + "/0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", ""},
		{path, "a"},
		{tasksPath + "/" + a["taskId"].(string), ""},
		{tasksPath + "/" + a["taskId"].(string), "b"},
	} {
		b.askWith(t, b.tenant(t, orchestrator, c.tenant), "GET", c.path, nil).fails(t, 404, "NOT_FOUND")
		b.askWith(t, b.tenant(t, orchestrator, c.tenant), "PUT", c.path+"/status", object{"status": "FAILED"}).fails(t, 404, "NOT_FOUND")
		b.askWith(t, b.tenant(t, orchestrator, c.tenant), "POST", c.path+"/cancel", nil).fails(t, 404, "NOT_FOUND")
		b.askWith(t, b.tenant(t, ui, c.tenant), "POST", c.path+"/reassign", object{"assigneeId": "eve"}).fails(t, 404, "NOT_FOUND")
	}
	require.Len(t, b.askWith(t, b.tenant(t, orchestrator, "a"), "GET", tasksPath+"/workflow/wf-1", nil).is(t, 200)["items"], 1)
	require.Len(t, b.askWith(t, b.tenant(t, orchestrator, "b"), "GET", tasksPath+"/workflow/wf-1", nil).is(t, 200)["items"], 0)
	b.askWith(t, b.tenant(t, orchestrator, "a"), "GET", tasksPath+"/"+a["taskId"].(string), nil).is(t, 200)

	for _, id := range []string{"x", "0198f2a47d3e7c119a530a6c9b6f1a01", "{0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01}", "urn:uuid:0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", "..%2f..", "' OR 1=1 --"} {
		b.ask(t, orchestrator, "GET", tasksPath+"/"+url.PathEscape(id), nil).fails(t, 404, "NOT_FOUND")
		b.put(t, tasksPath+"/"+url.PathEscape(id), object{"status": "FAILED"}).fails(t, 404, "NOT_FOUND")
	}
	require.Equal(t, before, b.digest(t))
}

func TestListTasks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	empty := b.ask(t, orchestrator, "GET", tasksPath+"/workflow/none", nil)
	require.Equal(t, object{"items": []any{}, "nextCursor": nil}, empty.is(t, 200))

	var want []any
	for i := range 7 {
		_, task := b.create(t, noop(object{"workflowId": "seven", "stepId": fmt.Sprint(i)}))
		want = append(want, task["taskId"])
	}
	path, _ := b.create(t, manual(object{"workflowId": "seven"}))
	b.ask(t, orchestrator, "POST", path+"/cancel", nil).is(t, 200)
	ids := func(page object) (out []any) {
		for _, item := range page["items"].([]any) {
			out = append(out, item.(object)["taskId"])
		}
		return out
	}
	const seven = tasksPath + "/workflow/seven"

	t.Run("pages", func(t *testing.T) {
		t.Parallel()
		var got []any
		query := "?limit=3&type=AUTOMATED"
		for range 10 {
			page := b.ask(t, ui, "GET", seven+query, nil).is(t, 200)
			got = append(got, ids(page)...)
			if page["nextCursor"] == nil {
				break
			}
			query = "?limit=3&type=AUTOMATED&cursor=" + page["nextCursor"].(string)
		}
		require.Equal(t, want, got)
		full := b.ask(t, ui, "GET", seven+"?limit=8", nil).is(t, 200)
		require.Len(t, full["items"], 8)
		require.Nil(t, full["nextCursor"], "a page that is just full is the last")
	})

	t.Run("filters", func(t *testing.T) {
		t.Parallel()
		require.Len(t, ids(b.ask(t, ui, "GET", seven+"?status=CANCELLED", nil).is(t, 200)), 1)
		require.Len(t, ids(b.ask(t, ui, "GET", seven+"?status=PENDING&type=MANUAL", nil).is(t, 200)), 0)
		require.Len(t, ids(b.ask(t, ui, "GET", seven+"?status=PENDING", nil).is(t, 200)), 7)
	})

	t.Run("what a query may not be", func(t *testing.T) {
		t.Parallel()
		for query, at := range map[string]string{
			"limit=0": "query.limit", "limit=201": "query.limit", "limit=x": "query.limit", "status=DONE": "query.status", "type=": "",
			"type=x": "query.type", "sort=asc": "query.sort", "cursor=%00": "query.cursor", "cursor=a": "query.cursor", "Limit=1": "query.Limit",
		} {
			r := b.ask(t, ui, "GET", seven+"?"+query, nil)
			if at == "" {
				r.is(t, 200)
				continue
			}
			require.Equal(t, at, violations(r.fails(t, 422, "VALIDATION_ERROR"))[0], query)
		}
	})

	t.Run("a cursor is for its own list", func(t *testing.T) {
		t.Parallel()
		next := b.ask(t, ui, "GET", seven+"?limit=2", nil).is(t, 200)["nextCursor"].(string)
		for _, other := range []string{seven + "?limit=2&status=PENDING&cursor=", tasksPath + "/workflow/sevens?cursor=", tasksPath + "/user/seven?cursor="} {
			b.ask(t, ui, "GET", other+next, nil).fails(t, 422, "VALIDATION_ERROR")
		}
		b.askWith(t, b.tenant(t, ui, "other"), "GET", seven+"?cursor="+next, nil).fails(t, 422, "VALIDATION_ERROR")
		b.ask(t, ui, "GET", seven+"?limit=5&cursor="+next, nil).is(t, 200)
		for i := range next {
			swap := byte('A')
			if next[i] == 'A' {
				swap = 'B'
			}
			forged := next[:i] + string(swap) + next[i+1:]
			b.ask(t, ui, "GET", seven+"?limit=2&cursor="+forged, nil).fails(t, 422, "VALIDATION_ERROR")
		}
	})

	t.Run("hostile names are names", func(t *testing.T) {
		t.Parallel()
		for _, name := range []string{"'; DROP TABLE task; --", "' OR '1'='1", "%", "\\", "a/b", "ünïcode", "☃", strings.Repeat("x", 256)} {
			page := b.ask(t, ui, "GET", tasksPath+"/workflow/"+url.PathEscape(name), nil).is(t, 200)
			require.Empty(t, page["items"], name)
			b.create(t, noop(object{"workflowId": name}))
			page = b.ask(t, ui, "GET", tasksPath+"/workflow/"+url.PathEscape(name), nil).is(t, 200)
			require.Len(t, page["items"], 1, name)
		}
		b.ask(t, ui, "GET", tasksPath+"/user/"+strings.Repeat("x", 257), nil).fails(t, 422, "VALIDATION_ERROR")
		for _, name := range []string{"%00", "a%0ab", "%ff", "%c3%28"} {
			b.ask(t, ui, "GET", tasksPath+"/workflow/"+name, nil).fails(t, 400, "VALIDATION_ERROR")
		}
	})
}
