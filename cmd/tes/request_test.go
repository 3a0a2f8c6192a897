package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serveWeb is a web service that is there until the test ends. Its connections are cut then:
// a handler that waits for the end of its request would keep Close waiting for a process that
// is stopped only later.
func serveWeb(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server
}

// takenPort is an address that somebody listens on.
func takenPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

// nobodysPort is an address that nobody listens on.
func nobodysPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	return listener.Addr().String()
}

// client does not share its connections with the program under test.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}, Timeout: 30 * time.Second}

// object is JSON.
type object = map[string]any

// ask sends a request and answers the status, the body as JSON where it is, and
// the body.
func ask(ctx context.Context, method, url, token string, body any, headers ...string) (int, object, []byte, error) {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, nil, nil, err
		}
		reader = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, reader)
	if err != nil {
		return 0, nil, nil, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, nil, nil, err
	}
	var answer object
	_ = json.Unmarshal(text, &answer)
	return response.StatusCode, answer, text, nil
}

// must sends a request that has to be answered with a status.
func must(t *testing.T, status int, method, url, token string, body any, headers ...string) object {
	t.Helper()
	got, answer, text, err := ask(t.Context(), method, url, token, body, headers...)
	require.NoError(t, err)
	require.Equal(t, status, got, "%s %s: %s", method, url, text)
	return answer
}

const (
	tasksPath       = "/api/internal/tasks"
	definitionsPath = "/api/internal/task-definitions"
)

// noop is a request for a task that needs no definition.
func noop(workflow string) object {
	return object{
		"taskDefinitionId": "nothing", "workflowId": workflow, "taskType": "AUTOMATED", "input": object{},
		"executionConfig": object{"executor": "noop"},
	}
}

// reaches waits until a task has a status, and answers the task.
func reaches(t *testing.T, apiURL, token string, id any, status string) object {
	t.Helper()
	var task object
	eventually(t, patience, func() error {
		task = must(t, http.StatusOK, "GET", fmt.Sprintf("%s%s/%v", apiURL, tasksPath, id), token, nil)
		if task["status"] != status {
			return fmt.Errorf("task %v is %v, not %s: %v", id, task["status"], status, task["error"])
		}
		return nil
	})
	return task
}
