package retry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
)

// Retrier calls functions under a Policy. All calls to one partner share a Retrier, and with it
// the breaker.
type Retrier[R any] struct {
	policy   Policy
	executor failsafe.Executor[R]
}

// Options adds to the policy of a Retrier. The zero value adds nothing.
type Options struct {
	// Breaker is asked before each try; default nil: no breaker.
	Breaker *Breaker
	// FailFast returns at once when the breaker is open. Without FailFast the retries go on,
	// because the breaker may half-open between two of them.
	FailFast bool
	// Worth reports whether an error is worth a retry; default: every error is.
	Retryable func(error) bool
	// Paused is called before the pause of each retry, with Do's context; default nil.
	Paused func(ctx context.Context, err error, pause time.Duration)
}

// New returns a Retrier.
func New[R any](p Policy, o Options) *Retrier[R] {
	// Not failsafe's own backoff: its jitter makes a pause shorter as well as longer.
	retries := retrypolicy.NewBuilder[R]().WithMaxRetries(max(p.Retries, 0)).ReturnLastFailure().
		WithDelayFunc(func(e failsafe.ExecutionAttempt[R]) time.Duration {
			return p.after(p.spread(p.Pause(e.Attempts())), e.LastError())
		})

	retries = retries.AbortIf(func(_ R, err error) bool {
		return o.FailFast && errors.Is(err, circuitbreaker.ErrOpen) || o.Retryable != nil && err != nil && !o.Retryable(err)
	})

	if o.Paused != nil {
		retries = retries.OnRetryScheduled(func(e failsafe.ExecutionScheduledEvent[R]) { o.Paused(e.Context(), e.LastError(), e.Delay) })
	}

	r := &Retrier[R]{policy: p, executor: failsafe.With[R](retries.Build())}
	if o.Breaker != nil {
		// Inside the retries: each try asks the breaker and counts.
		r.executor = r.executor.ComposeAny(o.Breaker.breaker)
	}

	return r
}

// Do calls try until a call succeeds, the retries are used up, or ctx ends. The error is that of
// the last call, with the reason why no other call followed.
func (r *Retrier[R]) Do(ctx context.Context, try func(context.Context) (R, error)) (R, error) {
	var none R
	// Without this check the breaker would count a failure that the partner never saw.
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}

	var last error
	got, err := r.executor.WithContext(ctx).Get(func() (R, error) {
		result, err := try(ctx)
		if err == nil {
			return result, nil
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return none, fmt.Errorf("%w: %w", errAbandoned, err)
		}

		last = err
		return none, err
	})
	if err == nil {
		return got, nil
	}

	// A deadline or an open breaker alone does not say why the calls failed.
	if last != nil && !errors.Is(err, last) {
		err = fmt.Errorf("%w, after: %w", err, last)
	}
	return none, err
}
