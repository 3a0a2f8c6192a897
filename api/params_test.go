package api_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// lines is a request with a header in several lines, or with a value that is empty.
func (b *testBundle) lines(t *testing.T, service, method, path, body, header string, values ...string) *reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, b.url+path, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+b.auth.Token(service))
	req.Header.Set("Content-Type", "application/json")
	req.Header[header] = values
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	read, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return &reply{resp.StatusCode, resp.Header, read}
}

// A header that would make a write conditional, repeatable or a person's is never taken for
// absent because it is empty.
func TestAHeaderWithoutAValueIsRefusedOnEveryWrite(t *testing.T) {
	t.Parallel()
	b := setup(t)
	doc := b.askWith(t, "", "GET", "/openapi.json", nil).is(t, 200)
	place := strings.NewReplacer("{taskId}", "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", "{id}", "d", "{operationId}", "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", "{leaseToken}", "x", "{queue}", "q")
	n := 0
	b.unchanged(t, func() {
		for path, item := range doc["paths"].(object) {
			for method, op := range item.(object) {
				if method == "get" {
					continue
				}
				n++
				service, who := "task-worker", callers[op.(object)["operationId"].(string)]
				switch {
				case who.services != nil:
					service = who.services[0]
				case who.scope == "tasks:pause":
					service = orchestrator
				}
				for _, header := range []string{"If-Match", "Idempotency-Key", "X-User-Token"} {
					for _, values := range [][]string{{""}, {"  "}, {"\t"}} {
						p := b.lines(t, service, strings.ToUpper(method), place.Replace(path), "{}", header, values...).fails(t, 422, "VALIDATION_ERROR")
						require.Equal(t, []string{"header." + header}, violations(p), "%s %s", method, path)
					}
				}
				p := b.lines(t, service, strings.ToUpper(method), place.Replace(path), "{}", "Idempotency-Key", "a", "b").fails(t, 422, "VALIDATION_ERROR")
				require.Equal(t, []string{"header.Idempotency-Key"}, violations(p), "two keys are none")
			}
		}
	})
	require.Greater(t, n, 15)
}

// RFC 9110, 13.1.1: a list matches if one of its tags does, by strong comparison.
func TestIfMatchIsAListOfTags(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, _ := b.create(t, noop())
	other, _ := b.create(t, noop())
	def := definitionsPath + "/matched"
	b.ask(t, orchestrator, "PUT", def, definition()).is(t, 201)
	b.unchanged(t, func() {
		for _, tags := range []string{`W/"1"`, `"2", "3"`, `W/"1", W/"2"`, `"x"`, `""`, `"01"`, `"99999999999"`, `"2",, "7" ,`, `"a,b"`} {
			for _, r := range []*reply{
				b.put(t, path, object{"status": "RUNNING"}, "If-Match", tags),
				b.ask(t, orchestrator, "POST", path+"/cancel", nil, "If-Match", tags),
				b.ask(t, orchestrator, "PUT", def, definition(object{"timeout": 9}), "If-Match", tags),
			} {
				r.fails(t, 412, "PRECONDITION_FAILED")
			}
		}
		for _, bad := range []string{"1", `"1`, `"1""2"`, `"1" "2"`, `*, "1"`, `w/"1"`, ",", "x", `"1", 2`} {
			for _, r := range []*reply{
				b.put(t, path, object{"status": "RUNNING"}, "If-Match", bad),
				b.ask(t, orchestrator, "PUT", def, definition(object{"timeout": 9}), "If-Match", bad),
			} {
				require.Equal(t, []string{"header.If-Match"}, violations(r.fails(t, 422, "VALIDATION_ERROR")), bad)
			}
		}
		b.put(t, tasksPath+"/0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", object{"status": "RUNNING"}, "If-Match", `"1", "2"`).fails(t, 404, "NOT_FOUND")
	})
	require.Equal(t, `"2"`, b.put(t, path, object{"status": "RUNNING"}, "If-Match", `"3","1", W/"2"`).header.Get("ETag"))
	b.lines(t, orchestrator, "POST", other+"/cancel", "{}", "If-Match", `"7"`, `"1"`).is(t, 200)
	b.put(t, path, object{"status": "COMPLETED"}, "If-Match", `*`).is(t, 200)
	b.ask(t, orchestrator, "PUT", def, definition(object{"timeout": 9}), "If-Match", `"5", "1"`).is(t, 200)
}

