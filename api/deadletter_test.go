package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
)

const lettersPath = "/api/internal/dead-letters"

// obeying lets a process work that does what a task's input says: fail, or not.
func (b *testBundle) obeying(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	runner := jobs.NewRunner(b.tasks, jobs.RunnerConfig{Tick: 20 * time.Millisecond, Executors: map[string]jobs.Registration{
		"noop": {Executor: jobs.ExecutorFunc(func(_ context.Context, job jobs.Job) (jobs.Result, error) {
			var in struct{ Code, Fail string }
			if err := json.Unmarshal(job.Input, &in); err != nil {
				return jobs.Result{}, err
			}
			if in.Fail == "" {
				return jobs.Result{}, nil
			}
			return jobs.Result{}, &jobs.Failure{Code: in.Code, Message: in.Fail, Retryable: new(bool)}
		})},
	}})
	go func() { ended <- runner.Run(ctx, 0) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// dead makes a dead letter, and answers its id.
func (b *testBundle) dead(t *testing.T, code, message string, change ...object) string {
	t.Helper()
	path, _ := b.create(t, noop(append([]object{{"input": object{"code": code, "fail": message}}}, change...)...))
	b.stands(t, path, "FAILED")
	return strings.TrimPrefix(path, tasksPath+"/")
}

func (b *testBundle) stands(t *testing.T, path, status string) (task object) {
	t.Helper()
	eventually(t, func() bool {
		task = b.ask(t, ui, "GET", path, nil).is(t, 200)
		return task["status"] == status
	})
	return task
}

func (b *testBundle) desk(t *testing.T, method, path string, body any) *reply {
	t.Helper()
	return b.ask(t, errorHandler, method, lettersPath+path, body)
}

func TestListDeadLetters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.obeying(t)
	require.Equal(t, object{"items": []any{}, "complete": true, "nextCursor": nil}, b.desk(t, "GET", "", nil).is(t, 200))
	require.Equal(t, object{"groups": []any{}, "complete": true, "nextCursor": nil}, b.desk(t, "GET", "?groupBy=fingerprint", nil).is(t, 200))
	var ids []any
	for i := range 4 {
		ids = append(ids, b.dead(t, "NO_STOCK", fmt.Sprintf("item %d of order 0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a0%d is gone", i, i)))
	}
	other := b.dead(t, "NO_STOCK", "something else", object{"taskDefinitionId": "other"})
	coded := b.dead(t, "NO_MONEY", "item 1", object{"priority": "CRITICAL"})
	b.create(t, noop()) // it fails nobody

	page := b.desk(t, "GET", "?groupBy=fingerprint&limit=1", nil).is(t, 200)
	group := page["groups"].([]any)[0].(object)
	require.Equal(t, "item <n> of order <uuid> is gone", group["message"])
	require.Equal(t, "NO_STOCK", group["errorCode"])
	require.Equal(t, "nothing", group["taskDefinitionId"])
	require.EqualValues(t, 4, group["count"])
	require.Equal(t, []any{ids[3], ids[2], ids[1]}, group["samples"])
	require.Less(t, group["firstAt"], group["lastAt"])
	next := page["nextCursor"].(string)
	rest := b.desk(t, "GET", "?groupBy=fingerprint&cursor="+next, nil).is(t, 200)
	require.Len(t, rest["groups"], 2)
	require.Nil(t, rest["nextCursor"])
	b.desk(t, "GET", "?cursor="+next, nil).fails(t, 422, "VALIDATION_ERROR")
	b.desk(t, "GET", "?groupBy=fingerprint&errorCode=X&cursor="+next, nil).fails(t, 422, "VALIDATION_ERROR")
	b.desk(t, "GET", "?groupBy=fingerprint&fingerprint=x", nil).fails(t, 422, "VALIDATION_ERROR")

	list := func(query string) (found []any) {
		for _, item := range b.desk(t, "GET", query, nil).is(t, 200)["items"].([]any) {
			found = append(found, item.(object)["taskId"])
		}
		return found
	}
	all := append(append([]any{coded}, ids...), other)
	require.Equal(t, all, list(""), "the most urgent first, then the oldest")
	require.Equal(t, ids, list("?fingerprint="+group["fingerprint"].(string)))
	require.Equal(t, []any{coded}, list("?errorCode=NO_MONEY"))
	require.Equal(t, []any{other}, list("?taskDefinitionId=other"))
	require.Equal(t, all, list("?queue=task-execution-automated&since=2026-01-01T00:00:00Z"))
	require.Empty(t, list("?queue=task-execution-manual"))
	require.Empty(t, list("?since=2999-01-01T00:00:00Z"))
	b.desk(t, "GET", "?queue=task-execution-retry", nil).fails(t, 422, "VALIDATION_ERROR")
	var paged []any
	for query := "?limit=2"; ; {
		page := b.desk(t, "GET", query, nil).is(t, 200)
		for _, item := range page["items"].([]any) {
			paged = append(paged, item.(object)["taskId"])
		}
		if page["nextCursor"] == nil {
			break
		}
		query = "?limit=2&cursor=" + page["nextCursor"].(string)
	}
	require.Equal(t, all, paged)
	item := b.desk(t, "GET", "", nil).is(t, 200)["items"].([]any)[0].(object)
	require.Equal(t, []any{"task-execution-automated", "item 1", "wf-1", 1.0}, []any{item["lane"], item["errorMessage"], item["workflowId"], item["attempt"]})
	require.Empty(t, b.askWith(t, b.tenant(t, errorHandler, "a"), "GET", lettersPath, nil).is(t, 200)["items"])

	// The same in psql.
	var n int
	require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT count(*) FROM report.dead_letter WHERE fingerprint = $1", group["fingerprint"]).Scan(&n))
	require.Equal(t, 4, n)
}

func TestRedriveDeadLetters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.obeying(t)
	one, two := b.dead(t, "NO_STOCK", "item 1"), b.dead(t, "NO_STOCK", "item 2")
	unknown := "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01"
	body := object{
		"taskIds": []any{one, unknown}, "dryRun": true, "reason": "fixed",
		"inputPatch": []any{object{"op": "add", "path": "/kept", "value": nil}, object{"op": "replace", "path": "/fail", "value": ""}},
	}
	want := object{"operationId": nil, "matched": 1.0, "complete": true, "rejected": []any{object{"taskId": unknown, "code": "NOT_FOUND"}}}
	require.Equal(t, want, b.desk(t, "POST", "/redrive", body).is(t, 202))
	require.Equal(t, "FAILED", b.ask(t, ui, "GET", tasksPath+"/"+one, nil).is(t, 200)["status"])

	delete(body, "dryRun")
	answer := b.desk(t, "POST", "/redrive", body).is(t, 202)
	task := b.stands(t, tasksPath+"/"+one, "COMPLETED")
	require.Equal(t, object{"code": "NO_STOCK", "fail": "", "kept": nil}, task["input"])
	require.EqualValues(t, 2, task["attempt"])
	at := "/operations/" + answer["operationId"].(string)
	var op object
	eventually(t, func() bool {
		op = b.desk(t, "GET", at, nil).is(t, 200)
		return op["state"] == "DONE"
	})
	require.Equal(t, object{"matched": 1.0, "waiting": 0.0, "redriven": 1.0, "completed": 1.0, "failed": 0.0, "cancelled": 0.0, "rejected": 0.0, "undone": 0.0}, op["counts"])
	require.Equal(t, []any{errorHandler, "fixed", 20.0}, []any{op["actor"], op["reason"], op["ratePerSecond"]})
	require.Len(t, op["inputPatch"], 2)

	canary := object{"count": 1.0, "maxFailureRatio": 0.0}
	answer = b.desk(t, "POST", "/redrive", object{"filter": object{"errorCode": "NO_STOCK"}, "canary": canary, "reason": "try"}).is(t, 202)
	at = "/operations/" + answer["operationId"].(string)
	eventually(t, func() bool {
		op = b.desk(t, "GET", at, nil).is(t, 200)
		return op["state"] == "STOPPED"
	})
	require.Equal(t, canary, op["canary"])
	require.Equal(t, object{"errorCode": "NO_STOCK"}, op["filter"])
	require.Equal(t, "canary: 1 of 1 failed", op["stopped"].(object)["reason"])
	require.Equal(t, op, b.desk(t, "POST", at+"/stop", nil).is(t, 200), "it has ended")
	undone := b.desk(t, "POST", at+"/undo", object{"reason": "no"}).is(t, 200)
	require.Equal(t, []any{"UNDONE", "no", 0.0}, []any{undone["state"], undone["undone"].(object)["reason"], undone["counts"].(object)["undone"]})
	for _, verb := range []string{"", "/stop", "/undo"} {
		method := "POST"
		if verb == "" {
			method = "GET"
		}
		b.desk(t, method, "/operations/"+unknown+verb, nil).fails(t, 404, "NOT_FOUND")
		b.desk(t, method, "/operations/x"+verb, nil).fails(t, 404, "NOT_FOUND")
		b.askWith(t, b.tenant(t, errorHandler, "a"), method, lettersPath+at+verb, nil).fails(t, 404, "NOT_FOUND")
	}

	for place, bad := range map[string]object{
		"body":                        {"reason": "r"},
		"body.reason":                 {"taskIds": []any{two}, "reason": ""},
		"body.taskIds":                {"taskIds": []any{}, "reason": "r"},
		"body.taskIds[0]":             {"taskIds": []any{"x"}, "reason": "r"},
		"body.ratePerSecond":          {"taskIds": []any{two}, "reason": "r", "ratePerSecond": 0},
		"body.canary.maxFailureRatio": {"taskIds": []any{two}, "reason": "r", "canary": object{"count": 1, "maxFailureRatio": 1.5}},
		"body.inputPatch[0].op":       {"taskIds": []any{two}, "reason": "r", "inputPatch": []any{object{"op": "eat", "path": "/a"}}},
		"body.filter.queue":           {"filter": object{"queue": "x"}, "reason": "r"},
		"body.more":                   {"filter": object{}, "reason": "r", "more": 1},
	} {
		require.Contains(t, violations(b.desk(t, "POST", "/redrive", bad).fails(t, 422, "VALIDATION_ERROR")), place)
	}
	b.desk(t, "POST", "/redrive", object{"filter": object{}, "taskIds": []any{two}, "reason": "r"}).fails(t, 422, "VALIDATION_ERROR")
}

