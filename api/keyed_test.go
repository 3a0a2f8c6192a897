package api_test

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// ownKeys are the writes that keyed does not repeat, each with what makes it repeatable.
var ownKeys = map[string]string{
	"createTask":   "the key makes the one task, for good: TestIdempotencyKey",
	"dequeueTasks": "requestId, which the header may name as well: TestDequeueTakesTheHeaderAsItsRequestID",
	"heartbeat":    "sent again it extends the lease again",
	"heartbeats":   "sent again they extend the leases again",
}

// written is a write that can be made once: where it goes, and what it says. other is a body
// that says something else.
type written struct {
	service, method, path string
	body, other           any
}

// writes are all writes of the document that take a key, each on something of its own.
func (b *testBundle) writes(t *testing.T) map[string]func() written {
	t.Helper()
	assigned := func() string {
		path, _ := b.create(t, manual())
		b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane"}).is(t, 200)
		return path
	}
	claimed := func() string {
		path := assigned()
		b.ask(t, ui, "POST", path+"/claim", object{"userId": "jane"}).is(t, 200)
		return path
	}
	letter := func() string {
		path, _ := b.create(t, noop())
		b.put(t, path, object{"status": "FAILED", "error": object{"code": "X", "message": "y"}}).is(t, 200)
		return strings.TrimPrefix(path, tasksPath+"/")
	}
	redriven := func() string {
		op := b.desk(t, "POST", "/redrive", object{"taskIds": []any{letter()}, "reason": "r"}).is(t, 202)
		return lettersPath + "/operations/" + op["operationId"].(string)
	}
	leased := func() string {
		b.forWorkers(t)
		leases := b.worker(t).call("", object{"workerId": "w"}).is(t, 200)["leases"].([]any)
		return "/api/internal/leases/" + leases[0].(object)["leaseToken"].(string)
	}
	// What is paused or resumed, each of its own.
	pausable := func(of string) string {
		path, _ := b.create(t, noop())
		id := strings.TrimPrefix(path, tasksPath+"/")
		switch of {
		case "definition":
			b.ask(t, orchestrator, "PUT", definitionsPath+"/"+id, definition()).is(t, 201)
			return definitionsPath + "/" + id
		case "queue":
			b.exec(t, "INSERT INTO river_queue (name, metadata, created_at, updated_at) VALUES ($1, '{}', now(), now())", id)
			return "/api/internal/queues/" + id
		}
		return path
	}
	paused := func(of string) string {
		path := pausable(of)
		b.ask(t, orchestrator, "POST", path+"/pause", object{"reason": "r"}).is(t, 200)
		return path
	}
	reason, otherwise := object{"reason": "one"}, object{"reason": "another"}
	return map[string]func() written{
		"createTasks": func() written {
			return written{orchestrator, "POST", batchPath, object{"tasks": []any{noop(), noop(object{"workflowId": "two"})}}, object{"tasks": []any{noop()}}}
		},
		"updateTaskStatus": func() written {
			path, _ := b.create(t, noop())
			return written{orchestrator, "PUT", path + "/status", object{"status": "RUNNING"}, object{"status": "COMPLETED"}}
		},
		"cancelTask": func() written {
			path, _ := b.create(t, noop())
			return written{orchestrator, "POST", path + "/cancel", reason, nil}
		},
		"reassignTask": func() written {
			return written{ui, "POST", assigned() + "/reassign", object{"assigneeId": "bob"}, object{"assigneeId": "eve"}}
		},
		"claimTask": func() written {
			return written{ui, "POST", assigned() + "/claim", object{"userId": "jane"}, object{"userId": "jane", "groups": []any{"g"}}}
		},
		"unclaimTask": func() written {
			return written{ui, "POST", claimed() + "/unclaim", object{"userId": "jane"}, object{"userId": "jane", "reason": "r"}}
		},
		"completeTask": func() written {
			return written{ui, "POST", claimed() + "/complete", object{"userId": "jane", "output": object{"n": 1}}, object{"userId": "jane", "output": object{"n": 2}}}
		},
		"claimNextTask": func() written {
			assigned()
			assigned() // a second one, that a repetition could take
			return written{ui, "POST", tasksPath + "/claim-next", object{"userId": "jane"}, object{"userId": "bob"}}
		},
		"putTaskDefinition": func() written {
			return written{orchestrator, "PUT", definitionsPath + "/keyed", definition(), definition(object{"timeout": 77})}
		},
		"redriveDeadLetters": func() written {
			return written{errorHandler, "POST", lettersPath + "/redrive", object{"taskIds": []any{letter()}, "reason": "r"}, object{"filter": object{}, "reason": "r"}}
		},
		"stopRedriveOperation": func() written {
			return written{errorHandler, "POST", redriven() + "/stop", reason, otherwise}
		},
		"undoRedriveOperation": func() written {
			return written{errorHandler, "POST", redriven() + "/undo", reason, otherwise}
		},
		"pauseQueue":  func() written { return written{orchestrator, "POST", pausable("queue") + "/pause", reason, otherwise} },
		"resumeQueue": func() written { return written{orchestrator, "POST", paused("queue") + "/resume", reason, otherwise} },
		"pauseTaskDefinition": func() written {
			return written{orchestrator, "POST", pausable("definition") + "/pause", reason, otherwise}
		},
		"resumeTaskDefinition": func() written {
			return written{orchestrator, "POST", paused("definition") + "/resume", reason, otherwise}
		},
		"pauseTask":  func() written { return written{orchestrator, "POST", pausable("task") + "/pause", reason, otherwise} },
		"resumeTask": func() written { return written{orchestrator, "POST", paused("task") + "/resume", reason, otherwise} },
		"discardDeadLetter": func() written {
			return written{errorHandler, "POST", lettersPath + "/" + letter() + "/discard", reason, otherwise}
		},
		"completeLease": func() written {
			return written{"task-worker", "POST", leased() + "/complete", object{"output": object{"n": 1}}, object{}}
		},
		"failLease": func() written {
			return written{"task-worker", "POST", leased() + "/fail", object{"errorCode": "A"}, object{"errorCode": "B"}}
		},
		"releaseLease": func() written {
			return written{"task-worker", "POST", leased() + "/release", object{"reason": "one"}, nil}
		},
	}
}