func TestQueryParametersThatAreRepeated(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i, status := range []string{"PENDING", "RUNNING", "CANCELLED"} {
		path, _ := b.create(t, noop(object{"workflowId": "q"}))
		if status != "PENDING" {
			b.put(t, path, object{"status": status}).is(t, 200)
		}
		if i == 0 {
			path, _ = b.create(t, manual(object{"workflowId": "q"}))
			b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane"}).is(t, 200)
		}
	}
	const list = tasksPath + "/workflow/q"
	for query, n := range map[string]int{
		"status=PENDING&status=RUNNING": 2, "status=RUNNING&status=PENDING": 2, "status=COMPLETED&status=CANCELLED": 1, "status=PENDING&status=PENDING": 1,
		"type=MANUAL&type=INTEGRATION": 1, "type=MANUAL&type=AUTOMATED": 4, "type=AUTOMATED&status=ASSIGNED&status=RUNNING": 1, "status=": 4,
	} {
		require.Len(t, b.ask(t, ui, "GET", list+"?"+query, nil).is(t, 200)["items"], n, query)
	}
	for _, query := range []string{"", "&claimable=true"} {
		require.Len(t, b.ask(t, ui, "GET", tasksPath+"/user/jane?status=ASSIGNED&status=RUNNING"+query, nil).is(t, 200)["items"], 1)
		require.Empty(t, b.ask(t, ui, "GET", tasksPath+"/user/jane?status=PENDING&status=RUNNING"+query, nil).is(t, 200)["items"])
	}
	one := b.ask(t, ui, "GET", list+"?limit=1&status=RUNNING&status=PENDING", nil).is(t, 200)
	b.ask(t, ui, "GET", list+"?limit=1&status=PENDING&status=RUNNING&cursor="+one["nextCursor"].(string), nil).is(t, 200)
	b.ask(t, ui, "GET", list+"?limit=1&status=PENDING&cursor="+one["nextCursor"].(string), nil).fails(t, 422, "VALIDATION_ERROR")

	group, _ := b.create(t, manual(object{"workflowId": "g"}))
	b.ask(t, ui, "POST", group+"/reassign", object{"groupId": "two"}).is(t, 200)
	for _, query := range []string{"groups=one,two", "groups=one&groups=two"} {
		require.Len(t, b.ask(t, ui, "GET", tasksPath+"/user/eve?claimable=true&"+query, nil).is(t, 200)["items"], 1, query)
	}
	for _, query := range []string{"status=PENDING&status=DONE", "status=PENDING,RUNNING", "status=PENDING&status=", "status=&status=PENDING"} {
		require.Equal(t, []string{"query.status"}, violations(b.ask(t, ui, "GET", list+"?"+query, nil).fails(t, 422, "VALIDATION_ERROR")), query)
	}
	b.ask(t, ui, "GET", list+"?limit=1;status=x", nil).fails(t, 422, "VALIDATION_ERROR")
}

