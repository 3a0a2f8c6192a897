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

// Line is a policy at work. All who call one partner share one, and with it the
// breaker.
type Line[R any] struct {
	policy   Policy
	executor failsafe.Executor[R]
}

// Options is what a Line does beside its policy. The zero value is a plain one.
type Options struct {
	// Breaker is asked before each try; default none is.
	Breaker *Breaker
	// FailFast ends at once when the breaker is open. Without it the pauses go on, in
	// the hope that it half-opens.
	FailFast bool
	// Worth says which errors are worth a retry; default all.
	Worth func(error) bool
	// Paused is told each retry before its pause, with Do's context; default nobody.
	Paused func(ctx context.Context, err error, pause time.Duration)
}

// New makes a Line.
func New[R any](p Policy, o Options) *Line[R] {
	// Not failsafe's own backoff: its jitter goes to either side of a figure.
	retries := retrypolicy.NewBuilder[R]().WithMaxRetries(max(p.Retries, 0)).ReturnLastFailure().
		WithDelayFunc(func(e failsafe.ExecutionAttempt[R]) time.Duration {
			return p.after(p.spread(p.Pause(e.Attempts())), e.LastError())
		})
	retries = retries.AbortIf(func(_ R, err error) bool {
		return o.FailFast && errors.Is(err, circuitbreaker.ErrOpen) || o.Worth != nil && err != nil && !o.Worth(err)
	})
	if o.Paused != nil {
		retries = retries.OnRetryScheduled(func(e failsafe.ExecutionScheduledEvent[R]) { o.Paused(e.Context(), e.LastError(), e.Delay) })
	}
	l := &Line[R]{policy: p, executor: failsafe.With[R](retries.Build())}
	if o.Breaker != nil {
		// It is inside: each retry counts, and asks for leave again.
		l.executor = l.executor.ComposeAny(o.Breaker.breaker)
	}
	return l
}

// Do tries until it succeeds, the retries are used up or ctx ends. The error is the
// last try's, and says why there was no further one.
func (l *Line[R]) Do(ctx context.Context, try func(context.Context) (R, error)) (R, error) {
	var none R
	if ctx.Err() != nil { // nobody waits: no try, and nothing held against the partner
		return none, context.Cause(ctx)
	}
	var last error
	got, err := l.executor.WithContext(ctx).Get(func() (R, error) {
		r, err := try(ctx)
		if err == nil {
			return r, nil
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
	// Time that ran out, or an open breaker, is less than what went before.
	if last != nil && !errors.Is(err, last) {
		err = fmt.Errorf("%w, after: %w", err, last)
	}
	return none, err
}