// reasonOf is what tells one conflict from another.
func reasonOf(t *testing.T, p map[string]any) any {
	t.Helper()
	details := p["error"].(object)["details"].(object)
	require.Equal(t, p["reason"], details["reason"], "in both forms")
	return details["reason"]
}

// Every write of the document takes a key: sent again it is answered as the first time, and
// nothing is written. With another body it is refused as such.
func TestEveryWriteIsAnsweredAgainUnderItsKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	doc := b.askWith(t, "", "GET", "/openapi.json", nil).is(t, 200)
	writes := b.writes(t)
	seen := []string{}
	for path, item := range doc["paths"].(object) {
		for method, op := range item.(object) {
			op := op.(object)
			id := op["operationId"].(string)
			if method == "get" || ownKeys[id] != "" {
				continue
			}
			seen = append(seen, id)
			at := method + " " + path
			takes := slices.ContainsFunc(list(op["parameters"]), func(p any) bool {
				return p.(object)["name"] == "Idempotency-Key" && p.(object)["in"] == "header"
			})
			require.True(t, takes, "%s says that it takes a key", at)
			require.Contains(t, op["responses"], "409", at)
			require.NotNil(t, writes[id], "%s has no case here", id)

			w := writes[id]()
			key := []string{"Idempotency-Key", "key of " + id}
			first := b.ask(t, w.service, w.method, w.path, w.body, key...)
			require.Less(t, first.status, 300, "%s: %s", id, first.body)
			require.Empty(t, first.header.Get("Idempotency-Replayed"), id)
			b.unchanged(t, func() {
				again := b.ask(t, w.service, w.method, w.path, w.body, key...)
				require.Equal(t, first.status, again.status, "%s: %s", id, again.body)
				require.Equal(t, string(first.body), string(again.body), id)
				require.Equal(t, "true", again.header.Get("Idempotency-Replayed"), id)
				for _, name := range []string{"ETag", "Location", "Content-Type"} {
					require.Equal(t, first.header.Get(name), again.header.Get(name), "%s of %s", name, id)
				}
				p := b.ask(t, w.service, w.method, w.path, w.other, key...).fails(t, 409, "CONFLICT")
				require.Equal(t, "IDEMPOTENCY_KEY_REUSED", reasonOf(t, p), id)
			})
		}
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(writes)), seen, "every case is in the document")
}