// Every parameter of the document that takes one value is refused where it is given twice;
// and every GET is a HEAD.
func TestEveryGetTakesEachParameterOnceAndIsAHead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task, _ := b.create(t, noop())
	b.ask(t, orchestrator, "PUT", definitionsPath+"/d", definition()).is(t, 201)
	doc := b.askWith(t, "", "GET", "/openapi.json", nil).is(t, 200)
	place := strings.NewReplacer("{taskId}", strings.TrimPrefix(task, tasksPath+"/"), "{workflowId}", "w", "{userId}", "u", "{id}", "d", "{operationId}", "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01")
	once := 0
	paths := []string{"/livez", "/readyz", "/openapi.yaml", "/openapi.json", "/asyncapi.yaml", "/asyncapi.json"}
	for path, item := range doc["paths"].(object) {
		op, _ := item.(object)["get"].(object)
		if op == nil {
			continue
		}
		paths = append(paths, place.Replace(path))
		service := "task-worker"
		if names := callers[op["operationId"].(string)].services; names != nil {
			service = names[0]
		}
		get := func(method, query string) *reply { return b.ask(t, service, method, place.Replace(path)+query, nil) }
		for _, p := range list(op["parameters"]) {
			p := p.(object)
			if p["in"] != "query" || p["schema"].(object)["type"] == "array" {
				continue
			}
			once++
			name := p["name"].(string)
			require.Equal(t, []string{"query." + name}, violations(get("GET", "?"+name+"=1&"+name+"=1").fails(t, 422, "VALIDATION_ERROR")), path)
		}
		whole, head := get("GET", ""), get("HEAD", "")
		require.Equal(t, whole.status, head.status, path)
		require.Empty(t, head.body, path)
		for _, name := range []string{"ETag", "Content-Type", "Cache-Control"} {
			require.Equal(t, whole.header.Get(name), head.header.Get(name), "%s of %s", name, path)
		}
		require.Equal(t, http.StatusUnauthorized, b.askWith(t, "", "HEAD", place.Replace(path), nil).status, path)
	}
	require.Greater(t, once, 15)
	for _, path := range paths[:6] {
		head := b.askWith(t, "", "HEAD", path, nil)
		require.Equal(t, http.StatusOK, head.status, path)
		require.Empty(t, head.body, path)
	}
	for _, path := range paths {
		r := b.ask(t, orchestrator, "DELETE", path, nil)
		r.fails(t, 405, "METHOD_NOT_ALLOWED")
		require.Contains(t, r.header.Get("Allow"), "GET, HEAD", path)
	}
	require.Equal(t, 405, b.ask(t, orchestrator, "HEAD", tasksPath, nil).status)
}

// JSON Schema's integers are numbers without a fraction, however they are written.
func TestIntegersMayBeWrittenAsNumbers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	around := func(config, input string) string {
		return `{"taskDefinitionId":"x","workflowId":"w","taskType":"AUTOMATED","executionConfig":{"executor":"noop",` + config + `},"input":` + input + `}`
	}
	for _, n := range []string{"1000.0", "1e3", "1.5E3", "10000e-1", "1000"} {
		config := `"timeout":` + n + `,"visibilityTimeout":` + n + `,"retryPolicy":{"maxRetries":2.0,"retryInterval":` + n + `,"backoffMultiplier":1.5}`
		r := b.ask(t, orchestrator, "POST", tasksPath, around(config, `{"n":1.0,"timeout":2.50}`))
		r.is(t, 201)
		require.Contains(t, string(r.body), `"n":1.0`, "an input keeps its digits")
		require.Contains(t, string(r.body), `2.50`)
		results := b.ask(t, orchestrator, "POST", batchPath, `{"tasks":[`+around(config, "{}")+`]}`).is(t, 200)["results"].([]any)
		require.NotNil(t, results[0].(object)["taskId"], results)
		def := `{"type":"AUTOMATED","version":"1.0.0","timeout":` + n + `,"inputSchema":{"properties":{"n":{"maximum":5.0}}},"executionConfig":{"executor":"noop","visibilityTimeout":` + n + `}}`
		got := b.ask(t, orchestrator, "PUT", definitionsPath+"/n"+fmt.Sprint(len(n)), def).is(t, 201)
		require.Contains(t, []any{1000.0, 1500.0}, got["timeout"])
	}
	w := b.worker(t)
	b.forWorkers(t)
	lease := w.call("", `{"workerId":"w","waitMs":0.0,"maxTasks":1e0,"select":[{"queue":"task-execution-automated","maxTasks":1.0,"visibilityTimeout":3e4}]}`).is(t, 200)["leases"].([]any)[0].(object)
	path := "/" + lease["leaseToken"].(string)
	w.call(path+"/heartbeat", `{"extendMs":30000.0,"checkpoint":{"n":1.0}}`).is(t, 200)
	w.call("/heartbeats", `{"heartbeats":[{"leaseToken":"`+lease["leaseToken"].(string)+`","extendMs":3e4}]}`).is(t, 200)
	w.call(path+"/fail", `{"errorCode":"X","retryAfterMs":1.0}`).is(t, 200)
	b.ask(t, errorHandler, "POST", lettersPath+"/redrive", `{"filter":{},"dryRun":true,"reason":"r","ratePerSecond":5.0,"canary":{"count":1e0,"maxFailureRatio":0.5}}`).is(t, 202)

	b.unchanged(t, func() {
		for _, n := range []string{"1000.5", "1000.0000000000000000001", "1e-3"} {
			p := b.ask(t, orchestrator, "POST", tasksPath, around(`"timeout":`+n, "{}")).fails(t, 422, "VALIDATION_ERROR")
			require.Equal(t, "body.executionConfig.timeout", violations(p)[0], n)
			p = b.ask(t, orchestrator, "PUT", definitionsPath+"/bad", `{"type":"AUTOMATED","version":"1.0.0","timeout":`+n+`,"executionConfig":{"executor":"noop"}}`).fails(t, 422, "VALIDATION_ERROR")
			require.Equal(t, "body.timeout", violations(p)[0], n)
			results := b.ask(t, orchestrator, "POST", batchPath, `{"tasks":[`+around(`"timeout":`+n, "{}")+`]}`).is(t, 200)["results"].([]any)
			require.Contains(t, fmt.Sprint(results), "body.executionConfig.timeout", n)
		}
	})
}

