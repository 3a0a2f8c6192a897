package peertest_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type testBundle struct {
	ctx    context.Context
	there  *peertest.Server
	client *http.Client
}

func setup(t *testing.T, cfg peertest.Config) *testBundle {
	t.Helper()
	there, err := peertest.Start(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		require.NoError(t, there.Close(ctx))
		cancel()
	})
	return &testBundle{ctx: ctx, there: there, client: &http.Client{Transport: transport}}
}

// call answers the status and the body; headers are pairs.
func (b *testBundle) call(t *testing.T, method, path, body string, headers ...string) (int, string) {
	t.Helper()
	response, err := b.send(b.ctx, method, path, body, headers...)
	require.NoError(t, err)
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(read)
}

func (b *testBundle) send(ctx context.Context, method, path, body string, headers ...string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, b.there.URL()+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	return b.client.Do(request)
}

func TestSteeringOverHTTP(t *testing.T) {
	t.Parallel()
	b := setup(t, peertest.Config{})

	status, body := b.call(t, "GET", "/_standin/integration", "")
	require.Equal(t, 200, status)
	require.JSONEq(t, `{"mode":"ok","delayMs":0,"times":0}`, body)

	status, body = b.call(t, "PUT", "/_standin/integration", `{"mode":"error","times":2,"body":{"error":{"code":"X"}}}`)
	require.Equal(t, 200, status)
	require.JSONEq(t, `{"mode":"error","status":503,"body":{"error":{"code":"X"}},"delayMs":0,"times":2}`, body)

	for range 2 {
		status, body = b.call(t, "POST", "/api/integrations/i/invoke", `{"method":"m"}`)
		require.Equal(t, 503, status)
		require.JSONEq(t, `{"error":{"code":"X"}}`, body)
	}
	status, _ = b.call(t, "POST", "/api/integrations/i/invoke", `{"method":"m"}`)
	require.Equal(t, 200, status)
	_, body = b.call(t, "GET", "/_standin/integration", "")
	require.JSONEq(t, `{"mode":"ok","delayMs":0,"times":0}`, body)

	b.call(t, "PUT", "/_standin/user", `{"mode":"error","status":500}`)
	status, body = b.call(t, "GET", "/api/users/alice", "")
	require.Equal(t, 500, status)
	require.Empty(t, body)

	status, body = b.call(t, "GET", "/_standin/", "")
	require.Equal(t, 200, status)
	var all struct {
		Services map[string]peertest.Steering
		Usage    map[string]string
	}
	require.NoError(t, json.Unmarshal([]byte(body), &all))
	require.Len(t, all.Services, len(peertest.Services))
	require.Equal(t, "error", all.Services["user"].Mode)
	require.Contains(t, all.Usage, "PUT /_standin/{service}")

	for _, bad := range []string{
		`{"mode":"cross"}`, `{"mode":"error","status":99}`, `{"mode":"slow","delayMs":-1}`,
		`{"mode":"error","times":-1}`, `{"mode":"ok","delay":5}`, `{`, ``,
	} {
		status, _ = b.call(t, "PUT", "/_standin/integration", bad)
		require.Equal(t, 400, status, bad)
	}
	for _, path := range []string{"/_standin/postman", "/_standin/postman/requests"} {
		status, _ = b.call(t, "GET", path, "")
		require.Equal(t, 404, status)
	}
	require.Panics(t, func() { b.there.Steer("postman", peertest.Steering{}) })
	require.Panics(t, func() { b.there.Steer(peertest.User, peertest.Steering{Mode: "cross"}) })
}

func TestModes(t *testing.T) {
	t.Parallel()

	t.Run("OKWithBody", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peertest.Config{})
		b.there.Steer(peertest.User, peertest.Steering{Mode: peertest.ModeOK, Body: json.RawMessage(`[]`)})
		status, body := b.call(t, "GET", "/api/users?role=r", "")
		require.Equal(t, 200, status)
		require.Equal(t, "[]", body)
	})

	t.Run("Slow", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peertest.Config{})
		b.there.Steer(peertest.User, peertest.Steering{Mode: peertest.ModeSlow, DelayMs: 60})
		began := time.Now()
		status, _ := b.call(t, "GET", "/api/users/alice", "")
		require.Equal(t, 200, status)
		require.GreaterOrEqual(t, time.Since(began), 60*time.Millisecond)
	})

	t.Run("Gone", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peertest.Config{})
		b.there.Steer(peertest.User, peertest.Steering{Mode: peertest.ModeGone})
		_, err := b.send(b.ctx, "GET", "/api/users/alice", "")
		require.ErrorIs(t, err, io.EOF)
		require.Len(t, b.there.Requests(peertest.User), 1)
	})

	t.Run("HangUntilSteered", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peertest.Config{})
		b.there.Steer(peertest.User, peertest.Steering{Mode: peertest.ModeHang})
		status := make(chan int, 1)
		go func() {
			response, err := b.send(b.ctx, "GET", "/api/users/alice", "")
			if err != nil {
				status <- 0
				return
			}
			_ = response.Body.Close()
			status <- response.StatusCode
		}()
		_, err := b.there.Await(b.ctx, peertest.User, 1)
		require.NoError(t, err)
		b.there.Steer(peertest.User, peertest.Steering{Mode: peertest.ModeError, Status: 418})
		require.Equal(t, 418, <-status)
	})

	// Close must not wait for those that nobody answers, nor they for the client.
	t.Run("HangUntilClosed", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peertest.Config{})
		for _, st := range []peertest.Steering{{Mode: peertest.ModeHang}, {Mode: peertest.ModeSlow, DelayMs: 3_600_000}} {
			b.there.Clear(peertest.User)
			b.there.Steer(peertest.User, st)
			ctx, cancel := context.WithCancel(b.ctx)
			done := make(chan error, 1)
			go func() {
				_, err := b.send(ctx, "GET", "/api/users/alice", "")
				done <- err
			}()
			_, err := b.there.Await(b.ctx, peertest.User, 1)
			require.NoError(t, err)
			if st.Mode == peertest.ModeSlow {
				require.NoError(t, b.there.Close(b.ctx))
				require.Error(t, <-done)
			}
			cancel()
			if st.Mode == peertest.ModeHang {
				require.ErrorIs(t, <-done, context.Canceled)
			}
		}
		require.NoError(t, b.there.Close(b.ctx)) // twice is once
		_, err := b.there.Await(b.ctx, peertest.User, 1000)
		require.ErrorContains(t, err, "closed")
	})
}

