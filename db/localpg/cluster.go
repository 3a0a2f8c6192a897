package localpg

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
)

// Cluster is a running PostgreSQL of our own. Its methods may be called from any
// goroutine.
type Cluster struct {
	cfg      Config
	machine  *machine
	account  account
	place    *place
	binaries binaries
	password string // of role tes over TCP
	port     int
	server   *server

	stopping atomic.Bool // its end is by our wish
	stop     sync.Once
	stopErr  error // guarded by stop
}

// URL is a connection string for role tes, a superuser: over TCP with a password,
// or over the socket of a throw-away cluster. Its database is tes; for a throw-away
// cluster that is also Unsafe it is postgres, and there is no tes.
func (c *Cluster) URL() string {
	if c.cfg.Throwaway && c.cfg.Unsafe {
		return c.DatabaseURL("postgres")
	}
	return c.DatabaseURL(database)
}

// DatabaseURL is URL for another database of the cluster.
func (c *Cluster) DatabaseURL(name string) string {
	if c.cfg.Throwaway {
		return c.socketURL(name)
	}
	return c.tcpURL(name)
}

// Version of the server, such as "15.20".
func (c *Cluster) Version() string { return c.binaries.version }

// Dir is the base directory. Others may keep things in it under the protection of
// our lock, from Start to Stop; in a throw-away cluster they are removed at Stop.
func (c *Cluster) Dir() string { return c.place.base }

// Done is closed when the server has ended, whoever ended it. The lock is held
// until Stop all the same.
func (c *Cluster) Done() <-chan struct{} { return c.server.done }

// Err says why the server ended by itself; nil as long as it runs, and after Stop.
func (c *Cluster) Err() error {
	if !c.server.ended() || c.stopping.Load() {
		return nil
	}
	return c.server.failure("ended by itself")
}

// Stop ends the server and gives its place back: what is durable is shut down
// cleanly and the lock released, what is throw-away is removed. Sessions are cut
// off, so stop those who have some before. When the context is done, the server is
// no longer asked to be clean; it recovers at the next start. Further calls wait
// for the first one and return the same.
func (c *Cluster) Stop(ctx context.Context) error {
	c.stop.Do(func() { c.stopErr = c.shutdown(ctx) })
	return c.stopErr
}

func (c *Cluster) shutdown(ctx context.Context) error {
	var err error
	if !c.server.ended() {
		c.stopping.Store(true)
		sig := syscall.SIGINT // fast: roll back, write everything down
		if c.cfg.Throwaway {
			sig = syscall.SIGQUIT // immediate: write nothing
		}
		c.server.end(sig, ctx.Done())
		if c.server.err != nil && !c.cfg.Throwaway {
			err = fmt.Errorf("stop PostgreSQL: %w", c.server.err)
		}
	}
	return errors.Join(err, c.place.close())
}

// abort is Stop for a cluster that did not come to be.
func (c *Cluster) abort() error {
	if c.server != nil {
		c.server.end(syscall.SIGQUIT, nil)
	}
	return c.place.close()
}
