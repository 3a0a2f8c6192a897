package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// each distinguishes a failing integration from a failing Integration Service. The service's
// circuit breaker covers all integrations, so that one integration that hangs or answers nonsense
// would stop the others. Failures of a few integrations therefore only count in their own breakers.
type each struct {
	policy  retry.Policy
	changed func(retry.Status)

	mu  sync.Mutex
	all map[string]*one // by integration id; guarded by mu
}

// one is a recently called integration.
type one struct {
	breaker *retry.Breaker
	failed  bool // its last request got no usable response
	at      time.Time
}

// mostEach bounds the number of remembered integrations, whose ids come from the authors of
// definitions.
const mostEach = 1000

// errRests ends a call at once because the integration's own breaker is open. The task is released
// to its queue, and its slot is free for another task.
var errRests = errors.New("the integration's circuit breaker is open")

// call sends one request of an integration, and decides which breaker counts a failure.
func (e *each) call(ctx context.Context, id string, request func(context.Context) (*answer, error)) (*answer, error) {
	breaker := e.of(id).breaker
	if !breaker.Allow() {
		return nil, retry.Excuse(fmt.Errorf("%s: %w", id, errRests))
	}

	got, err := request(ctx)
	if err == nil {
		e.record(id, false)
		breaker.Done(nil)
		return got, nil
	}

	// A cancelled request says nothing of the integration.
	if ctx.Err() == nil && e.alone(id, err) {
		breaker.Done(err)
		return nil, retry.Excuse(err)
	}

	// The result says nothing of the integration itself.
	breaker.Done(nil)
	return nil, err
}

// alone notes a failed request and returns whether the integration alone is to blame: the service
// was reached, and at least half of the recently called integrations work.
func (e *each) alone(id string, err error) bool {
	e.record(id, true)
	// A failed connection: the service itself was not reached.
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return false
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	bad, all := 0, 0
	for _, o := range e.all {
		if time.Since(o.at) > e.policy.Window {
			continue
		}
		all++
		if o.failed {
			bad++
		}
	}

	return 2*bad <= all
}

// record notes the result of a request.
func (e *each) record(id string, failed bool) {
	o := e.of(id)
	e.mu.Lock()
	defer e.mu.Unlock()
	o.failed, o.at = failed, time.Now()
}

// of finds or creates the record of an integration.
func (e *each) of(id string) *one {
	e.mu.Lock()
	defer e.mu.Unlock()
	if o := e.all[id]; o != nil {
		return o
	}

	// Forgetting everything is simple and rare. Open breakers are forgotten too: the next failures
	// open them again.
	if e.all == nil || len(e.all) >= mostEach {
		e.all = map[string]*one{}
	}

	o := &one{breaker: retry.NewBreaker(nameIntegration+"/"+id, e.policy, e.changed)}
	e.all[id] = o
	return o
}

// states are the breakers that are not closed, by name.
func (e *each) states() []retry.Status {
	e.mu.Lock()
	breakers := make([]*retry.Breaker, 0, len(e.all))
	for o := range maps.Values(e.all) {
		breakers = append(breakers, o.breaker)
	}

	e.mu.Unlock()

	// Outside the lock, because a breaker has a lock of its own.
	var states []retry.Status
	for _, b := range breakers {
		if s := b.Status(); s.State != retry.Closed {
			states = append(states, s)
		}
	}

	slices.SortFunc(states, func(a, b retry.Status) int { return strings.Compare(a.Name, b.Name) })
	return states
}
