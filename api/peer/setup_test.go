package peer_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testBundle is the fake peer services and the clients that call them.
type testBundle struct {
	ctx   context.Context
	there *peertest.Server
	peer  *peer.Services
}

// quick is the default policy without its long waits, and with a breaker that
// stays out of the way.
func quick() retry.Policy {
	return retry.Policy{Backoff: time.Millisecond, MaxBackoff: 2 * time.Millisecond, MinExecutions: 100_000}
}

// once is quick without retries.
func once() retry.Policy {
	p := quick()
	p.Retries = -1
	return p
}

func setup(t *testing.T, cfg peer.Config) *testBundle {
	t.Helper()
	there, err := peertest.Start(peertest.Config{})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	cfg.BaseURL = there.URL()
	peers, err := peer.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		peers.Close()
		require.NoError(t, there.Close(ctx))
		cancel()
	})
	return &testBundle{ctx: ctx, there: there, peer: peers}
}

// requireFailure is a refusal with this code, told apart from an outage.
func requireFailure(t *testing.T, err error, code string, retryable bool) *jobs.Failure {
	t.Helper()
	var failure *jobs.Failure
	require.ErrorAs(t, err, &failure)
	require.Equal(t, code, failure.Code)
	require.NotNil(t, failure.Retryable)
	require.Equal(t, retryable, *failure.Retryable)
	return failure
}

func requireOutage(t *testing.T, err error, peerName string) {
	t.Helper()
	var away *jobs.Outage
	require.ErrorAs(t, err, &away)
	require.Equal(t, peerName, away.PeerService)
	require.False(t, errors.As(err, new(*jobs.Failure)))
}
