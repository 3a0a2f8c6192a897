package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/outbox/callback"
	"github.com/seed-3f7a0631/tes/outbox/webhook"
)

// postedCallback is a callback that the fake Orchestrator got.
type postedCallback struct {
	Path    string
	Headers map[string]string
	Body    json.RawMessage
}

func callbacks(t *testing.T, r ready) (all []postedCallback) {
	t.Helper()
	_, _, text, err := ask(t.Context(), "GET", r.NeighboursURL+"/_standin/orchestrator/requests", "", nil)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &all))
	return all
}

// Workflow Orchestrator: store status updates locally and retry. The whole way, as the
// tour shows it: it is gone while a task runs, the program ends, and after a new start
// the updates arrive in order, signed with the secret that stayed.
func TestDevCallsBack(t *testing.T) {
	t.Parallel()
	dir, file := dataDir(t), readyFile(t)
	p := start(t, environ(), devArgs(file, "--data-dir", dir)...)
	r := isReady(t, p, file)
	orchestrator := r.Tokens["workflow-orchestrator"]
	must(t, http.StatusOK, "PUT", r.NeighboursURL+"/_standin/orchestrator", "", object{"mode": "gone"})
	task := noop("called")
	task["stepId"], task["callbackUrl"] = "s-1", r.NeighboursURL+"/callbacks/called"
	created := must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, task)
	reaches(t, r.APIURL, orchestrator, created["taskId"], "COMPLETED")
	eventually(t, patience, func() error {
		if len(callbacks(t, r)) < 2 {
			return fmt.Errorf("not tried again")
		}
		return nil
	})
	metrics := must(t, http.StatusOK, "GET", r.APIURL+tasksPath+"/metrics", r.Tokens["monitoring-service"], nil)
	require.EqualValues(t, 1, metrics["callbacks"].(map[string]any)["waiting"])
	require.Equal(t, exitOK, p.stop(t))

	// The fake peer services may be elsewhere after a new start, the task's address may not.
	again := start(t, environ(), devArgs(file, "--data-dir", dir)...)
	r2 := isReady(t, again, file)
	require.Equal(t, r.CallbackSecret, r2.CallbackSecret)
	task["callbackUrl"] = r2.NeighboursURL + "/callbacks/again"
	second := must(t, http.StatusCreated, "POST", r2.APIURL+tasksPath, orchestrator, task)
	taker, err := standardwebhooks.NewWebhook(r2.CallbackSecret)
	require.NoError(t, err)
	var got []callback.StatusUpdate
	eventually(t, patience, func() error {
		got = nil
		for _, c := range callbacks(t, r2) {
			if c.Path != "/callbacks/again" {
				continue
			}
			header := http.Header{}
			for name, value := range c.Headers {
				header.Set(name, value)
			}
			require.NoError(t, taker.Verify(c.Body, header))
			var update callback.StatusUpdate
			require.NoError(t, json.Unmarshal(c.Body, &update))
			got = append(got, update)
		}
		if len(got) < 2 {
			return fmt.Errorf("posted: %v", got)
		}
		return nil
	})
	require.Len(t, got, 2)
	for i, status := range []string{"RUNNING", "COMPLETED"} {
		require.Equal(t, []any{second["taskId"], "called", "s-1", status}, []any{got[i].TaskID, got[i].WorkflowID, got[i].StepID, got[i].Status})
	}
	require.Equal(t, exitOK, again.stop(t))
}