func TestStopAndUndoRedrive(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.obeying(t)
	one := b.dead(t, "NO_STOCK", "item 1")
	// Nobody takes it: the lane is paused.
	_, err := b.pool.Exec(t.Context(), "UPDATE river_queue SET paused_at = now() WHERE name = 'task-execution-automated'")
	require.NoError(t, err)
	before := b.ask(t, ui, "GET", tasksPath+"/"+one, nil).is(t, 200)
	answer := b.desk(t, "POST", "/redrive", object{"taskIds": []any{one}, "reason": "r", "canary": object{"count": 1, "maxFailureRatio": 0}}).is(t, 202)
	b.stands(t, tasksPath+"/"+one, "PENDING")
	at := "/operations/" + answer["operationId"].(string)
	stopped := b.desk(t, "POST", at+"/stop", object{"reason": "wait"}).is(t, 200)
	require.Equal(t, "STOPPED", stopped["state"])
	require.Equal(t, []any{errorHandler, "wait"}, []any{stopped["stopped"].(object)["by"], stopped["stopped"].(object)["reason"]})
	undone := b.desk(t, "POST", at+"/undo", nil).is(t, 200)
	require.EqualValues(t, 1, undone["counts"].(object)["undone"])
	after := b.ask(t, ui, "GET", tasksPath+"/"+one, nil).is(t, 200)
	require.Equal(t, []any{"FAILED", before["error"], before["input"]}, []any{after["status"], after["error"], after["input"]})
	require.Len(t, b.desk(t, "GET", "", nil).is(t, 200)["items"], 1)
	metrics := b.ask(t, monitoring, "GET", tasksPath+"/metrics", nil).is(t, 200)
	require.Equal(t, []any{1.0, 0.0}, []any{metrics["attempts"].(object)["failed"], metrics["attempts"].(object)["released"]}, "an undo is neither")
	require.EqualValues(t, 1, metrics["lanes"].([]any)[4].(object)["depth"])
}

