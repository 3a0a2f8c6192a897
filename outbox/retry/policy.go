// Package retry is the interface document's table of retry policies, over
// failsafe-go: what fails is tried again as often and after as long as its row says,
// and where the row has a breaker, a partner that fails too often is left alone for
// a while.
package retry

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"time"
)

// Policy is how something that fails is tried again: a row of the table.
type Policy struct {
	Retries    int           // after the first try; negative: none
	Backoff    time.Duration // before the first retry
	MaxBackoff time.Duration // Backoff doubles up to here; where it is no more than Backoff, all pauses are alike
	Jitter     float64       // share by which each pause may be longer, up to MaxBackoff, so that who failed together does not come back together

	FailureRate   float64       // share of failures at which the breaker opens; negative: there is none
	MinExecutions uint          // tries in Window before the rate means anything
	Window        time.Duration // over which the rate is taken
	OpenFor       time.Duration // until an open breaker lets one try through
}

// The rows of the document's table. It gives the pauses, the retries and the
// thresholds; how long a breaker looks back and stays open is our choice.
var (
	// EventPublishing: an event that the bus does not take waits in the outbox,
	// whatever happens. After the last retry the breaker opens; no event is dropped.
	// Not spread: one process publishes.
	EventPublishing = Policy{
		Retries: 10, Backoff: 100 * time.Millisecond, MaxBackoff: 30 * time.Second,
		FailureRate: 0.5, MinExecutions: 10, Window: 2 * time.Minute, OpenFor: 30 * time.Second,
	}
	// ServiceCalls: a neighbour that does not answer. What follows the last retry is
	// the neighbour's fallback.
	ServiceCalls = Policy{
		Retries: 5, Backoff: 200 * time.Millisecond, MaxBackoff: 60 * time.Second, Jitter: 0.25,
		FailureRate: 0.3, MinExecutions: 10, Window: 30 * time.Second, OpenFor: 10 * time.Second,
	}
	// QueueOperations: the queue is the database. After the last retry it is said
	// loudly, and the next round begins.
	QueueOperations = Policy{Retries: 3, Backoff: 5 * time.Second, MaxBackoff: 5 * time.Second, FailureRate: -1}
)

// Or fills what p leaves open from a row of the table.
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

// Pause is how long to wait before the nth retry, the first being 1, unspread.
func (p Policy) Pause(n int) time.Duration {
	pause := p.Backoff
	for ; n > 1 && pause < p.MaxBackoff; n-- {
		pause = min(2*pause, p.MaxBackoff)
	}
	return pause
}

// spread makes a pause longer by a share, never shorter: the row's figure is the least.
func (p Policy) spread(pause time.Duration) time.Duration {
	longest := min(pause+time.Duration(float64(pause)*p.Jitter), max(p.MaxBackoff, pause))
	return pause + rand.N(longest-pause+1)
}

// after makes a pause as long as the partner asked for, and no longer than the policy's
// longest.
func (p Policy) after(pause time.Duration, err error) time.Duration {
	var asked *Postponed
	if errors.As(err, &asked) {
		pause = max(pause, min(asked.After, p.MaxBackoff))
	}
	return pause
}
