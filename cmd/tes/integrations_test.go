package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// integrationTypes are the rows of the document's table, with what the fake echoes.
var integrationTypes = []struct {
	row, kind string
	more      object // of the definition
	input     object
	output    string // a member, and what it begins with
}{
	{"REST API", "REST", nil, object{"path": "/orders/7", "query": object{"full": true}}, `"echo":{"path":"/orders/7","query":{"full":"true"}}`},
	{"SOAP", "SOAP", object{"soap": object{"namespace": "urn:shop", "action": "urn:shop/Get"}}, object{"order": object{"id": 7}}, `"order":{"id":"7"}`},
	{"Database", "DATABASE", nil, object{"query": "SELECT :id", "parameters": object{"id": 7}}, `"rowCount":1,"rows":[{"id":7}]`},
	{"Message Queue", "MESSAGE_QUEUE", nil, object{"destination": "orders", "message": object{"id": 7}}, `"acknowledged":true`},
	{"File Transfer", "FILE_TRANSFER", nil, object{"operation": "COPY", "source": "s3://a/b", "destination": "sftp://c/d"}, `"reference":"sftp://c/d"`},
	{"Custom", "CUSTOM", nil, object{"anything": object{"id": 7}}, `"echo":{"anything":{"id":7}}`},
}

// "Integration Types", row by row, from a request to the task's output: with an answer
// at once, and with an acceptance and the answer on the bus.
func TestIntegrationTypes(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	for _, row := range integrationTypes {
		for name, async := range map[string]bool{"at once": false, "by event": true} {
			t.Run(row.row+" "+name, func(t *testing.T) {
				id := fmt.Sprintf("%s-%v", strings.ToLower(row.kind), async)
				call := object{"type": row.kind, "method": "GetOrder", "instance": "shop", "async": async, "connection": id, "credentialRef": "vault:shop/main"}
				for name, value := range row.more {
					call[name] = value
				}
				must(t, http.StatusCreated, "PUT", api+definitionsPath+"/"+id, orchestrator, object{
					"type": "INTEGRATION", "version": "1.0.0", "executionConfig": object{"integration": call},
				})
				made := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{"taskDefinitionId": id, "workflowId": "w", "input": row.input})
				task := reaches(t, api, orchestrator, made["taskId"], "COMPLETED")
				text, err := json.Marshal(task["output"])
				require.NoError(t, err)
				require.Contains(t, string(text), row.output)

				var invoked, asked int
				for _, r := range b.peers.Requests(peertest.Connection) {
					if r.Query == "connection="+id {
						asked++
					}
				}
				for _, r := range b.peers.Requests(peertest.Integration) {
					if strings.Contains(string(r.Body), `"connection":"`+id+`"`) {
						invoked++
						require.Equal(t, fmt.Sprintf("%v:1", made["taskId"]), r.Headers["Idempotency-Key"])
						require.Contains(t, string(r.Body), `"credentialRef":"vault:shop/main"`)
						require.Equal(t, async, r.Headers["Prefer"] == "respond-async")
					}
				}
				require.Equal(t, []int{1, 1}, []int{asked, invoked})
			})
		}
	}

	t.Run("what cannot be is refused at registration", func(t *testing.T) {
		for name, call := range map[string]object{
			"no namespace":     {"type": "SOAP", "method": "m", "instance": "i"},
			"an inline secret": {"method": "m", "instance": "i", "credentialRef": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.abc"},
			"a password":       {"method": "m", "instance": "i", "credentialRef": "user:" + canary + "=!"},
		} {
			status, _, text, err := ask(t.Context(), "PUT", api+definitionsPath+"/bad", orchestrator, object{
				"type": "INTEGRATION", "version": "1.0.0", "executionConfig": object{"integration": call},
			})
			require.NoError(t, err)
			require.Equal(t, http.StatusUnprocessableEntity, status, "%s: %s", name, text)
			require.NotContains(t, string(text), canary)
			require.NotContains(t, string(text), "eyJhbGciOiJub25lIn0")
		}
	})
	require.NotContains(t, p.stderr.String(), canary)
}

// "Connection Management": an unknown connection is the definition's fault; one that is
// down is nobody's, and its tasks wait.
func TestConnectionsOfIntegrations(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	task := func(connection string) any {
		return must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{
			"taskDefinitionId": "adhoc", "workflowId": "w", "taskType": "INTEGRATION", "input": object{},
			"executionConfig": object{"executor": "integration", "integration": object{"method": "m", "instance": "shop", "connection": connection}},
		})["taskId"]
	}
	failed := reaches(t, api, orchestrator, task(peertest.UnknownConnection), "FAILED")
	require.Equal(t, "VALIDATION_ERROR", failed["error"].(object)["code"])
	require.EqualValues(t, 1, failed["attempt"])

	b.peers.Steer(peertest.Connection, peertest.Steering{Body: json.RawMessage(`{"status": "DISCONNECTED"}`)})
	waits := task("main")
	eventually(t, patience, func() error {
		if !strings.Contains(p.stderr.String(), "its connection is") {
			return fmt.Errorf("it was not given back")
		}
		return nil
	})
	b.peers.Steer(peertest.Connection, peertest.Steering{})
	done := reaches(t, api, orchestrator, waits, "COMPLETED")
	require.EqualValues(t, 1, done["attempt"])
	for _, r := range b.peers.Requests(peertest.Integration) {
		require.NotContains(t, string(r.Body), peertest.UnknownConnection, "it was never invoked")
	}
}

