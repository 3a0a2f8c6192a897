package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// breaker is how the process sees one of its peer services.
func breaker(t *testing.T, b *served, api, name string) object {
	t.Helper()
	metrics := must(t, http.StatusOK, "GET", api+tasksPath+"/metrics", b.peers.Token("monitoring-service"), nil)
	for _, each := range metrics["breakers"].([]any) {
		if each.(object)["name"] == name {
			return each.(object)
		}
	}
	require.FailNow(t, "there is no such breaker", "%s in %v", name, metrics["breakers"])
	return nil
}

// "Integration Service: queue integration requests locally; delayed integration
// execution." The requests wait in their lane, and nothing else waits with them.
func TestFallbackIntegrationServiceAway(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	must(t, http.StatusCreated, "PUT", api+definitionsPath+"/bill", orchestrator, object{
		"type": "INTEGRATION", "version": "1.0.0", "executionConfig": object{"integration": object{"method": "bill", "instance": "books"}},
	})
	bill := func() string {
		made := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{"taskDefinitionId": "bill", "workflowId": "w", "input": object{"n": 1}})
		return fmt.Sprint(made["taskId"])
	}
	require.Equal(t, "closed", breaker(t, b, api, "integration")["state"])
	// "one for each peer service that it calls, for each channel …, and for the bus"
	metrics := must(t, http.StatusOK, "GET", api+tasksPath+"/metrics", b.peers.Token("monitoring-service"), nil)
	var names []string
	for _, each := range metrics["breakers"].([]any) {
		require.Equal(t, "closed", each.(object)["state"])
		names = append(names, fmt.Sprint(each.(object)["name"]))
	}
	require.Equal(t, []string{
		"auth", "bus", "integration", "notification/chat", "notification/email", "notification/in-app", "notification/push",
		"observability", "resource", "user",
	}, names)

	b.peers.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeGone})
	var bills []string
	for range 12 {
		bills = append(bills, bill())
	}
	eventually(t, patience, func() error {
		if state := breaker(t, b, api, "integration")["state"]; state != "open" {
			return fmt.Errorf("the breaker is %v", state)
		}
		return nil
	})
	eventually(t, patience, func() error {
		why := must(t, http.StatusOK, "GET", api+tasksPath+"/"+bills[0]+"/why", orchestrator, nil)
		if why["blockedBy"] != "BREAKER_OPEN" {
			return fmt.Errorf("%v", why)
		}
		return nil
	})
	// Neither the other lanes nor their breakers notice.
	for range 5 {
		made := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, noop("w"))
		reaches(t, api, orchestrator, made["taskId"], "COMPLETED")
	}
	require.Equal(t, "closed", breaker(t, b, api, "auth")["state"])
	for _, id := range bills {
		task := must(t, http.StatusOK, "GET", api+tasksPath+"/"+id, orchestrator, nil)
		require.Contains(t, []any{"PENDING", "RUNNING"}, task["status"])
		require.Zero(t, task["retryCount"])
	}

	b.peers.Steer(peertest.Integration, peertest.Steering{})
	for _, id := range bills {
		task := reaches(t, api, orchestrator, id, "COMPLETED")
		require.EqualValues(t, 1, task["attempt"], "no attempt is spent on an outage")
	}
	require.Equal(t, "closed", breaker(t, b, api, "integration")["state"])
	require.Contains(t, p.stderr.String(), "a breaker is open")
}

// "Resource Service: use default resource allocations."
func TestFallbackResourceServiceAway(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	must(t, http.StatusCreated, "PUT", api+definitionsPath+"/heavy", orchestrator, object{
		"type": "AUTOMATED", "version": "1.0.0",
		"executionConfig": object{"executor": "noop", "resourceRequirements": object{"cpu": "2"}},
	})
	run := func() {
		made := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{"taskDefinitionId": "heavy", "workflowId": "w", "input": object{}})
		reaches(t, api, orchestrator, made["taskId"], "COMPLETED")
	}
	run()
	asked := b.peers.Requests(peertest.Resource)
	require.Len(t, asked, 1)
	require.Contains(t, string(asked[0].Body), `"cpu":"2","memory":"128Mi","disk":"500Mi"`)

	b.peers.Steer(peertest.Resource, peertest.Steering{Mode: peertest.ModeGone})
	run()
	require.Greater(t, len(b.peers.Requests(peertest.Resource)), 1)
	eventually(t, patience, func() error {
		if !strings.Contains(p.stderr.String(), `"cpu":"2","memory":"128Mi","disk":"500Mi","allocation":""`) {
			return errors.New("the defaults are not in the log")
		}
		return nil
	})
}

