package peer_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// The breaker over real HTTP; policy_test.go has its exact times.
func TestBreaker(t *testing.T) {
	t.Parallel()

	breaker := func(p retry.Policy) (peer.Config, <-chan string) {
		states := make(chan string, 16)
		p.MinExecutions = 10
		return peer.Config{Policy: p, OnBreaker: func(s retry.Status) { states <- s.Name + " " + string(s.State) }}, states
	}

	t.Run("OpensAtThirtyInAHundred", func(t *testing.T) {
		t.Parallel()
		cfg, states := breaker(once())
		cfg.Policy.OpenFor = time.Hour
		b := setup(t, cfg)
		for range 7 {
			_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
			require.NoError(t, err)
		}
		b.there.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeError})
		for range 2 {
			_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
			requireOutage(t, err, "integration")
			require.Empty(t, states)
		}
		_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
		requireOutage(t, err, "integration")
		require.Equal(t, "integration open", <-states)

		// Open, it lets nothing through, even to a peer service that is back.
		b.there.Steer(peertest.Integration, peertest.Steering{})
		_, err = b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
		requireOutage(t, err, "integration")
		require.ErrorContains(t, err, "circuit breaker open")
		require.Len(t, b.there.Requests(peertest.Integration), 10)

		// The other peer services have breakers of their own.
		_, err = b.peer.Users.Get(b.ctx, "alice")
		require.NoError(t, err)
	})

	// The call that meets an open breaker waits with its backoff, is the trial,
	// and closes it.
	t.Run("HalfOpensAndCloses", func(t *testing.T) {
		t.Parallel()
		cfg, states := breaker(retry.Policy{Retries: 30, Backoff: 10 * time.Millisecond, MaxBackoff: 20 * time.Millisecond})
		cfg.Policy.OpenFor = 50 * time.Millisecond
		b := setup(t, cfg)
		b.there.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeGone, Times: 10})
		_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
		require.NoError(t, err)
		require.Equal(t, "integration open", <-states)
		require.Equal(t, "integration half-open", <-states)
		require.Equal(t, "integration closed", <-states)
		require.Len(t, b.there.Requests(peertest.Integration), 11)
	})

	// A peer service that says no all day long is not away.
	t.Run("IgnoresRefusals", func(t *testing.T) {
		t.Parallel()
		cfg, states := breaker(once())
		b := setup(t, cfg)
		b.there.Steer(peertest.Integration, peertest.Steering{
			Mode: peertest.ModeError, Status: 503, Body: json.RawMessage(`{"error":{"code":"SERVICE_UNAVAILABLE"}}`),
		})
		for range 20 {
			_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
			_ = requireFailure(t, err, "SERVICE_UNAVAILABLE", true)
		}
		require.Empty(t, states)
	})
}