func TestTimesAreRFC3339(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, _ := b.create(t, manual())
	due := func(at string) []*reply {
		return []*reply{
			b.ask(t, orchestrator, "POST", tasksPath, noop(object{"dueDate": at, "reference": at})),
			b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane", "dueDate": at, "reason": at}),
			b.ask(t, errorHandler, "GET", lettersPath+"?since="+url.QueryEscape(at), nil),
			b.ask(t, errorHandler, "POST", lettersPath+"/redrive", object{"filter": object{"since": at}, "dryRun": true, "reason": "r"}),
		}
	}
	for _, at := range []string{"2026-12-01t10:00:00z", "2026-12-01T10:00:00Z", "2026-12-01T10:00:00.25z", "2026-12-01t10:00:00+23:59", "2026-12-01T10:00:00-00:00"} {
		for i, r := range due(at) {
			require.Less(t, r.status, 300, "%d: %s: %s", i, at, r.body)
		}
		task := due(at)[0].is(t, 201)
		require.Equal(t, at, task["reference"], "a text that is no time is kept")
		got, err := time.Parse(time.RFC3339Nano, task["dueDate"].(string))
		require.NoError(t, err)
		want, err := time.Parse(time.RFC3339Nano, strings.ToUpper(at))
		require.NoError(t, err)
		require.True(t, got.Equal(want), at)
	}
	b.unchanged(t, func() {
		for _, at := range []string{
			"2026-12-01T10:00:00+24:00", "2026-12-01T10:00:00+10:60", "2026-12-01T9:00:00Z", "2026-12-01T10:00:00,5Z", "2026-02-30T10:00:00Z",
			"2026-12-01 10:00:00Z", "2026-12-01T10:00:00", "2026-12-01T24:00:00Z", "2026-12-01T10:00:60Z", "2026-12-01", "tomorrow",
		} {
			for i, place := range []string{"body.dueDate", "body.dueDate", "query.since", "body.filter.since"} {
				r := due(at)[i]
				require.Equal(t, []string{place}, violations(r.fails(t, 422, "VALIDATION_ERROR")), at)
			}
		}
	})
}

func (b *testBundle) scoped(t *testing.T, service string, scopes ...string) string {
	t.Helper()
	token, err := b.auth.Mint(peertest.TokenOptions{Service: service, Scopes: scopes})
	require.NoError(t, err)
	return token
}