// The answer is committed with the effect: both rows are of one transaction.
func TestAnswersAreCommittedWithTheirEffects(t *testing.T) {
	t.Parallel()
	b := setup(t)
	writes := b.writes(t)
	for id, effect := range map[string]string{
		"updateTaskStatus": "task", "cancelTask": "task", "reassignTask": "task", "claimTask": "task", "unclaimTask": "task", "completeTask": "task",
		"claimNextTask": "task", "putTaskDefinition": "task_definition", "redriveDeadLetters": "redrive_operation", "discardDeadLetter": "dead_letter_discard",
		"pauseQueue": "pause", "resumeQueue": "pause", "pauseTaskDefinition": "pause", "pauseTask": "pause", // the release that follows a resume writes its row again
	} {
		w := writes[id]()
		require.Less(t, b.ask(t, w.service, w.method, w.path, w.body, "Idempotency-Key", "one commit").status, 300, id)
		var one bool
		require.NoError(t, b.pool.QueryRow(t.Context(), `
			SELECT EXISTS (SELECT FROM `+effect+` e WHERE e.xmin = c.xmin)
			FROM call_answer c
			WHERE c.operation = $1 AND c.call_key = 'one commit' AND c.status IS NOT NULL`, id).Scan(&one), id)
		require.True(t, one, "%s: the answer and %s are one commit", id, effect)
	}
}

func TestKeysAreOfACallerAndATenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := []string{"Idempotency-Key", "shared"}
	put := func(token, id string) *reply {
		return b.askWith(t, token, "PUT", definitionsPath+"/"+id, definition(), key...)
	}
	require.Equal(t, 201, put(b.tenant(t, orchestrator, "a"), "d").status)
	require.Equal(t, 201, put(b.tenant(t, orchestrator, "b"), "d").status, "another tenant's key is another key")
	require.Equal(t, 201, put(b.tenant(t, orchestrator, "a"), "d").status, "as the first time")
	require.Equal(t, "IDEMPOTENCY_KEY_REUSED", reasonOf(t, put(b.tenant(t, orchestrator, "a"), "e").fails(t, 409, "CONFLICT")), "another path is another call")

	path, _ := b.create(t, noop())
	b.ask(t, orchestrator, "POST", path+"/cancel", nil, key...).is(t, 200)
	b.put(t, path, object{"status": "CANCELLED"}, key...).is(t, 200) // another operation's key
}

// What was refused has done nothing: the key is free for the request as it should have been.
func TestARefusedCallLeavesItsKeyFree(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, _ := b.create(t, noop())
	key := []string{"Idempotency-Key", "k"}
	b.unchanged(t, func() {
		b.put(t, path, object{"status": "NOWHERE"}, key...).fails(t, 422, "VALIDATION_ERROR")
		b.put(t, path, object{"status": "COMPLETED"}, append(key, "If-Match", `"9"`)...).fails(t, 412, "PRECONDITION_FAILED")
		b.put(t, tasksPath+"/0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", object{"status": "COMPLETED"}, key...).fails(t, 404, "NOT_FOUND")
		p := b.put(t, path, object{"status": "TIMED_OUT", "output": object{}}, key...).fails(t, 422, "VALIDATION_ERROR")
		require.Equal(t, []string{"body.output"}, violations(p))
		for _, bad := range []string{strings.Repeat("k", 256), "a\tb", "schlüssel"} {
			require.Equal(t, []string{"header.Idempotency-Key"}, violations(b.put(t, path, object{"status": "RUNNING"}, "Idempotency-Key", bad).fails(t, 422, "VALIDATION_ERROR")))
		}
	})
	b.put(t, path, object{"status": "RUNNING"}, key...).is(t, 200)
	b.put(t, path, object{"status": "COMPLETED"}).is(t, 200)
	p := b.ask(t, orchestrator, "POST", path+"/cancel", nil, key...).fails(t, 409, "CONFLICT")
	require.Equal(t, "STATE", reasonOf(t, p), "the task has ended")
}

