package retry_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox/retry"
)

func TestLineEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		retrier := retry.New[int](retry.ServiceCalls, retry.Options{})
		_, err := retrier.Do(ctx, func(context.Context) (int, error) { return 0, errAway })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, errAway) // and what went before is told
		require.Equal(t, time.Second, time.Since(began))

		calls := 0
		_, err = retrier.Do(ctx, func(context.Context) (int, error) { calls++; return 0, nil })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, calls)
	})
}

func TestLineRepeatsWhatIsWorthIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		retrier := retry.New[int](retry.QueueOperations, retry.Options{Retryable: func(err error) bool { return errors.Is(err, errAway) }})
		answers := []error{errAway, errAway, broken}
		calls := 0
		_, err := retrier.Do(t.Context(), func(context.Context) (int, error) { calls++; return 0, answers[calls-1] })
		require.ErrorIs(t, err, broken)
		require.Equal(t, 3, calls)

		got, err := retrier.Do(t.Context(), func(context.Context) (int, error) { return 7, nil })
		require.NoError(t, err)
		require.Equal(t, 7, got)
	})
}

// breakerBundle counts what gets through a breaker that has just opened.
type breakerBundle struct {
	retrier *retry.Retrier[int]
	breaker *retry.Breaker
	states  []retry.State
	calls   int
	answer  func() error
}

func (b *breakerBundle) ask(ctx context.Context) error {
	_, err := b.retrier.Do(ctx, func(context.Context) (int, error) {
		b.calls++
		return 0, b.answer()
	})
	return err
}

func openBreaker(t *testing.T, p retry.Policy, failFast bool) *breakerBundle {
	t.Helper()
	p = p.Or(retry.ServiceCalls)
	b := &breakerBundle{answer: func() error { return errAway }}
	b.breaker = retry.NewBreaker("integration", p, func(s retry.Status) {
		require.Equal(t, "integration", s.Name)
		b.states = append(b.states, s.State)
	})
	b.retrier = retry.New[int](p, retry.Options{Breaker: b.breaker, FailFast: failFast})
	require.Equal(t, retry.Status{Name: "integration", State: retry.Closed, Since: time.Now()}, b.breaker.Status())
	for len(b.states) == 0 {
		require.Error(t, b.ask(t.Context()))
	}
	require.Equal(t, []retry.State{retry.Open}, b.states)
	require.Equal(t, 10, b.calls)
	return b
}

func TestBreakerHalfOpens(t *testing.T) {
	t.Parallel()

	t.Run("AndCloses", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := openBreaker(t, retry.Policy{Retries: -1}, false)
			opened := time.Now()
			b.answer = func() error { return nil }
			require.Equal(t, retry.Status{Name: "integration", State: retry.Open, Since: opened}, b.breaker.Status())
			<-time.After(10*time.Second - 1) // the bubble's clock
			require.ErrorIs(t, b.ask(t.Context()), retry.ErrOpen)
			require.EqualValues(t, 1, b.breaker.RemainingOpen())
			require.Equal(t, 10, b.calls)
			<-time.After(1)
			// It says so before anybody has tried.
			require.Equal(t, retry.Status{Name: "integration", State: retry.HalfOpen, Since: opened.Add(10 * time.Second)}, b.breaker.Status())
			require.NoError(t, b.ask(t.Context()))
			require.Equal(t, []retry.State{retry.Open, retry.HalfOpen, retry.Closed}, b.states)
			require.Equal(t, retry.Status{Name: "integration", State: retry.Closed, Since: time.Now()}, b.breaker.Status())
		})
	})

	t.Run("AndOpensAgain", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := openBreaker(t, retry.Policy{Retries: -1}, false)
			<-time.After(10 * time.Second)
			require.ErrorIs(t, b.ask(t.Context()), errAway)
			require.Equal(t, []retry.State{retry.Open, retry.HalfOpen, retry.Open}, b.states)
			require.ErrorIs(t, b.ask(t.Context()), retry.ErrOpen)
			require.Equal(t, 11, b.calls) // one trial, no more
		})
	})

	t.Run("AndIsNotClosedByACancelledTrial", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := openBreaker(t, retry.Policy{Retries: -1}, false)
			<-time.After(10 * time.Second)
			ctx, cancel := context.WithCancel(t.Context())
			b.answer = func() error { cancel(); return ctx.Err() }
			require.ErrorIs(t, b.ask(ctx), context.Canceled)
			require.Equal(t, []retry.State{retry.Open, retry.HalfOpen, retry.Open}, b.states)
		})
	})

	t.Run("WhenThePartnerSaysItIsBack", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := openBreaker(t, retry.Policy{Retries: -1}, false)
			require.False(t, b.breaker.Allow())
			b.breaker.Probe()
			require.Zero(t, b.breaker.RemainingOpen())
			require.True(t, b.breaker.Allow())
			require.False(t, b.breaker.Allow(), "one at a time")
			b.breaker.Done(nil)
			b.breaker.Probe()
			require.Equal(t, retry.Closed, b.breaker.Status().State)
			b.breaker.Trip()
			require.Equal(t, retry.Open, b.breaker.Status().State)
		})
	})
}

// Many calls cancelled at once say nothing of the partner.
func TestBreakerIgnoresCancelledCalls(t *testing.T) {
	t.Parallel()
	b := retry.NewBreaker("integration", retry.ServiceCalls, nil)
	retrier := retry.New[int](retry.ServiceCalls, retry.Options{Breaker: b})
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := retrier.Do(ctx, func(context.Context) (int, error) { cancel(); return 0, ctx.Err() })
		require.ErrorIs(t, err, context.Canceled)
	}
	require.Equal(t, retry.Closed, b.Status().State)
}

// Who has a fallback does not wait for a breaker; who has none does.
func TestBreakerFailFast(t *testing.T) {
	t.Parallel()
	for name, failFast := range map[string]bool{"Brisk": true, "Patient": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := openBreaker(t, retry.Policy{OpenFor: time.Hour}, failFast)
				began := time.Now()
				require.Error(t, b.ask(t.Context()))
				require.Equal(t, failFast, time.Since(began) == 0)
				require.Equal(t, 10, b.calls)
			})
		})
	}
}
