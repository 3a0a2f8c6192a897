package peer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// line is the way to call one peer service: the policy for service calls and the service's circuit
// breaker. All calls to the service share it.
type line struct {
	name    string
	breaker *retry.Breaker
	calls   *retry.Retrier[*answer]
	answers *atomic.Int64 // responses of the peer service so far, to any caller
}

// errNoAnswer is the outage of a request that hangs until the end of its attempt.
var errNoAnswer = errors.New("no response within the attempt's time, neither to this request nor to a later one")

// newLine makes a line. With failFast, a call ends at once while the breaker is open; otherwise the
// call waits through its backoff for the breaker to become half-open.
func newLine(name string, p retry.Policy, failFast bool, changed func(retry.Status)) *line {
	p = p.Or(retry.ServiceCalls)
	breaker := retry.NewBreaker(name, p, changed)
	calls := retry.New[*answer](p, retry.Options{
		Breaker: breaker, FailFast: failFast, Retryable: func(err error) bool { return !errors.Is(err, errRests) },
		Paused: func(ctx context.Context, err error, _ time.Duration) {
			jobs.ReportOutage(ctx, &jobs.Outage{PeerService: name, Err: err})
		},
	})
	return &line{name, breaker, calls, &atomic.Int64{}}
}

// once is a line without retries, for requests that are not worth one. It shares the breaker. Its
// responses do not count as answers of other requests.
func (l *line) once() *line {
	return &line{l.name, l.breaker, retry.New[*answer](retry.Policy{}, retry.Options{Breaker: l.breaker}), &atomic.Int64{}}
}

// ask sends the request, and again while there is no response. An error is a *jobs.Outage.
//
// A first request that hangs until the attempt's end is an outage too, unless the peer service has
// answered another request since: then the service works, and the task is slower than its timeout.
func (l *line) ask(ctx context.Context, request func(ctx context.Context) (*answer, error)) (*answer, error) {
	// Another caller's response proves that the service works.
	before := l.answers.Load()
	jobs.ReportRequest(ctx, func() *jobs.Outage {
		if l.answers.Load() != before {
			return nil
		}
		return &jobs.Outage{PeerService: l.name, Err: errNoAnswer}
	})
	got, err := l.calls.Do(ctx, request)
	if err != nil {
		return nil, &jobs.Outage{PeerService: l.name, Err: err}
	}

	l.answers.Add(1)
	jobs.ReportOutage(ctx, nil)
	return got, nil
}
