package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/jobs"
)

// TestServerLeavesNothing runs before the parallel tests, and so alone.
func TestServerLeavesNothing(t *testing.T) { //nolint:paralleltest // it counts goroutines
	before := goleak.IgnoreCurrent()
	peers, err := peertest.Start(peertest.Config{})
	require.NoError(t, err)
	v, err := auth.NewVerifier(auth.Config{JWKS: peers.URL() + "/.well-known/jwks.json", Transport: &http.Transport{}, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	for range 100 {
		_, _ = v.Verify(t.Context(), peers.Token(orchestrator))
	}
	v.Close()
	_, err = v.Verify(context.Background(), strings.Replace(peers.Token(orchestrator), "e", "f", 1))
	require.Error(t, err)
	require.NoError(t, peers.Close(t.Context()))
	goleak.VerifyNone(t, before)
}

func TestOneLineARequest(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) { c.Version = "1.2.3" })
	token := b.tenant(t, orchestrator, "acme")
	r := b.askWith(t, token, "POST", tasksPath, noop(), "X-Request-Id", "mine-1")
	task := r.is(t, 201)
	require.Equal(t, "mine-1", r.header.Get("X-Request-Id"))
	require.Equal(t, "tes/1.2.3", r.header.Get("Server"))
	b.askWith(t, token, "GET", "/nowhere%1b%5b31m%0d%0a", nil, "X-Request-Id", "evil [31m")
	b.askWith(t, "", "GET", "/livez", nil).is(t, 200)

	// The line comes after the answer.
	eventually(t, func() bool { return strings.Count(b.log.String(), "\n") >= 2 })
	lines := strings.Split(strings.TrimSpace(b.log.String()), "\n")
	require.Len(t, lines, 2, "one each, and none for being alive")
	var line object
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &line))
	want := object{
		"level": "INFO", "msg": "request", "method": "POST", "route": tasksPath, "status": 201.0, "request_id": "mine-1",
		"caller": orchestrator, "tenant": "acme", "task": task["taskId"],
	}
	for name, value := range want {
		require.Equal(t, value, line[name], name)
	}
	require.Contains(t, line, "ms")
	require.NotContains(t, b.log.String(), token[:20])
	require.NotContains(t, lines[1], "\x1b")
	require.NotContains(t, lines[1], `\u001b`)
}

func TestMounts(t *testing.T) {
	t.Parallel()
	log := &logged{}
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/riverui/panic":
			panic("SUPERSECRET")
		case "/riverui/half":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic("half")
		case "/riverui/flush":
			w.(http.Flusher).Flush()
		}
		_, hasDeadline := r.Context().Deadline()
		_ = json.NewEncoder(w).Encode(object{"path": r.URL.Path, "deadline": hasDeadline})
	})
	b := setup(t, func(c *api.Config) {
		c.Mounts = []api.Mount{{Prefix: "/riverui", Handler: page}, {Prefix: "/guarded", Handler: page, Scope: "tasks:deadletter"}}
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
	})
	require.Equal(t, object{"path": "/riverui", "deadline": false}, b.askWith(t, "", "GET", "/riverui", nil).is(t, 200))
	require.Equal(t, object{"path": "/riverui/a/b", "deadline": false}, b.askWith(t, "", "POST", "/riverui/a/b", nil).is(t, 200))
	b.askWith(t, "", "GET", "/riverui/flush", nil).is(t, 200)
	b.askWith(t, "", "GET", "/riveruix", nil).fails(t, 404, "NOT_FOUND")
	require.Equal(t, 403, b.askWith(t, "", "POST", "/riverui/jobs/delete", nil, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site").status)
	b.askWith(t, "", "GET", "/guarded", nil).fails(t, 401, "UNAUTHORIZED")
	b.ask(t, orchestrator, "GET", "/guarded", nil).fails(t, 403, "FORBIDDEN")
	b.ask(t, "error-handler", "GET", "/guarded/x", nil).is(t, 200)

	r := b.askWith(t, "", "GET", "/riverui/panic", nil)
	r.fails(t, 500, "INTERNAL_ERROR")
	require.NotContains(t, string(r.body), "SUPERSECRET")
	eventually(t, func() bool { return strings.Contains(log.String(), "SUPERSECRET") })
	require.Contains(t, log.String(), "api_test.go", "with its stack")

	resp, err := http.Get(b.url + "/riverui/half") //nolint:noctx // the server is ours
	require.NoError(t, err)
	_, err = io.ReadAll(resp.Body)
	require.Error(t, err, "half an answer does not look like a whole one")
	require.NoError(t, resp.Body.Close())

	for _, prefix := range []string{"", "x", "/x/", "/api/x"} {
		_, err := api.New(api.Config{Tasks: b.tasks, Reads: b.pool, Verifier: startVerifier(t, b.auth.URL()), Mounts: []api.Mount{{Prefix: prefix, Handler: page}}})
		require.Error(t, err, prefix)
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) {
		c.Ready = func(ctx context.Context) error {
			_, has := ctx.Deadline()
			require.True(t, has)
			return errors.New("password SUPERSECRET refused")
		}
	})
	r := b.askWith(t, "", "GET", "/readyz", nil)
	r.fails(t, 503, "UNAVAILABLE")
	require.NotContains(t, string(r.body), "SUPERSECRET")
	eventually(t, func() bool { return strings.Contains(b.log.String(), "SUPERSECRET") }) // the log is for us
	require.Equal(t, object{"status": "ok"}, b.askWith(t, "", "GET", "/livez", nil).is(t, 200))
}

func TestWhatNewNeeds(t *testing.T) {
	t.Parallel()
	for _, cfg := range []api.Config{{}, {Tasks: &jobs.Tasks{}}} {
		_, err := api.New(cfg)
		require.Error(t, err)
	}
	_, err := auth.NewVerifier(auth.Config{})
	require.Error(t, err)
}

// TestTraceparent: what is not as W3C asks is dropped, and never stored.
func TestTraceparent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for header, want := range map[string]string{
		good: good, "": "", "x": "", "ff" + good[2:]: "", strings.ToUpper(good): "", good + "-x": "", good[:54] + "\t": "",
	} {
		task := b.ask(t, orchestrator, "POST", tasksPath, noop(), "traceparent", header).is(t, 201)
		var kept string
		require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT coalesce(traceparent, '') FROM task WHERE task_id = $1", task["taskId"]).Scan(&kept))
		require.Equal(t, want, kept, header)
	}
}
