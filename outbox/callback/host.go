package callback

import (
	"time"

	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// host is what this process knows of one host that is called back. The breaker is the
// interface document's for service calls: it opens when 30 % of the calls fail.
type host struct {
	name    string
	breaker *retry.Breaker
	out     int       // trips to it; owned by the courier's loop
	seen    time.Time // last time it was used; owned by the courier's loop
}

func (r *courier) host(name string) *host {
	h := r.hosts[name]
	if h == nil {
		policy := retry.ServiceCalls
		policy.OpenFor = r.cfg.OpenFor
		h = &host{name: name, breaker: retry.NewBreaker(name, policy, func(now retry.Status) {
			r.cfg.Logger.Info("a callback host's breaker", "host", now.Name, "now", now.State)
		})}
		r.hosts[name] = h
	}
	h.seen = time.Now()
	return h
}

// room is how many more trips may go there.
func (h *host) room(most int) int {
	switch {
	case h.breaker.Status().State == retry.Closed:
		return most - h.out
	case h.out > 0 || h.breaker.Rest() > 0:
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