// While the first call waits for the task, another with its key is told so, and when to come
// again; then it hears what the first heard.
func TestACallUnderWayIsAConflictWithRetryAfter(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, _ := b.create(t, noop())
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	_, err = tx.Exec(t.Context(), "SELECT FROM task FOR UPDATE")
	require.NoError(t, err)

	cancel := func() *reply {
		return b.ask(t, orchestrator, "POST", path+"/cancel", object{"reason": "r"}, "Idempotency-Key", "slow")
	}
	first := make(chan *reply, 1)
	go func() { first <- cancel() }()
	eventually(t, func() bool {
		var n int
		require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT count(*) FROM call_answer").Scan(&n))
		return n == 1
	})
	r := cancel()
	require.Equal(t, "IDEMPOTENCY_KEY_IN_PROGRESS", reasonOf(t, r.fails(t, 409, "CONFLICT")))
	require.Regexp(t, `^[1-9]\d*$`, r.header.Get("Retry-After"))

	require.NoError(t, tx.Rollback(t.Context()))
	one := <-first
	one.is(t, 200)
	again := cancel()
	require.Equal(t, http.StatusOK, again.status)
	require.Equal(t, string(one.body), string(again.body))
	require.Equal(t, "true", again.header.Get("Idempotency-Replayed"))
}

// The end that somebody has said is answered again to who said it, without any key; another
// end, and another's, is a conflict.
func TestTheSameEndAgainIsTheSameAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	failure := object{"code": "X", "message": "y", "details": object{"n": 1.0}}
	for _, body := range []object{
		{"status": "COMPLETED", "output": object{"n": 1}},
		{"status": "COMPLETED"},
		{"status": "FAILED", "error": failure},
		{"status": "FAILED", "reason": "r"},
		{"status": "TIMED_OUT"},
		{"status": "CANCELLED"},
	} {
		path, _ := b.create(t, noop())
		b.put(t, path, object{"status": "RUNNING"}).is(t, 200)
		first := b.put(t, path, body, "If-Match", `"2"`)
		first.is(t, 200)
		again := b.put(t, path, body, "If-Match", `"2"`)
		require.Equal(t, 200, again.status, "with the version of the first: %s", again.body)
		b.put(t, path, body, "If-Match", `"1"`).fails(t, 412, "PRECONDITION_FAILED")
		again = b.put(t, path, body)
		require.Equal(t, 200, again.status, "%s: %s", body, again.body)
		require.Equal(t, string(first.body), string(again.body))
		require.Equal(t, first.header.Get("ETag"), again.header.Get("ETag"))
		if body["status"] == "CANCELLED" {
			continue
		}
		other := merge(object{}, body, object{"output": nil, "error": nil, "reason": nil}, map[string]object{
			"COMPLETED": {"output": object{"n": 2}}, "FAILED": {"error": object{"code": "Z", "message": ""}}, "TIMED_OUT": {"reason": "another"},
		}[body["status"].(string)])
		p := b.put(t, path, other).fails(t, 409, "CONFLICT")
		require.Equal(t, "STATE", reasonOf(t, p))
	}

	path, _ := b.create(t, manual())
	b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane"}).is(t, 200)
	complete := func(body object, headers ...string) *reply {
		return b.ask(t, ui, "POST", path+"/complete", body, headers...)
	}
	said := object{"userId": "jane", "output": object{"approved": true, "n": 1.0}, "comment": "called"}
	first := complete(said, "If-Match", `"2"`)
	first.is(t, 200)
	for _, again := range []*reply{complete(said), complete(said, "If-Match", `"2"`), complete(said, "If-Match", `"3"`)} {
		require.Equal(t, string(first.body), string(again.body))
		require.Equal(t, first.header.Get("ETag"), again.header.Get("ETag"))
	}
	complete(said, "If-Match", `"1"`).fails(t, 412, "PRECONDITION_FAILED")
	for _, change := range []object{{"userId": "bob"}, {"output": object{"approved": false}}, {"comment": nil}, {"comment": "not called"}} {
		complete(merge(object{}, said, change)).fails(t, 409, "CONFLICT")
	}
}

func TestBatchTakesAKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ask := func(headers []string, items ...any) *reply {
		return b.ask(t, orchestrator, "POST", batchPath, object{"tasks": items}, headers...)
	}
	key := []string{"Idempotency-Key", "b"}
	bad := object{"taskDefinitionId": "unheard-of", "workflowId": "w", "input": object{}}
	first := ask(key, noop(), noop(), noop(object{"requestId": "own"}), bad)
	results := first.is(t, 200)["results"].([]any)
	require.NotEqual(t, results[0].(object)["taskId"], results[1].(object)["taskId"])
	b.unchanged(t, func() {
		again := ask(key, noop(), noop(), noop(object{"requestId": "own"}), bad)
		require.Equal(t, string(first.body), string(again.body))
		require.Equal(t, "true", again.header.Get("Idempotency-Replayed"))
		require.Equal(t, "IDEMPOTENCY_KEY_REUSED", reasonOf(t, ask(key, noop()).fails(t, 409, "CONFLICT")))
	})
	own := b.ask(t, orchestrator, "POST", tasksPath, noop(object{"requestId": "own"})).is(t, 200)
	require.Equal(t, results[2].(object)["taskId"], own["taskId"], "requestId is the item's, beside the batch's key")

	// A process that was killed after the creates and before the answer was kept: the tasks say
	// what they are. Time, too, forgets the answer, and not the tasks.
	b.exec(t, "DELETE FROM call_answer")
	again := ask(key, noop(), noop(), noop(object{"requestId": "own"}), bad).is(t, 200)["results"].([]any)
	for i := range 3 {
		require.Equal(t, results[i].(object)["taskId"], again[i].(object)["taskId"])
		require.Equal(t, true, again[i].(object)["replayed"])
	}
}

func TestHeaderAndRequestIDAreTheSameKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.unchanged(t, func() {
		p := b.ask(t, orchestrator, "POST", tasksPath, noop(object{"requestId": "one"}), "Idempotency-Key", "other").fails(t, 422, "VALIDATION_ERROR")
		require.Equal(t, []string{"body.requestId"}, violations(p))
	})
	task := b.ask(t, orchestrator, "POST", tasksPath, noop(object{"requestId": "one"}), "Idempotency-Key", "one").is(t, 201)
	require.Equal(t, "one", task["requestId"])
}

func TestDequeueTakesTheHeaderAsItsRequestID(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.forWorkers(t)
	b.forWorkers(t)
	token := b.auth.Token("task-worker")
	dequeue := func(body object, key string) *reply {
		return b.askWith(t, token, "POST", "/api/internal/leases", merge(object{"workerId": "w"}, body), "Idempotency-Key", key)
	}
	first := dequeue(nil, "r-1").is(t, 200)["leases"].([]any)
	require.Len(t, first, 1)
	require.Equal(t, first[0].(object)["leaseToken"], dequeue(nil, "r-1").is(t, 200)["leases"].([]any)[0].(object)["leaseToken"])
	require.Equal(t, first[0].(object)["leaseToken"], dequeue(object{"requestId": "r-1"}, "r-1").is(t, 200)["leases"].([]any)[0].(object)["leaseToken"])
	require.Equal(t, []string{"body.requestId"}, violations(dequeue(object{"requestId": "r-2"}, "r-1").fails(t, 422, "VALIDATION_ERROR")))
}