// Without a secret nothing is promised; in production nothing inside is called.
func TestServeCallsBack(t *testing.T) {
	t.Parallel()
	b := setupServe(t, false)
	orchestrator := b.peers.Token("workflow-orchestrator")
	task := noop("w")
	task["callbackUrl"] = b.peers.URL() + "/callbacks/w?key=" + canary

	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	refused := must(t, http.StatusUnprocessableEntity, "POST", serving(t, p)+tasksPath, orchestrator, task)
	require.Contains(t, fmt.Sprint(refused), "TES_CALLBACK_SECRET")
	require.Equal(t, exitOK, p.stop(t))

	secret := webhook.NewSecret()
	p = start(t, append(b.env, "TES_CALLBACK_SECRET="+secret, "TES_HTTP_ALLOW="), "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	created := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, task)
	reaches(t, api, orchestrator, created["taskId"], "COMPLETED")
	eventually(t, patience, func() error {
		m := must(t, http.StatusOK, "GET", api+tasksPath+"/metrics", b.peers.Token("monitoring-service"), nil)
		if got := m["callbacks"].(map[string]any); got["givenUp"] != 2.0 || got["waiting"] != 0.0 {
			return fmt.Errorf("callbacks: %v", got)
		}
		return nil
	})
	require.Equal(t, exitOK, p.stop(t))
	require.Empty(t, b.peers.Requests(peertest.Orchestrator))
	require.NotContains(t, p.stderr.String(), canary)
	require.NotContains(t, p.stderr.String(), secret)

	says(t, exitUsage, append(b.env, "TES_CALLBACK_SECRET="+canary), []string{"serve"}, "TES_CALLBACK_SECRET: secret 1 is not whsec_")

	// What waits is not forgotten by a process that cannot sign.
	number(t, b.dsn, "WITH w AS (INSERT INTO callback (task_id, told, upto, since, host) SELECT task_id, 2, 3, now(), 'h' FROM task RETURNING 1) SELECT count(*) FROM w")
	p = start(t, b.env, "serve", "--http", "127.0.0.1:0")
	serving(t, p)
	require.Equal(t, exitOK, p.stop(t))
	require.Contains(t, p.stderr.String(), "callbacks wait")
}

// Workflow Orchestrator: store status updates locally and retry. The process is killed
// (kill -9) when the updates of several tasks have been taken and not been marked: the
// next one repeats them when the claim has run out, with the same id and body, and goes
// on in order.
func TestCallbacksSurviveAKill(t *testing.T) {
	t.Parallel()
	const tasks = 8
	b := setupServe(t, true)
	secret := webhook.NewSecret()
	env := append(b.env, "TES_CALLBACK_SECRET="+secret)
	verifier, err := standardwebhooks.NewWebhook(secret)
	require.NoError(t, err)

	type taken struct{ id, status, body string }
	var mu sync.Mutex
	got := map[string][]taken{} // by task; guarded by mu
	arrived, answer := make(chan struct{}, 100*tasks), make(chan struct{})
	orchestrator := serveWeb(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var update callback.StatusUpdate
		if err := errors.Join(verifier.Verify(body, r.Header), json.Unmarshal(body, &update)); err != nil {
			t.Error(err)
		}
		mu.Lock()
		got[update.TaskID] = append(got[update.TaskID], taken{r.Header.Get("webhook-id"), update.Status, string(body)})
		mu.Unlock()
		arrived <- struct{}{}
		<-answer
	}))
	free := sync.OnceFunc(func() { close(answer) })
	t.Cleanup(free)

	p := startProcess(t, env, "serve", "--http", "127.0.0.1:0")
	api, token := serving(t, p), b.peers.Token("workflow-orchestrator")
	for range tasks {
		task := noop("w")
		task["callbackUrl"] = orchestrator.URL + "/callbacks"
		created := must(t, http.StatusCreated, "POST", api+tasksPath, token, task)
		reaches(t, api, token, created["taskId"], "COMPLETED")
	}
	for range tasks {
		select {
		case <-arrived:
		case <-time.After(patience):
			t.Fatal("not all were posted")
		}
	}
	p.signal(t, syscall.SIGKILL)
	<-p.done
	free()

	serving(t, startProcess(t, env, "serve", "--http", "127.0.0.1:0"))
	eventually(t, 2*patience, func() error {
		if n := number(t, b.dsn, "SELECT count(*) FROM callback"); n > 0 {
			return fmt.Errorf("%d callbacks wait", n)
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, got, tasks)
	for _, updates := range got {
		last := len(updates) - 1
		require.GreaterOrEqual(t, last, 2)
		for _, again := range updates[:last] {
			require.Equal(t, updates[0], again, "repeated under the same id, equal to the byte")
		}
		require.Equal(t, []string{"RUNNING", "COMPLETED"}, []string{updates[0].status, updates[last].status})
	}
	require.Zero(t, number(t, b.dsn, "SELECT count(*) FROM callback_given_up"))
}
