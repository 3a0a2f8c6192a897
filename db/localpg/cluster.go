package localpg

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
)

// Cluster is a running private PostgreSQL. Safe for concurrent use.
type Cluster struct {
	cfg      Config
	machine  *machine
	account  account
	place    *place
	binaries binaries
	password string // of role tes, for TCP
	port     int
	server   *server

	stopping atomic.Bool // Stop ends the server
	stop     sync.Once
	stopErr  error // guarded by stop
}

// URL returns a connection string for role tes, a superuser: over TCP with a password, or
// over the socket of a throw-away cluster. The database is tes, except for a throw-away
// cluster with Unsafe, which has only the database postgres.
func (c *Cluster) URL() string {
	if c.cfg.Throwaway && c.cfg.Unsafe {
		return c.DatabaseURL("postgres")
	}
	return c.DatabaseURL(database)
}

// DatabaseURL returns the URL of another database of the cluster.
func (c *Cluster) DatabaseURL(name string) string {
	if c.cfg.Throwaway {
		return c.socketURL(name)
	}
	return c.tcpURL(name)
}

// Version returns the version of the server, such as "15.20".
func (c *Cluster) Version() string { return c.binaries.version }

// Dir returns the base directory. Other packages may keep files there under the protection
// of the lock, from Start to Stop; Stop of a throw-away cluster removes the files.
func (c *Cluster) Dir() string { return c.place.base }

// Done is closed when the server has ended, for whatever reason. The lock is held until
// Stop in any case.
func (c *Cluster) Done() <-chan struct{} { return c.server.done }

// Err returns why the server ended by itself; nil while the server runs, and after Stop.
func (c *Cluster) Err() error {
	if !c.server.ended() || c.stopping.Load() {
		return nil
	}
	return c.server.failure("ended by itself")
}

// Stop ends the server. A durable cluster is shut down cleanly and its lock released; a
// throw-away cluster is removed. Stop disconnects all sessions, so callers stop the users
// of the sessions first. When ctx ends, Stop no longer waits for a clean shutdown, and the
// server recovers at the next start. Further calls wait for the first call, and return the
// same error.
func (c *Cluster) Stop(ctx context.Context) error {
	c.stop.Do(func() { c.stopErr = c.shutdown(ctx) })
	return c.stopErr
}

func (c *Cluster) shutdown(ctx context.Context) error {
	var err error
	if !c.server.ended() {
		c.stopping.Store(true)

		// SIGINT is the fast shutdown: roll back, write a checkpoint. SIGQUIT writes nothing.
		sig := syscall.SIGINT
		if c.cfg.Throwaway {
			sig = syscall.SIGQUIT
		}

		c.server.end(sig, ctx.Done())

		// After SIGQUIT postgres exits with an error, which is expected.
		if c.server.err != nil && !c.cfg.Throwaway {
			err = fmt.Errorf("stop PostgreSQL: %w", c.server.err)
		}
	}

	return errors.Join(err, c.place.close())
}

// abort is Stop for a cluster whose start failed.
func (c *Cluster) abort() error {
	// The data is new or unchanged, so a clean shutdown is not needed.
	if c.server != nil {
		c.server.end(syscall.SIGQUIT, nil)
	}

	return c.place.close()
}
