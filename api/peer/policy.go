package peer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/retrypolicy"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Policy is how a neighbour that does not answer is asked again. The defaults
// are the interface document's for service calls: exponential from 200 ms to
// 60 s, 5 retries, and a breaker that opens when 30 % of the calls fail. The
// whole is bounded by the caller's context, not by the policy.
type Policy struct {
	Retries       int           // after the first request; default 5, negative none
	Backoff       time.Duration // before the first retry, doubled for each further; default 200 ms
	MaxBackoff    time.Duration // default 60 s, never less than Backoff
	FailureRate   float64       // at which the breaker opens, between 0 and 1; default 0.3
	MinExecutions uint          // requests in Window before the rate means anything; default 10
	Window        time.Duration // over which the rate is taken; default 30 s
	OpenFor       time.Duration // until an open breaker lets one request through; default 10 s

	// OnBreaker is told each change of a neighbour's breaker: "open",
	// "half-open" or "closed". Default nobody. It must not block.
	OnBreaker func(neighbour, state string)

	// failFast ends a call at once when the breaker is open. Without it the
	// call waits through its backoff, in the hope that the breaker half-opens.
	failFast bool
}

func (p Policy) withDefaults() Policy {
	switch {
	case p.Retries == 0:
		p.Retries = 5
	case p.Retries < 0:
		p.Retries = 0
	}
	if p.Backoff <= 0 {
		p.Backoff = 200 * time.Millisecond
	}
	if p.MaxBackoff <= 0 {
		p.MaxBackoff = 60 * time.Second
	}
	// The library panics unless the longest wait exceeds the first.
	p.MaxBackoff = max(p.MaxBackoff, p.Backoff+1)
	if p.FailureRate <= 0 || p.FailureRate > 1 {
		p.FailureRate = 0.3
	}
	if p.MinExecutions == 0 {
		p.MinExecutions = 10
	}
	if p.Window <= 0 {
		p.Window = 30 * time.Second
	}
	if p.OpenFor <= 0 {
		p.OpenFor = 10 * time.Second
	}
	return p
}

// jitterFactor spreads each wait by this share to either side, so that callers
// who failed together do not ask together.
const jitterFactor = 0.25

// line is the policy of one neighbour, at work. All calls to the neighbour
// share it, and with it the breaker.
type line struct {
	name     string
	executor failsafe.Executor[*answer]
}

func newLine(name string, p Policy) *line {
	p = p.withDefaults()
	var breaker circuitbreaker.CircuitBreaker[*answer]
	breaker = circuitbreaker.NewBuilder[*answer]().
		WithFailureRateThreshold(p.FailureRate, p.MinExecutions, p.Window).
		WithDelay(p.OpenFor).
		WithSuccessThreshold(1).
		HandleIf(func(_ *answer, err error) bool {
			// A call that its caller gave up says nothing of the neighbour: many
			// tasks cancelled together must not open the breaker. But as the
			// trial of a half-open one it must not close it either.
			if errors.Is(err, errAbandoned) {
				return breaker.IsHalfOpen()
			}
			return err != nil
		}).
		OnStateChanged(func(e circuitbreaker.StateChangedEvent) {
			if p.OnBreaker != nil {
				p.OnBreaker(name, e.NewState.String())
			}
		}).
		Build()
	retry := retrypolicy.NewBuilder[*answer]().
		WithMaxRetries(p.Retries).
		WithBackoff(p.Backoff, p.MaxBackoff).
		WithJitterFactor(jitterFactor).
		ReturnLastFailure()
	if p.failFast {
		retry = retry.AbortOnErrors(circuitbreaker.ErrOpen)
	}
	// The breaker is inside: each retry counts, and asks for leave again.
	return &line{name: name, executor: failsafe.With[*answer](retry.Build(), breaker)}
}

// errAbandoned marks a request that ended because its caller did not want the
// answer any more.
var errAbandoned = errors.New("the caller gave up")

// ask makes the request, again and again where there is no answer. The error,
// if any, is a *jobs.Outage.
func (l *line) ask(ctx context.Context, request func(ctx context.Context) (*answer, error)) (*answer, error) {
	if ctx.Err() != nil { // nobody waits: no request, and nothing held against the neighbour
		return nil, &jobs.Outage{Neighbour: l.name, Err: context.Cause(ctx)}
	}
	var last error
	got, err := l.executor.WithContext(ctx).Get(func() (*answer, error) {
		a, err := request(ctx)
		if err == nil {
			return a, nil
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, fmt.Errorf("%w: %w", errAbandoned, err)
		}
		last = err
		return nil, err
	})
	if err == nil {
		return got, nil
	}
	// Time that ran out, or an open breaker, is less than what went before.
	if last != nil && !errors.Is(err, last) {
		err = fmt.Errorf("%w, after: %w", err, last)
	}
	return nil, &jobs.Outage{Neighbour: l.name, Err: err}
}
