package api_test

import (
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/bucket"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// handClock is moved by hand.
type handClock struct {
	mu sync.Mutex
	at time.Time // guarded by mu
}

func (c *handClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *handClock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func limitedTo(limits api.Limits) (*handClock, func(*api.Config)) {
	clock := &handClock{at: time.Date(2026, 1, 15, 10, 30, 0, 0, time.UTC)}
	limits.Now = clock.now
	return clock, func(cfg *api.Config) { cfg.Limits = limits }
}

func (b *testBundle) tokenOf(t *testing.T, service, tenant string) string {
	t.Helper()
	token, err := b.auth.Mint(peertest.TokenOptions{Service: service, Tenant: tenant, Scopes: scopes})
	require.NoError(t, err)
	return token
}

// limits demands a refusal for want of tokens, and answers how long to wait.
func (r *reply) limits(t *testing.T) time.Duration {
	t.Helper()
	r.fails(t, 429, "RATE_LIMITED")
	wait, err := strconv.Atoi(r.header.Get("Retry-After"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, wait, 1)
	return time.Duration(wait) * time.Second
}

// Each service of each tenant has its own tokens, whoever has none is not limited, and
// who waits for exactly as long as Retry-After says is let in.
func TestCallersAreHeldToTheirRate(t *testing.T) {
	t.Parallel()
	clock, limits := limitedTo(api.Limits{Tenants: bucket.Limit{Rate: 0.5, Burst: 3}})
	b := setup(t, limits)
	acme, other, none := b.tokenOf(t, orchestrator, "acme"), b.tokenOf(t, orchestrator, "other"), b.tokenOf(t, orchestrator, "")
	list := func(token string) *reply { return b.askWith(t, token, "GET", tasksPath+"/workflow/wf-1", nil) }

	for left := 2; left >= 0; left-- {
		r := list(acme)
		r.is(t, 200)
		require.Equal(t, `"requests";q=3;w=6`, r.header.Get("RateLimit-Policy"))
		require.Equal(t, `"requests";r=`+strconv.Itoa(left)+`;t=`+strconv.Itoa(2*(3-left)), r.header.Get("RateLimit"))
	}
	r := list(acme)
	wait := r.limits(t)
	require.Equal(t, 2*time.Second, wait)
	require.Equal(t, `"requests";r=0;t=6`, r.header.Get("RateLimit"))
	b.askWith(t, b.tokenOf(t, ui, "acme"), "GET", tasksPath+"/workflow/wf-1", nil).is(t, 200)
	list(other).is(t, 200)
	for range 10 {
		r := list(none)
		r.is(t, 200)
		require.Empty(t, r.header.Get("RateLimit"))
	}
	clock.forward(wait - 1)
	list(acme).limits(t)
	clock.forward(1)
	list(acme).is(t, 200)
	list(acme).limits(t)

	counts := b.ask(t, monitoring, "GET", tasksPath+"/metrics", nil).is(t, 200)["refusals"].(object)
	require.EqualValues(t, 3, counts["rateLimited"])
	require.Contains(t, b.log.String(), `"refused":"too many requests"`)
}

// A batch counts as its tasks, and is told honestly when to come back; one that is
// refused has made nothing.
func TestBatchesCountAsTheirTasks(t *testing.T) {
	t.Parallel()
	clock, limits := limitedTo(api.Limits{Others: bucket.Limit{Rate: 2, Burst: 10}})
	b := setup(t, limits)
	batch := func(n int) *reply {
		tasks := make([]any, n)
		for i := range tasks {
			tasks[i] = noop()
		}
		return b.ask(t, orchestrator, "POST", tasksPath+"/batch", object{"tasks": tasks})
	}
	batch(8).is(t, 200)
	var wait time.Duration
	b.unchanged(t, func() { wait = batch(5).limits(t) })
	require.Equal(t, 2*time.Second, wait, "two are left, less the one that asking took; five at two a second")
	clock.forward(wait)
	batch(5).is(t, 200)
	clock.forward(time.Hour)
	batch(25).is(t, 200) // more than the burst is owed
	wait = batch(1).limits(t)
	require.Equal(t, 8*time.Second, wait)
	clock.forward(wait)
	batch(1).is(t, 200)
}

// What is said of leases has tokens of its own: whoever creates too much keeps the work
// that runs.
func TestLeasesOutliveTooManyCreates(t *testing.T) {
	t.Parallel()
	_, limits := limitedTo(api.Limits{Others: bucket.Limit{Rate: 1, Burst: 4}})
	b := setup(t, limits)
	all := b.tokenOf(t, orchestrator, "")
	remote := noop(object{"executionConfig": object{"executor": "worker"}})
	b.askWith(t, all, "POST", tasksPath, remote).is(t, 201)
	lease := b.askWith(t, all, "POST", "/api/internal/leases", object{"workerId": "w"}).is(t, 200)["leases"].([]any)[0].(object)["leaseToken"].(string)
	b.askWith(t, all, "POST", tasksPath, remote).is(t, 201)
	b.askWith(t, all, "POST", tasksPath, remote).is(t, 201)
	b.askWith(t, all, "POST", tasksPath, remote).limits(t)

	r := b.askWith(t, all, "POST", "/api/internal/leases/"+lease+"/heartbeat", nil)
	r.is(t, 200)
	require.Equal(t, `"leases";r=3;t=1`, r.header.Get("RateLimit"))
	b.askWith(t, all, "POST", "/api/internal/leases/"+lease+"/complete", nil).is(t, 200)
	beats := []any{object{"leaseToken": lease}, object{"leaseToken": lease}, object{"leaseToken": lease}}
	b.askWith(t, all, "POST", "/api/internal/leases/heartbeats", object{"heartbeats": beats}).limits(t)
}

// Beyond so many bad tokens from one address no signature is looked at: only a token that
// was good before is let in.
func TestFailedTokensAreHeldToARate(t *testing.T) {
	t.Parallel()
	clock, limits := limitedTo(api.Limits{FailedTokens: bucket.Limit{Rate: 0.5, Burst: 3}, Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	b := setup(t, limits)
	good := b.tokenOf(t, orchestrator, "")
	ask := func(token, from string) *reply {
		return b.askWith(t, token, "GET", tasksPath+"/workflow/wf-1", nil, "X-Forwarded-For", from)
	}
	ask(good, "192.0.2.1").is(t, 200)
	bad := good[:strings.LastIndexByte(good, '.')] + ".c2lnbmF0dXJl"
	for range 3 {
		ask(bad, "192.0.2.1").fails(t, 401, "UNAUTHORIZED")
	}
	wait := ask(bad, "192.0.2.1").limits(t)
	require.Equal(t, 2*time.Second, wait)
	ask(b.tokenOf(t, ui, ""), "192.0.2.1").limits(t)
	ask(good, "192.0.2.1").is(t, 200)
	ask(b.tokenOf(t, ui, ""), "192.0.2.2").is(t, 200)
	ask(bad, "10.9.9.9, 192.0.2.1").limits(t) // what stands before is the client's word

	// Of IPv6 it is the network.
	for i := range 3 {
		ask(bad, "2001:db8:1:2::"+strconv.Itoa(i)).fails(t, 401, "UNAUTHORIZED")
	}
	ask(bad, "2001:db8:1:2:ffff::1").limits(t)
	ask(bad, "2001:db8:1:3::1").fails(t, 401, "UNAUTHORIZED")

	counts := b.ask(t, monitoring, "GET", tasksPath+"/metrics", nil).is(t, 200)["refusals"].(object)
	require.EqualValues(t, 4, counts["failedTokens"])
	clock.forward(wait)
	ask(b.tokenOf(t, ui, ""), "192.0.2.1").is(t, 200)
}

// Without a setting nobody is believed who says from where a request comes.
func TestForwardedIsNotBelieved(t *testing.T) {
	t.Parallel()
	_, limits := limitedTo(api.Limits{FailedTokens: bucket.Limit{Rate: 1, Burst: 1}})
	b := setup(t, limits)
	ask := func(from string) *reply {
		return b.askWith(t, "a.b.c", "GET", tasksPath+"/workflow/wf-1", nil, "X-Forwarded-For", from)
	}
	ask("192.0.2.1").fails(t, 401, "UNAUTHORIZED")
	ask("192.0.2.2").limits(t)
}
