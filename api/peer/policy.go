package peer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// line is how one peer service is called: the policy for service calls, with the
// peer service's breaker. All calls to the peer service share it.
type line struct {
	name    string
	breaker *retry.Breaker
	calls   *retry.Retrier[*answer]
	answers *atomic.Int64 // that the peer service has given, to whomever
}

// errNoAnswer is the outage of a request that hangs to the end of its attempt.
var errNoAnswer = errors.New("no answer came within the attempt's time, to this request or to any other since it was sent")

// newLine: failFast ends a call at once when the breaker is open. Without it the call
// waits through its backoff, in the hope that the breaker half-opens.
func newLine(name string, p retry.Policy, failFast bool, changed func(retry.Status)) *line {
	p = p.Or(retry.ServiceCalls)
	breaker := retry.NewBreaker(name, p, changed)
	calls := retry.New[*answer](p, retry.Options{
		Breaker: breaker, FailFast: failFast, Worth: func(err error) bool { return !errors.Is(err, errRests) },
		Paused: func(ctx context.Context, err error, _ time.Duration) {
			jobs.Unanswered(ctx, &jobs.Outage{Neighbour: name, Err: err})
		},
	})
	return &line{name, breaker, calls, &atomic.Int64{}}
}

// once is the same line for what is not worth a retry: it shares the breaker. Its answers
// say nothing of other questions.
func (l *line) once() *line {
	return &line{l.name, l.breaker, retry.New[*answer](retry.Policy{}, retry.Options{Breaker: l.breaker}), &atomic.Int64{}}
}

// ask makes the request, again and again where there is no answer. The error, if any,
// is a *jobs.Outage.
//
// A first request that hangs to the attempt's end is an outage too, unless the peer service
// has answered anybody since it was sent: then the peer service is there, and the task is
// slower than its timeout.
func (l *line) ask(ctx context.Context, request func(ctx context.Context) (*answer, error)) (*answer, error) {
	before := l.answers.Load()
	jobs.Asking(ctx, func() *jobs.Outage {
		if l.answers.Load() != before {
			return nil
		}
		return &jobs.Outage{Neighbour: l.name, Err: errNoAnswer}
	})
	got, err := l.calls.Do(ctx, request)
	if err != nil {
		return nil, &jobs.Outage{Neighbour: l.name, Err: err}
	}
	l.answers.Add(1)
	jobs.Unanswered(ctx, nil)
	return got, nil
}
