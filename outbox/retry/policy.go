// Package retry has the interface document's table of retry policies, over failsafe-go: how
// often and after which pauses a failed call is tried again, and when a breaker stops the calls
// to a partner for a while.
package retry

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"time"
)

// Policy says how a failed call is tried again: a row of the table.
type Policy struct {
	Retries    int           // after the first call; negative: none
	Backoff    time.Duration // before the first retry
	MaxBackoff time.Duration // Backoff doubles up to MaxBackoff; if not larger than Backoff, all pauses are equal
	Jitter     float64       // the share by which a pause may be longer, up to MaxBackoff, so that callers that failed together do not call together again

	FailureRate   float64       // the share of failures at which the breaker opens; negative: no breaker
	MinExecutions uint          // how many calls in Window the rate needs
	Window        time.Duration // over which the rate is taken
	OpenFor       time.Duration // until an open breaker lets one call through
}

// The rows of the document's table. The document gives the pauses, the retries and the failure
// rates; Window, MinExecutions and OpenFor are our choice.
var (
	// EventPublishing is for publishing to the bus. An event that the bus does not take waits in
	// the outbox. After the last retry the breaker opens; no event is dropped. There is no
	// jitter, because one process publishes.
	EventPublishing = Policy{
		Retries: 10, Backoff: 100 * time.Millisecond, MaxBackoff: 30 * time.Second,
		FailureRate: 0.5, MinExecutions: 10, Window: 2 * time.Minute, OpenFor: 30 * time.Second,
	}
	// ServiceCalls is for calls to a peer service. After the last retry the caller uses the
	// peer's fallback.
	ServiceCalls = Policy{
		Retries: 5, Backoff: 200 * time.Millisecond, MaxBackoff: 60 * time.Second, Jitter: 0.25,
		FailureRate: 0.3, MinExecutions: 10, Window: 30 * time.Second, OpenFor: 10 * time.Second,
	}
	// QueueOperations is for the queue, which is the database. After the last retry the failure
	// is logged as an error, and the retries begin again.
	QueueOperations = Policy{Retries: 3, Backoff: 5 * time.Second, MaxBackoff: 5 * time.Second, FailureRate: -1}
)

// Or returns p with its zero fields taken from a row of the table.
func (p Policy) Or(row Policy) Policy {
	p.Retries = cmp.Or(p.Retries, row.Retries)
	p.Backoff = cmp.Or(p.Backoff, row.Backoff)
	p.MaxBackoff = cmp.Or(p.MaxBackoff, row.MaxBackoff)
	p.Jitter = cmp.Or(p.Jitter, row.Jitter)
	p.FailureRate = cmp.Or(p.FailureRate, row.FailureRate)
	p.MinExecutions = cmp.Or(p.MinExecutions, row.MinExecutions)
	p.Window = cmp.Or(p.Window, row.Window)
	p.OpenFor = cmp.Or(p.OpenFor, row.OpenFor)
	return p
}

// Pause returns the pause before the nth retry, counted from 1, without jitter.
func (p Policy) Pause(n int) time.Duration {
	pause := p.Backoff
	for ; n > 1 && pause < p.MaxBackoff; n-- {
		pause = min(2*pause, p.MaxBackoff)
	}
	return pause
}

// spread makes a pause longer by a random share, never shorter: the table's figure is the least.
func (p Policy) spread(pause time.Duration) time.Duration {
	longest := min(pause+time.Duration(float64(pause)*p.Jitter), max(p.MaxBackoff, pause))
	return pause + rand.N(longest-pause+1)
}

// after makes a pause as long as the partner asked for, up to MaxBackoff.
func (p Policy) after(pause time.Duration, err error) time.Duration {
	var postponed *Postponed
	if errors.As(err, &postponed) {
		pause = max(pause, min(postponed.After, p.MaxBackoff))
	}
	return pause
}
