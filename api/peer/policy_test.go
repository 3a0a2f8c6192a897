package peer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// A peer service is called by the interface document's row for service calls, on a clock
// that moves only when everybody waits. Package retry has the rest.
func TestCallsAreServiceCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("nobody there")
		var asked []time.Time
		l := newLine("integration", retry.Policy{}, false, nil)
		_, err := l.ask(t.Context(), func(context.Context) (*answer, error) {
			asked = append(asked, time.Now())
			return nil, away
		})
		var outage *jobs.Outage
		require.ErrorAs(t, err, &outage)
		require.Equal(t, "integration", outage.PeerService)
		require.ErrorIs(t, err, away)
		require.Len(t, asked, 1+retry.ServiceCalls.Retries)
		for n := 1; n < len(asked); n++ {
			least := retry.ServiceCalls.Pause(n)
			require.GreaterOrEqual(t, asked[n].Sub(asked[n-1]), least)
			require.LessOrEqual(t, asked[n].Sub(asked[n-1]), least+least/4)
		}
	})
}

// What asks once counts for the breaker that the others ask.
func TestOnceSharesTheBreaker(t *testing.T) {
	t.Parallel()
	l := newLine("integration", retry.Policy{MinExecutions: 3}, true, nil)
	asked := 0
	for range 3 {
		_, err := l.once().ask(t.Context(), func(context.Context) (*answer, error) {
			asked++
			return nil, errors.New("nobody there")
		})
		require.Error(t, err)
	}
	require.Equal(t, 3, asked)
	_, err := l.ask(t.Context(), func(context.Context) (*answer, error) { asked++; return &answer{}, nil })
	require.ErrorIs(t, err, retry.ErrOpen)
	require.Equal(t, 3, asked)
}
