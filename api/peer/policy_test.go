package peer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
)

var errAway = errors.New("nobody there")

// TestPolicyDefaults holds the policy against the interface document, on a
// clock that moves only when everybody waits.
func TestPolicyDefaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLine("integration", Policy{})
		var asked []time.Time
		_, err := l.ask(t.Context(), func(context.Context) (*answer, error) {
			asked = append(asked, time.Now())
			return nil, errAway
		})
		var away *jobs.Outage
		require.ErrorAs(t, err, &away)
		require.ErrorIs(t, err, errAway)
		require.Len(t, asked, 6) // 5 retries
		for i, want := range []time.Duration{200, 400, 800, 1600, 3200} {
			want *= time.Millisecond
			require.InDelta(t, want, asked[i+1].Sub(asked[i]), float64(want)*jitterFactor+1)
		}
	})
}

func TestPolicyLongestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLine("integration", Policy{Retries: 12, MinExecutions: 100})
		var asked []time.Time
		_, err := l.ask(t.Context(), func(context.Context) (*answer, error) {
			asked = append(asked, time.Now())
			return nil, errAway
		})
		require.Error(t, err)
		last := asked[len(asked)-1].Sub(asked[len(asked)-2])
		require.InDelta(t, time.Minute, last, float64(time.Minute)*jitterFactor)
	})
}

func TestPolicyEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := newLine("integration", Policy{}).ask(ctx, func(context.Context) (*answer, error) { return nil, errAway })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, errAway) // and what went before is told
		require.Equal(t, time.Second, time.Since(began))

		calls := 0
		_, err = newLine("integration", Policy{}).ask(ctx, func(context.Context) (*answer, error) { calls++; return nil, nil })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, calls)
	})
}

// breakerBundle counts what gets through a breaker that has just opened.
type breakerBundle struct {
	line   *line
	states []string
	calls  int
	answer func() (*answer, error)
}

func (b *breakerBundle) ask(ctx context.Context) error {
	_, err := b.line.ask(ctx, func(context.Context) (*answer, error) {
		b.calls++
		return b.answer()
	})
	return err
}

func openBreaker(t *testing.T, p Policy) *breakerBundle {
	t.Helper()
	b := &breakerBundle{answer: func() (*answer, error) { return nil, errAway }}
	p.OnBreaker = func(_, state string) { b.states = append(b.states, state) }
	b.line = newLine("integration", p)
	for len(b.states) == 0 {
		require.Error(t, b.ask(t.Context()))
	}
	require.Equal(t, []string{"open"}, b.states)
	require.Equal(t, 10, b.calls)
	return b
}

func TestBreakerHalfOpens(t *testing.T) {
	t.Parallel()

	t.Run("AndCloses", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := openBreaker(t, Policy{Retries: -1})
			b.answer = func() (*answer, error) { return &answer{}, nil }
			<-time.After(10*time.Second - 1) // the bubble's clock
			require.Error(t, b.ask(t.Context()))
			require.Equal(t, 10, b.calls)
			<-time.After(1)
			require.NoError(t, b.ask(t.Context()))
			require.Equal(t, []string{"open", "half-open", "closed"}, b.states)
		})
	})

	t.Run("AndOpensAgain", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := openBreaker(t, Policy{Retries: -1})
			<-time.After(10 * time.Second)
			require.Error(t, b.ask(t.Context()))
			require.Equal(t, []string{"open", "half-open", "open"}, b.states)
			require.Error(t, b.ask(t.Context()))
			require.Equal(t, 11, b.calls) // one trial, no more
		})
	})

	t.Run("AndIsNotClosedByACancelledTrial", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := openBreaker(t, Policy{Retries: -1})
			<-time.After(10 * time.Second)
			ctx, cancel := context.WithCancel(t.Context())
			b.answer = func() (*answer, error) { cancel(); return nil, ctx.Err() }
			require.ErrorIs(t, b.ask(ctx), context.Canceled)
			require.Equal(t, []string{"open", "half-open", "open"}, b.states)
		})
	})
}

// Many tasks cancelled at once say nothing of the neighbour.
func TestBreakerIgnoresCancelledCalls(t *testing.T) {
	t.Parallel()
	var states []string
	l := newLine("integration", Policy{OnBreaker: func(_, state string) { states = append(states, state) }})
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := l.ask(ctx, func(context.Context) (*answer, error) { cancel(); return nil, ctx.Err() })
		require.ErrorIs(t, err, context.Canceled)
	}
	require.Empty(t, states)
}

// Who has a fallback does not wait for a breaker; who has none does.
func TestBreakerFailFast(t *testing.T) {
	t.Parallel()
	for name, failFast := range map[string]bool{"Brisk": true, "Patient": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := openBreaker(t, Policy{OpenFor: time.Hour, failFast: failFast})
				began := time.Now()
				require.Error(t, b.ask(t.Context()))
				require.Equal(t, failFast, time.Since(began) == 0)
				require.Equal(t, 10, b.calls)
			})
		})
	}
}
