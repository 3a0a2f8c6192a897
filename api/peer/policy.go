package peer

import (
	"context"
	"time"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// line is how one neighbour is called: the policy for service calls, with the
// neighbour's breaker. All calls to the neighbour share it.
type line struct {
	name    string
	breaker *retry.Breaker
	calls   *retry.Line[*answer]
}

// newLine: failFast ends a call at once when the breaker is open. Without it the call
// waits through its backoff, in the hope that the breaker half-opens.
func newLine(name string, p retry.Policy, failFast bool, changed func(retry.Status)) *line {
	p = p.Or(retry.ServiceCalls)
	breaker := retry.NewBreaker(name, p, changed)
	return &line{name, breaker, retry.New[*answer](p, retry.Options{
		Breaker: breaker, FailFast: failFast,
		Paused: func(ctx context.Context, err error, _ time.Duration) {
			jobs.Unanswered(ctx, &jobs.Outage{Neighbour: name, Err: err})
		},
	})}
}

// once is the same line for what is not worth a retry: it shares the breaker.
func (l *line) once() *line {
	return &line{l.name, l.breaker, retry.New[*answer](retry.Policy{}, retry.Options{Breaker: l.breaker})}
}

// ask makes the request, again and again where there is no answer. The error, if any,
// is a *jobs.Outage.
func (l *line) ask(ctx context.Context, request func(ctx context.Context) (*answer, error)) (*answer, error) {
	got, err := l.calls.Do(ctx, request)
	if err != nil {
		return nil, &jobs.Outage{Neighbour: l.name, Err: err}
	}
	jobs.Unanswered(ctx, nil)
	return got, nil
}
