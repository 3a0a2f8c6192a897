package api_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
)

// Readiness tells the truth: not ready while the process starts, stops or has no
// database; ready, and saying so, while the bus is away.
func TestReadinessTellsTheTruth(t *testing.T) {
	t.Parallel()
	starting := httptest.NewServer(api.Starting())
	t.Cleanup(starting.Close)
	early := &testBundle{url: starting.URL}
	early.askWith(t, "", "GET", "/livez", nil).is(t, 200)
	for _, path := range []string{"/readyz", tasksPath, "/"} {
		r := early.askWith(t, "", "GET", path, nil)
		require.Equal(t, "the process is starting", r.fails(t, 503, "UNAVAILABLE")["detail"])
		require.NotEmpty(t, r.header.Get("Retry-After"))
	}

	var draining, away, gone atomic.Bool
	b := setup(t, func(cfg *api.Config) {
		cfg.Draining = draining.Load
		cfg.Bus = func() (string, string) {
			if away.Load() {
				return "away", "there is no connection to the NATS server"
			}
			return "ok", ""
		}
		cfg.Relay = func() string { return map[bool]string{true: "failing", false: "leading"}[away.Load()] }
		ping := cfg.Reads.Ping
		cfg.Ready = func(ctx context.Context) error {
			if gone.Load() {
				return errors.New("refused")
			}
			return ping(ctx)
		}
	})
	want := object{"status": "ok", "database": "ok", "bus": "ok", "relay": "leading", "maintenance": []any{}}
	require.Equal(t, want, b.askWith(t, "", "GET", "/readyz", nil).is(t, 200))
	away.Store(true)
	want["bus"], want["busReason"], want["relay"] = "away", "there is no connection to the NATS server", "failing"
	require.Equal(t, want, b.askWith(t, "", "GET", "/readyz", nil).is(t, 200))
	_, err := b.pool.Exec(t.Context(), "INSERT INTO event_unknown (event_id, stream_seq) VALUES (gen_random_uuid(), 7), (gen_random_uuid(), 8)")
	require.NoError(t, err)
	want["status"], want["unknownEvents"] = "degraded", 2.0
	require.Equal(t, want, b.askWith(t, "", "GET", "/readyz", nil).is(t, 200))
	_, err = b.pool.Exec(t.Context(), "UPDATE event_unknown SET seen_at = now()")
	require.NoError(t, err)
	want["status"] = "ok"
	delete(want, "unknownEvents")
	require.Equal(t, want, b.askWith(t, "", "GET", "/readyz", nil).is(t, 200))
	gone.Store(true)
	require.Equal(t, "the database does not respond", b.askWith(t, "", "GET", "/readyz", nil).fails(t, 503, "UNAVAILABLE")["detail"])
	draining.Store(true)
	require.Equal(t, "the process is stopping", b.askWith(t, "", "GET", "/readyz", nil).fails(t, 503, "UNAVAILABLE")["detail"])
	b.askWith(t, "", "GET", "/livez", nil).is(t, 200)
}