func TestDiscardDeadLetter(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.obeying(t)
	id := b.dead(t, "NO_STOCK", "item 1")
	path := "/" + id + "/discard"
	b.askWith(t, b.tenant(t, errorHandler, "a"), "POST", lettersPath+path, object{"reason": "old"}).fails(t, 404, "NOT_FOUND")
	require.Equal(t, []string{"body"}, violations(b.desk(t, "POST", path, object{}).fails(t, 422, "VALIDATION_ERROR")))
	first := b.desk(t, "POST", path, object{"reason": "old"}).is(t, 200)
	require.Equal(t, []any{id, errorHandler, "old"}, []any{first["taskId"], first["by"], first["reason"]})
	require.Equal(t, first, b.desk(t, "POST", path, object{"reason": "again"}).is(t, 200))
	require.Empty(t, b.desk(t, "GET", "", nil).is(t, 200)["items"])
	metrics := b.ask(t, monitoring, "GET", tasksPath+"/metrics", nil).is(t, 200)
	lanes := metrics["lanes"].([]any)
	require.Equal(t, []any{"task-execution-deadletter", 0.0}, []any{lanes[4].(object)["name"], lanes[4].(object)["depth"]})
	require.EqualValues(t, 1, metrics["tasks"].(object)["byStatus"].(object)["FAILED"])
	require.EqualValues(t, 0, metrics["attempts"].(object)["released"])
	require.Equal(t, "FAILED", b.ask(t, ui, "GET", tasksPath+"/"+id, nil).is(t, 200)["status"])
	out := b.desk(t, "POST", "/redrive", object{"taskIds": []any{id}, "reason": "r", "dryRun": true}).is(t, 202)
	require.Equal(t, []any{object{"taskId": id, "code": "NOT_DEAD_LETTER"}}, out["rejected"])

	live, _ := b.create(t, noop(object{"executionConfig": object{"executor": "worker"}}))
	b.desk(t, "POST", "/"+strings.TrimPrefix(live, tasksPath+"/")+"/discard", object{"reason": "r"}).fails(t, 409, "CONFLICT")
	b.desk(t, "POST", "/x/discard", object{"reason": "r"}).fails(t, 404, "NOT_FOUND")
}
