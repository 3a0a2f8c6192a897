package api

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/api/bucket"
)

// Limits are the rate limits of callers. The zero value means no limit. They apply to each process
// separately: behind a load balancer, a caller gets the limit of each process.
type Limits struct {
	// Tenants is the limit of each service of each tenant, Others the limit of each service without a
	// tenant.
	Tenants, Others bucket.Limit
	// FailedTokens is the number of invalid tokens that an IPv4 address or an IPv6 /64 network may
	// send. Above it no signature is verified.
	FailedTokens bucket.Limit
	// Proxies are the networks whose X-Forwarded-For is trusted; default: none.
	Proxies []netip.Prefix
	// Now is the clock; default: time.Now.
	Now func() time.Time
}

// mostBuckets bounds the number of remembered callers, and of remembered addresses.
const mostBuckets = 10_000

// payer identifies the bucket of a caller.
type payer struct{ tenant, service string }

// limits are the buckets of this process.
type limits struct {
	// requests holds the tokens of ordinary requests. Calls about a held lease (heartbeat, complete,
	// fail, release) have tokens of their own, so that a caller that creates too many tasks does not
	// lose its running work.
	requests, leases tenants
	strangers        *bucket.Buckets[netip.Addr]
	proxies          []netip.Prefix
}

// refusals count the requests of this process without a proper response, for the metrics.
type refusals struct {
	limited atomic.Int64 // over the caller's rate limit
	failed  atomic.Int64 // from an address with too many invalid tokens
	gone    atomic.Int64 // the client disconnected
	slow    atomic.Int64 // the client read too slowly
}

// tenants are the buckets of one kind.
type tenants struct {
	name            string
	tenants, others *bucket.Buckets[payer]
}

func newLimits(cfg Limits) *limits {
	kind := func(name string) tenants {
		return tenants{name, bucket.New[payer](cfg.Tenants, mostBuckets, cfg.Now), bucket.New[payer](cfg.Others, mostBuckets, cfg.Now)}
	}
	return &limits{
		requests: kind("requests"), leases: kind("leases"), proxies: cfg.Proxies,
		strangers: bucket.New[netip.Addr](cfg.FailedTokens, mostBuckets, cfg.Now),
	}
}

// spend takes n tokens from the caller's bucket, of which paid were taken before for the same
// request. It returns nil if the request may continue.
func (g *gate) spend(c *call, n, paid int) *Problem {
	// A dequeue is an ordinary request; every path below it is about a held lease.
	kind := g.limits.requests
	if strings.HasPrefix(c.path, leasesPath+"/") {
		kind = g.limits.leases
	}

	of := kind.others
	if c.caller.Tenant != "" {
		of = kind.tenants
	}
	if of.Limit().Off() {
		return nil
	}

	v := of.Take(payer{c.caller.Tenant, c.caller.Name}, n, paid)
	// draft-ietf-httpapi-ratelimit-headers: q tokens come back in w seconds; r are left, and after t
	// seconds there are q again.
	header := c.Header()
	header.Set("RateLimit-Policy", `"`+kind.name+`";q=`+strconv.Itoa(of.Limit().Burst)+`;w=`+seconds(of.Limit().Window()))
	header.Set("RateLimit", `"`+kind.name+`";r=`+strconv.Itoa(v.Left)+`;t=`+seconds(v.Full))
	if v.OK {
		return nil
	}

	c.refused = "too many " + kind.name
	g.refusals.limited.Add(1)
	return limited("the caller exceeds its rate limit: send the request again after Retry-After", v.Wait)
}

// limited is a 429 with the time to wait.
func limited(detail string, wait time.Duration) *Problem {
	return problem(http.StatusTooManyRequests, codeRateLimited, detail).with("Retry-After", seconds(max(wait, 1)))
}

// seconds rounds up to whole seconds.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// verify returns the caller that a request's token names. An error is an auth.InvalidToken, a
// *Problem, or an outage that leaves the token unverified. Once an address has sent too many invalid
// tokens, only tokens that were valid before are looked up, without a signature check.
func (g *gate) verify(c *call, r *http.Request, token string) (*auth.Caller, error) {
	from := g.limits.address(r)
	if v := g.limits.strangers.Has(from); !v.OK && !g.verifier.Known(token) {
		c.refused = "too many invalid tokens from the address"
		g.refusals.failed.Add(1)
		return nil, limited("too many invalid tokens were sent from this address: try again after Retry-After", v.Wait)
	}

	// Only invalid tokens count. An outage of the Auth Service does not lock an address out.
	caller, err := g.verifier.Verify(r.Context(), token)
	if auth.IsInvalid(err) {
		g.limits.strangers.Take(from, 1, 0)
	}

	return caller, err
}

// address is the client's address as far as it can be trusted. For IPv6 it is the /64 network,
// because a host usually has the whole network.
func (l *limits) address(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}

	// A zone is local to this host, and an IPv4 address may come in the form of IPv6.
	from := at.Addr().Unmap().WithZone("")
	if l.trusts(from) {
		from = l.forwarded(r, from)
	}
	if from.Is6() {
		// 64 is always a valid length.
		network, _ := from.Prefix(64)
		return network.Addr()
	}

	return from
}

func (l *limits) trusts(ip netip.Addr) bool {
	return slices.ContainsFunc(l.proxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// forwarded reads X-Forwarded-For from its end, as long as the addresses are trusted proxies. The
// first address that is no proxy was seen by a proxy itself; the addresses before it are the
// client's own claim.
func (l *limits) forwarded(r *http.Request, from netip.Addr) netip.Addr {
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		ip, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			return from
		}
		if from = ip.Unmap().WithZone(""); !l.trusts(from) {
			return from
		}
	}

	return from
}

// asProblem finds a *Problem in a chain of errors.
func asProblem(err error) (*Problem, bool) {
	var p *Problem
	return p, errors.As(err, &p)
}
