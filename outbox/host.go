package outbox

import (
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// host is what this process knows of one host that is called back. The breaker is the
// interface document's for service calls: it opens when 30 % of the calls fail.
type host struct {
	name    string
	breaker circuitbreaker.CircuitBreaker[any]
	out     int       // trips to it; owned by the courier's loop
	seen    time.Time // last time it was used; owned by the courier's loop
}

// The breaker's window, and how many calls must be in it before the rate means
// anything.
const (
	failureRate   = 0.3
	failureWindow = 30 * time.Second
	fewestCalls   = 10
)

func (r *courier) host(name string) *host {
	h := r.hosts[name]
	if h == nil {
		h = &host{name: name, breaker: circuitbreaker.NewBuilder[any]().
			WithFailureRateThreshold(failureRate, fewestCalls, failureWindow).
			WithDelay(r.cfg.OpenFor).
			WithSuccessThreshold(1).
			OnStateChanged(func(e circuitbreaker.StateChangedEvent) {
				r.cfg.Logger.Info("a callback host's breaker", "host", name, "was", e.OldState.String(), "now", e.NewState.String())
			}).
			Build()}
		r.hosts[name] = h
	}
	h.seen = time.Now()
	return h
}

// room is how many more trips may go there.
func (h *host) room(most int) int {
	switch {
	case h.breaker.IsClosed():
		return most - h.out
	case h.out > 0 || h.breaker.RemainingDelay() > 0:
		return 0
	}
	return 1 // it is tried
}

// forget drops the hosts that nobody was called at for long: callers may name ever
// new ones.
func (r *courier) forget() {
	const long = 10 * time.Minute
	if time.Since(r.swept) < time.Minute {
		return
	}
	r.swept = time.Now()
	for name, h := range r.hosts {
		if h.out == 0 && time.Since(h.seen) > long {
			delete(r.hosts, name)
		}
	}
}
