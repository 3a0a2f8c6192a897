package callback

import (
	"time"

	"github.com/seed-3f7a0631/tes/outbox/retry"
)

const (
	// hostCheckInterval is how often unused hosts are removed from memory.
	hostCheckInterval = time.Minute
	// unusedFor is how long a host must have no delivery to be removed.
	unusedFor = 10 * time.Minute
)

// host is the state of a callback host, as known to this process.
type host struct {
	name     string
	breaker  *retry.Breaker
	inFlight int       // deliveries to the host; owned by the loop
	usedAt   time.Time // when a delivery was claimed last; owned by the loop
}

// host returns the host with a name. The breaker of a new host follows the interface document's
// policy for service calls, and opens when 30 % of the calls fail.
func (l *loop) host(name string) *host {
	h := l.hosts[name]
	if h == nil {
		policy := retry.ServiceCalls
		policy.OpenFor = l.cfg.OpenFor
		h = &host{name: name, breaker: retry.NewBreaker(name, policy, func(now retry.Status) {
			l.cfg.Logger.Info("callback host's breaker changed", "host", now.Name, "now", now.State)
		})}
		l.hosts[name] = h
	}

	// A host in use is never removed.
	h.usedAt = time.Now()
	return h
}

// freeSlots returns how many more deliveries may go to the host, of slots in total. A host whose
// breaker is not closed gets one delivery at a time, when the breaker lets it through.
func (h *host) freeSlots(slots int) int {
	switch {
	case h.breaker.Status().State == retry.Closed:
		return slots - h.inFlight
	case h.inFlight > 0 || h.breaker.RemainingOpen() > 0:
		return 0
	}
	return 1
}

// removeUnusedHosts bounds the memory: callers may name ever new hosts.
func (l *loop) removeUnusedHosts() {
	if time.Since(l.hostsCheckedAt) < hostCheckInterval {
		return
	}

	l.hostsCheckedAt = time.Now()
	for name, h := range l.hosts {
		if h.inFlight == 0 && time.Since(h.usedAt) > unusedFor {
			delete(l.hosts, name)
		}
	}
}