// A refusal names what was missing, and nothing that was right.
func TestForbiddenNamesWhatWasMissing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.askWith(t, b.scoped(t, orchestrator, "tasks:read"), "POST", tasksPath, noop())
	p := r.fails(t, 403, "FORBIDDEN")
	require.Contains(t, p["detail"], "tasks:create")
	require.NotContains(t, p["detail"], orchestrator, "the caller was right")
	require.Contains(t, r.header.Get("WWW-Authenticate"), "tasks:create")

	r = b.askWith(t, b.scoped(t, ui, "tasks:create"), "POST", tasksPath, noop())
	p = r.fails(t, 403, "FORBIDDEN")
	require.Contains(t, p["detail"], orchestrator)
	require.NotContains(t, p["detail"], "scope", "the scope was right")
	require.Empty(t, r.header.Get("WWW-Authenticate"))

	p = b.askWith(t, b.scoped(t, ui, "tasks:read"), "POST", tasksPath, noop()).fails(t, 403, "FORBIDDEN")
	require.Contains(t, p["detail"], "tasks:create")
	require.Contains(t, p["detail"], orchestrator)
}

// What is wrong with a schema is told in one line, whole, and place by place.
func TestABrokenSchemaIsToldWhole(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.ask(t, orchestrator, "PUT", definitionsPath+"/s", definition(object{"inputSchema": object{"properties": object{"a": object{"type": "nonsense"}, "b": object{"minLength": -1}}}})).fails(t, 422, "VALIDATION_ERROR")
	text := fmt.Sprint(p["detail"], p["errors"])
	for _, place := range []string{"body.inputSchema", "body.inputSchema.properties.a.type", "body.inputSchema.properties.b.minLength"} {
		require.Contains(t, violations(p), place)
	}
	require.Contains(t, text, "'array', 'boolean', 'integer', 'null', 'number', 'object', 'string'", "the reason is whole")
	require.NotContains(t, text, "?", "no line end stands in it")
	require.NotContains(t, text, "…")

	p = b.ask(t, orchestrator, "PUT", definitionsPath+"/s", definition(object{"outputSchema": object{"pattern": "(unclosed"}})).fails(t, 422, "VALIDATION_ERROR")
	require.Contains(t, violations(p), "body.outputSchema")
	require.NotContains(t, fmt.Sprint(p), "…")
}

// The document says what a dry run answers.
func TestADryRunAnswersWhatTheDocumentSays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	doc := document(t)
	dry := b.desk(t, "POST", "/redrive", object{"filter": object{}, "dryRun": true, "reason": "r"}).is(t, 202)
	require.Contains(t, dry, "operationId")
	require.Nil(t, dry["operationId"])
	op := doc["paths"].(object)[lettersPath+"/redrive"].(object)["post"].(object)
	schema := op["responses"].(object)["202"].(object)["content"].(object)["application/json"].(object)["schema"].(object)
	text, err := json.Marshal(dry)
	require.NoError(t, err)
	var answer any
	require.NoError(t, json.Unmarshal(text, &answer))
	valid(t, doc, schema, answer, "a dry run")
}

// The same on the bus, where a time that is none makes a dead letter.
func TestTimesOfEventsAreRFC3339(t *testing.T) {
	t.Parallel()
	e := withBus(t, setup(t))
	say := func(until string) {
		e.send(t, "system.maintenance_mode", envelope("system.maintenance_mode", object{"enabled": true, "lanes": []any{"task-execution-manual"}, "until": until}))
	}
	say("2099-12-01t10:00:00.5z")
	e.counted(t, "system.maintenance_mode", 1, 0, 0, 0)
	becomes(t, e, 1, "SELECT count(*)::int FROM maintenance WHERE until = '2099-12-01T10:00:00.5Z'")
	for _, until := range []string{"2099-12-01T10:00:00+24:00", "2099-12-01T9:00:00Z"} {
		say(until)
		require.Regexp(t, `data\.until: `, e.deadLetter(t).Header["Tes-Reason"], until)
	}
	e.send(t, requestedSubject, envelope(requestedSubject, noop(object{"dueDate": "2099-12-01t10:00:00z", "executionConfig": object{"executor": "noop", "timeout": 5e3}})))
	becomes(t, e, 1, "SELECT count(*)::int FROM task WHERE due_at = '2099-12-01T10:00:00Z'")
}
