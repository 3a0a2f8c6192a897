package peer_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// halfBroken is an Integration Service whose integrations "bad…" answer 500 and say nothing.
func halfBroken(t *testing.T, cfg peer.Config) (n *peer.Services, bad *atomic.Int64) {
	t.Helper()
	bad = &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/api/integrations/bad") {
			bad.Add(1)
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte(`{"status": "SUCCESS", "data": {}}`))
	}))
	t.Cleanup(server.Close)
	cfg.BaseURL = server.URL
	n, err := peer.New(cfg)
	require.NoError(t, err)
	t.Cleanup(n.Close)
	return n, bad
}

// An integration that fails is left alone, and the others are not.
func TestOneIntegrationFailsAlone(t *testing.T) {
	t.Parallel()
	p := once()
	p.MinExecutions, p.OpenFor = 10, time.Hour
	n, bad := halfBroken(t, peer.Config{Policy: p})
	good := func() {
		_, err := n.Integrations.Invoke(t.Context(), "good", ask("m", `{}`))
		require.NoError(t, err)
	}
	good()
	for range 40 {
		_, err := n.Integrations.Invoke(t.Context(), "bad", ask("m", `{}`))
		requireOutage(t, err, "integration") // the task waits, and nothing is spent
	}
	good()
	require.EqualValues(t, 10, bad.Load(), "then it is left alone")
	require.Equal(t, retry.Closed, n.Integrations.Breaker().Status().State)
	resting := n.Integrations.Resting()
	require.Len(t, resting, 1)
	require.Equal(t, "integration/bad", resting[0].Name)
	require.Equal(t, retry.Open, resting[0].State)
}

// A call of an integration that is left alone ends at once: its place is for others.
func TestRestingIntegrationsTakeNoPlaces(t *testing.T) {
	t.Parallel()
	n, bad := halfBroken(t, peer.Config{Policy: retry.Policy{Backoff: time.Millisecond, MaxBackoff: time.Millisecond, Retries: 20, MinExecutions: 10, OpenFor: time.Hour}})
	_, err := n.Integrations.Invoke(t.Context(), "good", ask("m", `{}`))
	require.NoError(t, err)
	_, err = n.Integrations.Invoke(t.Context(), "bad", ask("m", `{}`))
	requireOutage(t, err, "integration")
	require.ErrorContains(t, err, "bad: the integration's circuit breaker is open")
	require.EqualValues(t, 10, bad.Load(), "of 21 tries")
}

// Where most integrations fail, it is the service.
func TestManyIntegrationsFailTogether(t *testing.T) {
	t.Parallel()
	p := once()
	p.MinExecutions, p.OpenFor = 10, time.Hour
	n, _ := halfBroken(t, peer.Config{Policy: p})
	for _, id := range []string{"good", "bad1", "bad2", "bad3"} {
		for range 5 {
			_, _ = n.Integrations.Invoke(t.Context(), id, ask("m", `{}`))
		}
	}
	require.Equal(t, retry.Open, n.Integrations.Breaker().Status().State)
}

// What an integration says is its answer, however carelessly it is written.
func TestCarelessErrorDocuments(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("C", 200)
	for name, c := range map[string]struct{ body, code, message, details string }{
		"NUL":             {`{"error":{"code":"X","message":"a\u0000b","details":{"k\u0000":"\u0000"}}}`, "X", "a\uFFFDb", `{"k\uFFFD":"\uFFFD"}`},
		"half a pair":     {`{"error":{"code":"X","message":"a\ud800b","details":["\udc00"]}}`, "X", "a\uFFFDb", `["\uFFFD"]`},
		"repeated member": {`{"error":{"code":"W","code":"X","message":"m","details":{"a":1,"a":2}}}`, "X", "m", `{"a":2}`},
		"number bomb":     {`{"error":{"code":"X","message":"m","details":{"n":1e400,"m":12.50}}}`, "X", "m", `{"n":"1e400","m":12.50}`},
		"long code":       {`{"error":{"code":"` + long + `","message":"m"}}`, long[:128], "m", ``},
		"no UTF-8":        {"{\"error\":{\"code\":\"X\",\"message\":\"a\xffb\"}}", "X", "a\uFFFDb", ``},
		"other types":     {`{"error":{"code":"X","message":{"en":"m"},"retryable":"perhaps"},"retryable":1}`, "X", `{"en":"m"}`, ``},
		"deep details":    {`{"error":{"code":"X","message":"m","details":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}}`, "X", "m", ``},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "6")
				w.WriteHeader(http.StatusInternalServerError)
				_, _ = w.Write([]byte(c.body))
			}))
			t.Cleanup(server.Close)
			n, err := peer.New(peer.Config{BaseURL: server.URL, Policy: quick()})
			require.NoError(t, err)
			t.Cleanup(n.Close)
			_, err = n.Integrations.Invoke(t.Context(), "bad", ask("m", `{}`))
			f := requireFailure(t, err, c.code, false)
			require.Equal(t, c.message, f.Message)
			if c.details == "" {
				require.Empty(t, f.Details)
			} else {
				require.JSONEq(t, c.details, string(f.Details))
			}
			require.Equal(t, 6*time.Second, f.After)
			require.NoError(t, jsonguard.Check(mustJSON(t, f)))
		})
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	require.NoError(t, err)
	return text
}