// A create whose key made a task is answered with it, whatever has become of what the task
// was made by; another body, and another key, are told what is wrong.
func TestACreateIsAnsweredAgainAfterItsDefinitionChanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := object{"taskDefinitionId": "d", "workflowId": "w", "input": object{"n": 1}}
	define := func(change object) {
		def := object{"type": "AUTOMATED", "version": "1.0.0", "executionConfig": object{"executor": "noop"}}
		require.Less(t, b.ask(t, orchestrator, "PUT", definitionsPath+"/d", merge(def, change)).status, 300)
	}
	define(nil)
	alone := b.ask(t, orchestrator, "POST", tasksPath, body, "Idempotency-Key", "k").is(t, 201)
	item := merge(object{"requestId": "k2"}, body)
	batch := func(items ...any) []any {
		return b.ask(t, orchestrator, "POST", batchPath, object{"tasks": items}).is(t, 200)["results"].([]any)
	}
	in := batch(item)[0].(object)
	typed := b.ask(t, orchestrator, "POST", tasksPath, merge(object{"taskType": "AUTOMATED"}, body), "Idempotency-Key", "k3").is(t, 201)

	define(object{"inputSchema": object{"required": []any{"new"}}})
	require.Equal(t, alone["taskId"], b.ask(t, orchestrator, "POST", tasksPath, body, "Idempotency-Key", "k").is(t, 200)["taskId"])
	again := batch(item, merge(object{}, item, object{"requestId": "k4"}))
	require.Equal(t, in["taskId"], again[0].(object)["taskId"])
	require.Equal(t, true, again[0].(object)["replayed"])
	require.Equal(t, "VALIDATION_ERROR", again[1].(object)["error"].(object)["code"])
	define(object{"type": "MANUAL", "executionConfig": object{"executor": "manual"}})
	require.Equal(t, typed["taskId"], b.ask(t, orchestrator, "POST", tasksPath, merge(object{"taskType": "AUTOMATED"}, body), "Idempotency-Key", "k3").is(t, 200)["taskId"])

	p := b.ask(t, orchestrator, "POST", tasksPath, merge(object{"taskType": "AUTOMATED", "reference": "x"}, body), "Idempotency-Key", "k3").fails(t, 409, "CONFLICT")
	require.Equal(t, "IDEMPOTENCY_KEY_REUSED", reasonOf(t, p))
	b.ask(t, orchestrator, "POST", tasksPath, merge(object{"taskType": "AUTOMATED"}, body), "Idempotency-Key", "k5").fails(t, 422, "VALIDATION_ERROR")
}

// The same on the bus: a request that is heard again, under another event's id, is a
// repetition and no dead letter.
func TestARequestIsHeardAgainAfterItsDefinitionChanged(t *testing.T) {
	t.Parallel()
	e := withBus(t, setup(t))
	define := func(schema object) {
		def := object{"type": "AUTOMATED", "version": "1.0.0", "inputSchema": schema, "executionConfig": object{"executor": "noop"}}
		require.Less(t, e.ask(t, orchestrator, "PUT", definitionsPath+"/d", def).status, 300)
	}
	define(object{})
	asked := object{"taskDefinitionId": "d", "workflowId": "w", "input": object{"n": 1}, "requestId": "r"}
	e.send(t, requestedSubject, envelope(requestedSubject, asked))
	e.counted(t, requestedSubject, 1, 0, 0, 0)
	define(object{"required": []any{"new"}})
	e.send(t, requestedSubject, envelope(requestedSubject, asked))
	e.counted(t, requestedSubject, 1, 0, 1, 0)
	becomes(t, e, 1, "SELECT count(*)::int FROM task")
	require.Empty(t, e.deadLetters)
}

// An answer is given again to the person whom it was given to, and to nobody who only has the
// key: the person's own token is verified first.
func TestAnAnswerIsThePersonsWhoHeardIt(t *testing.T) {
	t.Parallel()
	b, token := withPeople(t, true)
	key := []string{"Idempotency-Key", "k"}
	jane := append(token(peertest.TokenOptions{Subject: "jane"}), key...)
	eve := append(token(peertest.TokenOptions{Subject: "eve"}), key...)
	path, _ := b.open(t, object{"candidateUsers": []any{"jane"}})
	give := func(headers []string) *reply {
		return b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "bob"}, headers...)
	}
	first := give(jane)
	first.is(t, 200)
	again := give(append(token(peertest.TokenOptions{Subject: "jane"}), key...))
	require.Equal(t, string(first.body), string(again.body), "with a token that was renewed")
	require.Equal(t, "true", again.header.Get("Idempotency-Replayed"))
	require.Equal(t, "IDEMPOTENCY_KEY_REUSED", reasonOf(t, give(eve).fails(t, 409, "CONFLICT")))
	give(append([]string{"X-User-Token", "forged"}, key...)).fails(t, 401, "UNAUTHORIZED")
	give(key).fails(t, 401, "UNAUTHORIZED")
}
