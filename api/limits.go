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

// Limits say how much a caller may ask for. The zero value is no limit. They are of one
// process: behind a load balancer, a caller has as many as there are processes.
type Limits struct {
	// Tenants is the limit of each service of each tenant; Others of each service that
	// has none.
	Tenants, Others bucket.Limit
	// FailedTokens is how many tokens that are not valid an address may send: an IPv4
	// address, or an IPv6 network of 64 bits. Beyond it no signature is looked at.
	FailedTokens bucket.Limit
	// Proxies are the networks whose X-Forwarded-For is believed; default none.
	Proxies []netip.Prefix
	// Now is the clock; default the real one.
	Now func() time.Time
}

// mostBuckets bounds the callers, and the addresses, that are remembered.
const mostBuckets = 10_000

// payer is whose bucket it is.
type payer struct{ tenant, service string }

// limits are the buckets of this process.
type limits struct {
	// requests pay for all that is asked; what is said of a lease that is held
	// (heartbeat, complete, fail, release) has tokens of its own, so that a caller who
	// creates too much does not lose the work that runs.
	requests, leases tenants
	strangers        *bucket.Buckets[netip.Addr]
	proxies          []netip.Prefix

	// counted for the metrics
	limited, failed, gone, slow atomic.Int64
}

// tenants are buckets of one kind.
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

// spend takes n tokens of the caller's, of which paid were taken before for the same
// request. Nil: it may go on.
func (a *API) spend(c *call, n, paid int) *Problem {
	kind := a.limits.requests
	if strings.HasPrefix(c.path, leasesPath+"/") {
		kind = a.limits.leases
	}
	of := kind.others
	if c.caller.Tenant != "" {
		of = kind.tenants
	}
	if of.Limit().Off() {
		return nil
	}
	v := of.Take(payer{c.caller.Tenant, c.caller.Name}, n, paid)
	// draft-ietf-httpapi-ratelimit-headers: q tokens come back in w seconds; r are left,
	// and t seconds until there are q again.
	header := c.Header()
	header.Set("RateLimit-Policy", `"`+kind.name+`";q=`+strconv.Itoa(of.Limit().Burst)+`;w=`+seconds(of.Limit().Window()))
	header.Set("RateLimit", `"`+kind.name+`";r=`+strconv.Itoa(v.Left)+`;t=`+seconds(v.Full))
	if v.OK {
		return nil
	}
	c.refused = "too many " + kind.name
	a.limits.limited.Add(1)
	return limited("this caller has asked for more than it may: come back later", v.Wait)
}

// limited is an answer that says when to come back.
func limited(detail string, wait time.Duration) *Problem {
	return problem(http.StatusTooManyRequests, codeRateLimited, detail).with("Retry-After", seconds(max(wait, 1)))
}

// seconds are whole ones, and never too few.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// verify returns the caller that a request's token names. An error is an auth.InvalidToken, a
// *Problem, or one after which nothing is known of the token. Once an address has sent too many
// invalid tokens, only tokens that were valid before are looked at, which costs no signature check.
func (a *API) verify(c *call, r *http.Request, token string) (*auth.Caller, error) {
	from := a.limits.address(r)
	if v := a.limits.strangers.Has(from); !v.OK && !a.cfg.Verifier.Known(token) {
		c.refused = "too many bad tokens from there"
		a.limits.failed.Add(1)
		return nil, limited("too many tokens that are not valid have come from this address: come back later", v.Wait)
	}
	caller, err := a.cfg.Verifier.Verify(r.Context(), token)
	if auth.IsInvalid(err) {
		a.limits.strangers.Take(from, 1, 0)
	}
	return caller, err
}

// address is where a request comes from, as far as it is believed: of IPv6 the network,
// for whoever has one has all of it.
func (l *limits) address(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	from := at.Addr().Unmap().WithZone("")
	if l.trusts(from) {
		from = l.forwarded(r, from)
	}
	if from.Is6() {
		network, _ := from.Prefix(64) // it is never too long
		return network.Addr()
	}
	return from
}

func (l *limits) trusts(ip netip.Addr) bool {
	return slices.ContainsFunc(l.proxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// forwarded reads X-Forwarded-For from its end, for as long as those who wrote it are
// proxies of ours: the first who is not one, they saw themselves; what stands before is
// that one's word.
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

// asProblem is a *Problem among errors.
func asProblem(err error) (*Problem, bool) {
	var p *Problem
	return p, errors.As(err, &p)
}
