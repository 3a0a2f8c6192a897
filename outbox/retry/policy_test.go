package retry_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox/retry"
)

var errAway = errors.New("nobody there")

// table is the interface document's "Retry Policies", row by row and word for word.
var table = []struct {
	InterfaceType   string
	Backoff         string
	MaxRetries      int
	CircuitBreaking string
	policy          retry.Policy
	pauses          []time.Duration
	longest         time.Duration
	opensAt         int // failures of a hundred tries; 0: never
}{
	{
		"Event Publishing", "Exponential (100ms-30s)", 10, "Yes, 50% failure threshold", retry.EventPublishing,
		[]time.Duration{
			100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond,
			3200 * time.Millisecond, 6400 * time.Millisecond, 12800 * time.Millisecond, 25600 * time.Millisecond, 30 * time.Second,
		},
		30 * time.Second, 50,
	},
	{
		"Service Calls", "Exponential (200ms-60s)", 5, "Yes, 30% failure threshold", retry.ServiceCalls,
		[]time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond},
		time.Minute, 30,
	},
	{
		"Task Queue Operations", "Fixed (5s)", 3, "No", retry.QueueOperations,
		[]time.Duration{5 * time.Second, 5 * time.Second, 5 * time.Second},
		5 * time.Second, 0,
	},
}

// The pauses of the policies as they are used are measured on a clock that moves only when
// everybody waits, with the breaker kept out of the way. A figure is the least, the row's
// last the most; service calls are spread in between.
func TestTableOfRetryPolicies(t *testing.T) {
	t.Parallel()
	for _, row := range table {
		t.Run(row.InterfaceType, func(t *testing.T) {
			t.Parallel()
			t.Run(fmt.Sprintf("%s, %d retries", row.Backoff, row.MaxRetries), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					p := row.policy
					got := pauses(t, p)
					require.Len(t, got, row.MaxRetries)
					for n, pause := range row.pauses {
						require.Equal(t, pause, p.Pause(n+1))
						require.GreaterOrEqual(t, got[n], pause)
						require.LessOrEqual(t, got[n], min(time.Duration(float64(pause)*(1+p.Jitter)), row.longest))
					}
					p.Retries = 20 // to see where it ends
					require.Equal(t, row.longest, pauses(t, p)[19])
				})
			})
			t.Run("breaker: "+row.CircuitBreaking, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					if row.opensAt == 0 {
						require.Negative(t, row.policy.FailureRate)
						return
					}
					require.Equal(t, retry.Closed, after(row.policy, 100-row.opensAt+1, row.opensAt-1).State)
					require.Equal(t, retry.Open, after(row.policy, 100-row.opensAt, row.opensAt).State)
				})
			})
		})
	}
}

// pauses are those between the tries of something that always fails.
func pauses(t *testing.T, p retry.Policy) []time.Duration {
	t.Helper()
	var all []time.Duration
	var told []time.Duration
	last := time.Now()
	retrier := retry.New[int](p, retry.Options{Paused: func(_ context.Context, err error, pause time.Duration) {
		require.ErrorIs(t, err, errAway)
		told = append(told, pause)
	}})
	_, err := retrier.Do(t.Context(), func(context.Context) (int, error) {
		all = append(all, time.Since(last))
		last = time.Now()
		return 0, errAway
	})
	require.ErrorIs(t, err, errAway)
	require.Equal(t, all[1:], told)
	return slices.Clone(told)
}

// after is a breaker that has seen so much, the failures last.
func after(p retry.Policy, successes, failures int) retry.Status {
	b := retry.NewBreaker("b", p, nil)
	for range successes {
		b.Done(nil)
	}
	for range failures {
		b.Done(errAway)
	}
	return b.Status()
}

func TestPauseIsSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		seen := map[time.Duration]bool{}
		for range 20 {
			got := pauses(t, retry.ServiceCalls)
			require.GreaterOrEqual(t, got[0], 200*time.Millisecond)
			require.LessOrEqual(t, got[0], 250*time.Millisecond)
			seen[got[0]] = true
		}
		require.Greater(t, len(seen), 1)
	})
}

func TestOr(t *testing.T) {
	t.Parallel()
	require.Equal(t, retry.ServiceCalls, retry.Policy{}.Or(retry.ServiceCalls))
	require.Equal(t, -1, retry.Policy{Retries: -1}.Or(retry.ServiceCalls).Retries)
	require.Equal(t, time.Second, retry.Policy{OpenFor: time.Second}.Or(retry.EventPublishing).OpenFor)
}