// "When it gives up the task goes back to its lane and spends no attempt", also where
// the attempt's time is up before the retries are, and where the service takes the request
// and never answers. TestIntegrationServiceHangs has the timeout: the service answers others.
func TestOutageIsNoTimeout(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	for id, definition := range map[string]object{
		"bill":  {"type": "INTEGRATION", "executionConfig": object{"integration": object{"method": "bill", "instance": "books"}}},
		"heavy": {"type": "AUTOMATED", "executionConfig": object{"executor": "noop", "resourceRequirements": object{"cpu": "2"}}},
	} {
		definition["version"], definition["timeout"], definition["retryPolicy"] = "1.0.0", 5000, object{"maxRetries": 0}
		must(t, http.StatusCreated, "PUT", api+definitionsPath+"/"+id, orchestrator, definition)
	}
	create := func(id string) string {
		return fmt.Sprint(must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{"taskDefinitionId": id, "workflowId": "w", "input": object{}})["taskId"])
	}

	b.peers.Steer(peertest.Resource, peertest.Steering{Mode: peertest.ModeGone})
	heavy := create("heavy")
	var bills []string
	for _, mode := range []string{peertest.ModeGone, peertest.ModeError, peertest.ModeHang} {
		b.peers.Steer(peertest.Integration, peertest.Steering{Mode: mode})
		id := create("bill")
		eventually(t, patience, func() error {
			if n := number(t, b.dsn, "SELECT count(*) FROM task_event WHERE task_id = $1 AND type = 'released'", id); n == 0 {
				return fmt.Errorf("%s: it was not given back", mode)
			}
			return nil
		})
		bills = append(bills, id)
	}
	b.peers.Steer(peertest.Integration, peertest.Steering{})
	for _, id := range append(bills, heavy) {
		require.EqualValues(t, 1, reaches(t, api, orchestrator, id, "COMPLETED")["attempt"])
	}
}

// An Integration Service that takes a request and never answers is away: the task goes
// back to its lane, spends no attempt, and asks again under the same key. If the service
// has answered somebody else meanwhile it is there, and the task has timed out.
func TestIntegrationServiceHangs(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	create := func(timeout int) string {
		made := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{
			"taskDefinitionId": "bill", "workflowId": "w", "taskType": "INTEGRATION", "input": object{"n": 1},
			"executionConfig": object{
				"executor": "integration", "integration": object{"method": "bill", "instance": "books"}, "timeout": timeout, "retryPolicy": object{"maxRetries": 0},
			},
		})
		return fmt.Sprint(made["taskId"])
	}
	keys := func() (keys []string) {
		for _, request := range b.peers.Requests(peertest.Integration) {
			keys = append(keys, request.Headers["Idempotency-Key"])
		}
		return keys
	}

	// From here on the connection is known, and is not asked about.
	reaches(t, api, orchestrator, create(60_000), "COMPLETED")

	b.peers.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeHang, Times: 1})
	first := create(2000)
	task := reaches(t, api, orchestrator, first, "COMPLETED")
	require.EqualValues(t, 1, task["attempt"])
	require.EqualValues(t, 0, task["retryCount"])
	require.Equal(t, []string{first + ":1", first + ":1"}, keys()[1:])

	b.peers.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeHang, Times: 1})
	second := create(10_000)
	eventually(t, patience, func() error {
		if n := len(keys()); n != 4 {
			return fmt.Errorf("%d requests", n)
		}
		return nil
	})
	reaches(t, api, orchestrator, create(60_000), "COMPLETED")
	reaches(t, api, orchestrator, second, "TIMED_OUT")
}
