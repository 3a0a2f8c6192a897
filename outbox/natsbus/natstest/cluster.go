// Package natstest runs a NATS cluster for tests: several servers with JetStream inside this
// process, connected on loopback.
package natstest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// patience bounds every wait. An election takes up to ten seconds on an idle machine.
const patience = 2 * time.Minute

// Cluster is a number of servers that are configured for each other, running or not.
type Cluster struct {
	t       testing.TB
	opts    []*server.Options
	servers []*server.Server // nil: not running
}

// New returns a cluster of n servers that do not run yet. All servers are stopped when the test ends.
func New(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{t: t, servers: make([]*server.Server, n)}
	dir := t.TempDir()
	var routes []*url.URL
	for range n {
		routes = append(routes, &url.URL{Scheme: "nats", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))})
	}

	for i, own := range routes {
		port, err := strconv.Atoi(own.Port())
		require.NoError(t, err)
		c.opts = append(c.opts, &server.Options{
			ServerName: fmt.Sprintf("n%d", i), Host: "127.0.0.1", Port: freePort(t),
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}, Routes: routes,
			JetStream: true, StoreDir: filepath.Join(dir, strconv.Itoa(i)), JetStreamMaxMemory: 64 << 20, JetStreamMaxStore: 1 << 30,
			MaxPayload: 2 << 20, NoSigs: true, NoLog: true,
		})
	}

	t.Cleanup(func() {
		for i := range c.servers {
			c.Stop(i)
		}
	})

	return c
}

// Start runs some of the servers, by their number from 0 on, or all servers without a number. Start
// does not wait for the election of a leader: see WaitForLeader.
func (c *Cluster) Start(numbers ...int) {
	c.t.Helper()
	if len(numbers) == 0 {
		for i := range c.servers {
			numbers = append(numbers, i)
		}
	}

	for _, i := range numbers {
		opts := c.opts[i].Clone()
		srv, err := server.NewServer(opts)
		require.NoError(c.t, err)
		srv.Start()
		c.servers[i] = srv
	}

	for _, i := range numbers {
		require.True(c.t, c.servers[i].ReadyForConnections(patience), "server %d is not ready", i)
	}
}

// WaitForLeader returns when all running servers know the leader of JetStream.
func (c *Cluster) WaitForLeader() {
	c.t.Helper()
	require.Eventually(c.t, func() bool {
		led := false
		for _, srv := range c.servers {
			if srv == nil {
				continue
			}
			if !srv.JetStreamIsCurrent() {
				return false
			}

			led = led || srv.JetStreamIsLeader()
		}
		return led
	}, patience, 20*time.Millisecond, "JetStream has no leader")
}

// Stop stops one server.
func (c *Cluster) Stop(i int) {
	if c.servers[i] != nil {
		c.servers[i].Shutdown()
		c.servers[i].WaitForShutdown()
		c.servers[i] = nil
	}
}

// StreamLeader returns the number of the server that leads a stream of the global account; -1 while
// the stream has no leader.
func (c *Cluster) StreamLeader(stream string) int {
	for i, srv := range c.servers {
		if srv != nil && srv.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
			return i
		}
	}
	return -1
}

// WaitForStream returns when every server has all messages of a stream that all servers keep. Before
// that, stopping another server could end the majority.
func (c *Cluster) WaitForStream(stream string) {
	c.t.Helper()
	require.Eventually(c.t, func() bool {
		for _, srv := range c.servers {
			if srv == nil || !srv.JetStreamIsCurrent() || !srv.JetStreamIsStreamCurrent(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
				return false
			}
		}
		return c.StreamLeader(stream) >= 0
	}, patience, 20*time.Millisecond, "not every server has all of stream %s", stream)
}

// URL returns the URLs of all servers, running or not.
func (c *Cluster) URL() string {
	var urls []string
	for _, opts := range c.opts {
		urls = append(urls, fmt.Sprintf("nats://%s:%d", opts.Host, opts.Port))
	}
	return strings.Join(urls, ",")
}

// URLOf returns the URL of one server.
func (c *Cluster) URLOf(i int) string { return strings.Split(c.URL(), ",")[i] }

// Leaks returns the goroutines that a NATS server leaves behind if it is stopped while a stream is
// replicated to it. tes has no goroutines of these names.
func Leaks() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"),
	}
}

// given has the ports of all clusters of this process, whether a server listens there or not.
var given sync.Map

// freePort returns a port that is not in use, below the range that the system gives to clients, so
// that the port of a stopped server stays free.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 20_000 + rand.IntN(12_000)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}

		require.NoError(t, l.Close())
		if _, another := given.LoadOrStore(port, true); !another {
			return port
		}
	}

	require.FailNow(t, "there is no free port")
	return 0
}