// "Credential Resolution": a resolved secret that the Integration Service lets slip is
// nowhere: not in a table, an event, the log, the queue, nor in an answer of ours.
func TestResolvedSecretAppearsNowhere(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	var mu sync.Mutex
	var told []string
	require.NoError(t, b.bus.Subscribe(t.Context(), "task.>", natsbus.All, func(d outbox.Delivery, _ uint64) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, fmt.Sprint(d.Header)+string(d.Body))
	}))
	p := start(t, append(b.env, "TES_LOG_LEVEL=debug"), "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	secret := "s3cr3t-" + uuid.NewString()
	data := object{
		"id": 7, "credential": secret, "headers": object{"Authorization": "Bearer " + secret}, "list": []any{object{"api_key": secret}},
		"db_password": secret, "apiToken": secret, "note": "Bearer " + secret, "dsn": "postgres://u:" + secret + "@h/db",
	}
	problem := object{"code": "AUTHENTICATION_ERROR", "message": "Bearer " + secret + " refused by https://u:" + secret + "@books: DB_PASSWORD=" + secret + " pwd=" + secret, "details": object{
		"clientSecret": secret, "cause": "Authorization: Bearer " + secret, "url": "https://u:" + secret + "@books/x", "env": []any{"DB_PASSWORD=" + secret + " client_secret=" + secret},
	}}
	answer := func(v any) json.RawMessage {
		text, err := json.Marshal(v)
		require.NoError(t, err)
		return text
	}
	create := func() any {
		return must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{
			"taskDefinitionId": "adhoc", "workflowId": "secret", "taskType": "INTEGRATION", "input": object{},
			"executionConfig": object{"executor": "integration", "integration": object{"method": "m", "instance": "shop", "credentialRef": "vault:shop/main"}},
		})["taskId"]
	}
	var answers []string
	sees := func(id any, status string) {
		task := reaches(t, api, orchestrator, id, status)
		text, err := json.Marshal(task)
		require.NoError(t, err)
		require.Contains(t, string(text), "[redacted]")
		for _, more := range []string{"/events", "/attempts", "/why"} {
			_, _, body, err := ask(t.Context(), "GET", fmt.Sprintf("%s%s/%v%s", api, tasksPath, id, more), orchestrator, nil)
			require.NoError(t, err)
			answers = append(answers, string(body))
		}
		answers = append(answers, string(text))
	}
	respond := func(id any, with object) {
		var invocation string
		eventually(t, patience, func() error {
			rows, err := collect(t.Context(), b.dsn, pgx.RowTo[string], "SELECT invocation_id FROM lease WHERE task_id = $1 AND kind = 'response'", id)
			if err != nil || len(rows) == 0 {
				return fmt.Errorf("it does not wait yet: %w", err)
			}
			invocation = rows[0]
			return nil
		})
		body := object{
			"type": "integration.response_received", "id": uuid.NewString(), "timestamp": time.Now().UTC().Format(time.RFC3339Nano),
			"data": merge(object{"taskId": id, "invocationId": invocation, "integrationId": "shop"}, with),
		}
		require.NoError(t, b.bus.Send(context.Background(), "integration.response_received", nil, answer(body)))
	}

	b.peers.Steer(peertest.Integration, peertest.Steering{Body: answer(object{"status": "SUCCESS", "data": data})})
	sees(create(), "COMPLETED")
	b.peers.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeError, Status: 401, Body: answer(object{"error": problem})})
	sees(create(), "FAILED")
	b.peers.Steer(peertest.Integration, peertest.Steering{Status: http.StatusAccepted})
	id := create()
	respond(id, object{"status": "SUCCESS", "data": data})
	sees(id, "COMPLETED")
	id = create()
	respond(id, object{"status": "FAILED", "error": problem, "retryable": false})
	sees(id, "FAILED")
	eventually(t, patience, func() error {
		if n := number(t, b.dsn, "SELECT count(*) FROM outbox"); n > 0 {
			return fmt.Errorf("%d rounds are not told", n)
		}
		return nil
	})

	require.Empty(t, tablesWith(t, b.dsn, secret))
	require.Contains(t, tablesWith(t, b.dsn, "vault:shop/main"), "public.task", "the look finds what is there")
	require.NotContains(t, strings.Join(answers, "\n"), secret)
	require.Equal(t, exitOK, p.stop(t))
	require.NotContains(t, p.stderr.String(), secret)
	mu.Lock()
	defer mu.Unlock()
	require.NotEmpty(t, told)
	require.NotContains(t, strings.Join(told, "\n"), secret)
}

// tablesWith are the tables, the queue's among them, that have a text in any row.
func tablesWith(t *testing.T, dsn, text string) (found []string) {
	t.Helper()
	tables, err := collect(t.Context(), dsn, pgx.RowTo[string],
		"SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')")
	require.NoError(t, err)
	require.Greater(t, len(tables), 15)
	for _, table := range tables {
		if number(t, dsn, "SELECT count(*) FROM "+table+" x WHERE x::text LIKE '%' || $1 || '%'", text) > 0 {
			found = append(found, table)
		}
	}
	return found
}

// merge is an object with the members of another.
func merge(o, more object) object {
	for name, value := range more {
		o[name] = value
	}
	return o
}
