package api_test

import (
	"context"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// cable lies between tes and the database, and can be cut, or blocked.
type cable struct {
	listener net.Listener
	network  string
	target   string
	busy     sync.WaitGroup

	mu    sync.Mutex
	cut   bool          // guarded by mu
	hold  chan struct{} // guarded by mu; not nil: what is sent waits for it
	conns []net.Conn    // guarded by mu
}

// lay answers a cable to a database, and the database's URL at its near end.
func lay(t *testing.T, direct string) (*cable, string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	cfg, err := pgconn.ParseConfig(direct)
	require.NoError(t, err)
	c := &cable{listener: listener}
	c.network, c.target = pgconn.NetworkAddress(cfg.Host, cfg.Port) // often a socket in a directory
	c.busy.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			c.connect(near)
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		c.sever(true)
		c.busy.Wait()
	})
	near, err := url.Parse(direct)
	require.NoError(t, err)
	host, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	query := near.Query()
	query.Set("host", host)
	query.Set("port", port)
	near.Host, near.RawQuery = "", query.Encode()
	return c, near.String()
}

func (c *cable) connect(near net.Conn) {
	far, err := (&net.Dialer{}).DialContext(context.Background(), c.network, c.target)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || c.cut {
		_ = near.Close()
		if far != nil {
			_ = far.Close()
		}
		return
	}
	c.conns = append(c.conns, near, far)
	c.busy.Go(func() { c.copy(far, near) })
	c.busy.Go(func() { c.copy(near, far) })
}

func (c *cable) copy(to, from net.Conn) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		c.mu.Lock()
		hold := c.hold
		c.mu.Unlock()
		if hold != nil {
			<-hold
		}
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}

// sever cuts every connection, and refuses new ones until it is mended.
func (c *cable) sever(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if c.hold != nil {
		close(c.hold)
		c.hold = nil
	}
	if cut {
		for _, conn := range c.conns {
			_ = conn.Close()
		}
		c.conns = nil
	}
}

// block lets nothing through, and breaks nothing.
func (c *cable) block() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = make(chan struct{})
}

// TestDatabaseAway: every operation answers 503 and when to come back, whether the
// database refuses or is silent, and works again when it is there again.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	direct := dbtest.New(t)
	wire, address := lay(t, dbtest.URL(direct))
	pool, err := pgpool.Open(t.Context(), address, pgpool.Config{Engine: true})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	b := setupOn(t, pool, address, func(c *api.Config) { c.RequestTimeout = 500 * time.Millisecond })
	path, _ := b.create(t, manual())

	type call struct {
		service, method, path string
		body                  any
	}
	calls := map[string]call{
		"create":     {orchestrator, "POST", tasksPath, noop()},
		"batch":      {orchestrator, "POST", tasksPath + "/batch", object{"tasks": []any{noop(), noop()}}},
		"why":        {ui, "GET", path + "/why", nil},
		"events":     {ui, "GET", path + "/events", nil},
		"attempts":   {ui, "GET", path + "/attempts", nil},
		"get":        {orchestrator, "GET", path, nil},
		"status":     {orchestrator, "PUT", path + "/status", object{"status": "RUNNING"}},
		"cancel":     {orchestrator, "POST", path + "/cancel", nil},
		"reassign":   {ui, "POST", path + "/reassign", object{"assigneeId": "jane"}},
		"claim":      {ui, "POST", path + "/claim", object{"userId": "jane"}},
		"unclaim":    {ui, "POST", path + "/unclaim", object{"userId": "jane"}},
		"complete":   {ui, "POST", path + "/complete", object{"userId": "jane"}},
		"claim-next": {ui, "POST", tasksPath + "/claim-next", object{"userId": "jane"}},
		"claimable":  {ui, "GET", tasksPath + "/user/jane?claimable=true", nil},
		"workflow":   {ui, "GET", tasksPath + "/workflow/wf-1", nil},
		"user":       {ui, "GET", tasksPath + "/user/jane", nil},
		"metrics":    {monitoring, "GET", tasksPath + "/metrics", nil},
		"define":     {orchestrator, "PUT", definitionsPath + "/d", definition()},
		"definition": {orchestrator, "GET", definitionsPath + "/d", nil},
		"list":       {orchestrator, "GET", definitionsPath, nil},
	}
	all := func(t *testing.T) {
		t.Helper()
		for name, c := range calls {
			r := b.ask(t, c.service, c.method, c.path, c.body)
			require.Equal(t, 503, r.status, "%s: %s", name, r.body)
			r.fails(t, 503, "UNAVAILABLE")
			require.Equal(t, "1", r.header.Get("Retry-After"), name)
			require.NotContains(t, string(r.body), "127.0.0.1", name)
		}
		b.askWith(t, "", "GET", "/readyz", nil).fails(t, 503, "UNAVAILABLE")
		b.askWith(t, "", "GET", "/livez", nil).is(t, 200)
	}
	wire.sever(true)
	all(t)
	wire.sever(false)
	b.askWith(t, "", "GET", "/readyz", nil).is(t, 200)
	b.ask(t, orchestrator, "GET", path, nil).is(t, 200)
	wire.block()
	all(t)
	wire.sever(true) // what hangs must end
	wire.sever(false)
	eventually(t, func() bool { return b.ask(t, orchestrator, "POST", tasksPath, noop()).status == 201 })
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		require.True(t, time.Now().Before(deadline), "it never came")
	}
}