func TestRequests(t *testing.T) {
	t.Parallel()

	t.Run("HoldNoSecret", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peertest.Config{})
		_, body := b.call(t, "GET", "/_standin/auth/requests", "")
		require.JSONEq(t, `[]`, body)

		b.call(t, "POST", "/api/auth/validate-token", `{"token":"hunter2"}`,
			"Authorization", "Bearer hunter2", "X-User-Token", "hunter2", "Cookie", "session=hunter2", "X-Correlation-Id", "c1")
		b.call(t, "POST", "/api/auth/validate-token", "no json", "Authorization", "hunter2")

		status, body := b.call(t, "GET", "/_standin/auth/requests", "")
		require.Equal(t, 200, status)
		require.NotContains(t, body, "hunter2")
		var listed []peertest.Request
		require.NoError(t, json.Unmarshal([]byte(body), &listed))
		require.Len(t, listed, 2)
		require.Equal(t, "POST", listed[0].Method)
		require.Equal(t, "/api/auth/validate-token", listed[0].Path)
		require.Equal(t, "Bearer [redacted]", listed[0].Headers["Authorization"])
		require.Equal(t, "c1", listed[0].Headers["X-Correlation-Id"])
		require.JSONEq(t, `{"token":"[redacted]"}`, string(listed[0].Body))
		require.JSONEq(t, `"no json"`, string(listed[1].Body))
		require.WithinDuration(t, time.Now(), listed[0].At, time.Minute)
		require.Equal(t, time.UTC, listed[0].At.Location())

		status, _ = b.call(t, "DELETE", "/_standin/auth/requests", "")
		require.Equal(t, 204, status)
		require.Empty(t, b.there.Requests(peertest.Auth))
	})

	t.Run("AreTheLastThousand", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peertest.Config{})
		for range 1001 {
			b.call(t, "GET", "/api/users/early", "")
		}
		b.call(t, "GET", "/api/users/l%2Fate", "")
		sent := b.there.Requests(peertest.User)
		require.Len(t, sent, 1000)
		require.Equal(t, "/api/users/l%2Fate", sent[999].Path)
	})
}

func TestOtherNeighbours(t *testing.T) {
	t.Parallel()
	b := setup(t, peertest.Config{})
	for _, c := range []struct {
		method, path, body string
		status             int
		answer             string // empty: not looked at
	}{
		{"GET", "/api/users/alice", "", 200, `{"id":"alice","name":"alice","roles":[],"skills":[],"available":true}`},
		{"GET", "/api/users?role=r&skill=a&skill=b", "", 200, `[
			{"id":"r-1","name":"r-1","roles":["r"],"skills":["a","b"],"available":true},
			{"id":"r-2","name":"r-2","roles":["r"],"skills":["a","b"],"available":true}]`},
		{"GET", "/api/users", "", 200, `[]`},
		{"POST", "/api/notifications", `{"channel":"email","userId":"alice","template":"t","data":{}}`, 202, ""},
		{"POST", "/api/notifications", `{"channel":"smoke","userId":"alice"}`, 422, ""},
		{"POST", "/api/resources/allocations", `{"taskId":"t1","cpu":"0.1"}`, 201, ""},
		{"POST", "/api/resources/allocations", `{}`, 422, ""},
		{"POST", "/api/tracing/span", `[{}]`, 202, ""},
		{"POST", "/api/orchestrator/callbacks/wf-1", `{"taskId":"t1"}`, 200, `{"received":true}`},
		{"POST", "/callbacks/wf-1", `{"taskId":"t1"}`, 200, `{"received":true}`},
		{"GET", "/api/integrations/xero_main/connection", "", 200, `{"integrationId":"xero_main","type":"REST","status":"CONNECTED"}`},
		{"GET", "/api/integrations/_x/connection", "", 400, ""},
		{"GET", "/api/integrations/x/connection?connection=" + peertest.UnknownConnection, "", 404, ""},
		{"GET", "/api/integrations/a/b/c", "", 404, ""},
	} {
		status, body := b.call(t, c.method, c.path, c.body)
		require.Equal(t, c.status, status, c.path)
		if c.answer != "" {
			require.JSONEq(t, c.answer, body)
		}
	}
	for service, n := range map[string]int{
		peertest.User: 3, peertest.Notification: 2, peertest.Resource: 2,
		peertest.Observability: 1, peertest.Orchestrator: 2, peertest.Integration: 1, peertest.Connection: 3,
	} {
		require.Len(t, b.there.Requests(service), n, service)
	}
	b.there.Steer(peertest.Orchestrator, peertest.Steering{Mode: peertest.ModeError})
	status, _ := b.call(t, "POST", "/callbacks/wf-1", `{}`)
	require.Equal(t, 503, status)
}
