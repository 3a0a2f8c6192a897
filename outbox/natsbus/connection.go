package natsbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-3f7a0631/tes/outbox/once"
)

// answerTimeout bounds a request to the server. It is long because the server syncs a full batch
// to disk before the answer. A lost connection ends the wait at once.
const answerTimeout = 15 * time.Second

// connection is the connection to the server, and the embedded server if there is one. It decides
// how long a request may take, and which calls and goroutines Close waits for.
type connection struct {
	cfg    Config
	health *health
	url    string    // for other processes; see ClientURL
	srv    *embedded // nil with an external server

	// ctx ends with Close. Every goroutine of the bus ends with it.
	ctx  context.Context
	stop context.CancelCauseFunc

	recheck    chan struct{} // has room for one; asks the maintainer to ensure the streams soon
	dialErrors once.Errors   // of an outage, each kind logged once

	// The rest is guarded by mu. nc and js are nil until the first connection and are not changed
	// afterwards: after checkConnected they may be read without mu.
	mu         sync.Mutex
	nc         *nats.Conn
	js         jetstream.JetStream
	connCtx    context.Context // ends with the connection; a reconnect makes a new one
	cancelConn context.CancelCauseFunc
	closed     bool
	work       sync.WaitGroup // calls and goroutines that Close waits for; Add only while not closed
}

// newConnection returns a connection that is not connected yet; see connect and connectWithRetry.
func newConnection(cfg Config, health *health) *connection {
	c := &connection{cfg: cfg, health: health, url: cfg.URL, recheck: make(chan struct{}, 1)}
	c.ctx, c.stop = context.WithCancelCause(context.Background())

	// There is always a context of the connection, at first one that has ended.
	c.begin()
	c.lose()
	return c
}

// embed starts the embedded server, unless the configuration names an external one.
func (c *connection) embed() error {
	if c.cfg.URL != "" {
		return nil
	}

	srv, err := embed(c.cfg)
	if err != nil {
		return err
	}

	c.srv, c.url = srv, srv.clientURL(c.cfg)
	return nil
}

// begin makes the context of a new connection.
func (c *connection) begin() {
	connCtx, cancel := context.WithCancelCause(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()

	// Requests on the old connection end now, and not after their timeouts.
	if c.cancelConn != nil {
		c.cancelConn(ErrDisconnected)
	}

	c.connCtx, c.cancelConn = connCtx, cancel
}

// lose ends the connection's context, and with it every request in flight.
func (c *connection) lose() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancelConn(ErrDisconnected)
	c.health.recordLost()
}

// lost returns ErrClosed after Close, ErrDisconnected while there is no connection, and else nil.
func (c *connection) lost() error {
	switch {
	case c.ctx.Err() != nil:
		return ErrClosed
	case c.connContext().Err() != nil:
		return ErrDisconnected
	}
	return nil
}

// connContext returns a context that ends with the present connection, or has ended with the last.
func (c *connection) connContext() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connCtx
}

// checkConnected returns an error until the first connection was made. Call it before using js or
// nc. Unlike lost, it returns nil while a connection that was made is lost.
func (c *connection) checkConnected() error {
	c.mu.Lock()
	defer c.mu.Unlock()

	switch {
	case c.ctx.Err() != nil:
		return ErrClosed
	case c.js == nil:
		return ErrDisconnected
	}
	return nil
}

// requestContext returns the context of one request to the server. It ends with ctx, with the
// connection, with the bus, and after answerTimeout.
func (c *connection) requestContext(ctx context.Context) (context.Context, context.CancelFunc) {
	connCtx := c.connContext()
	ctx, end := context.WithCancelCause(ctx)
	if connCtx.Err() != nil {
		// At once: the goroutine of AfterFunc may run after the request was sent.
		end(context.Cause(connCtx))
	}

	detach := context.AfterFunc(connCtx, func() { end(context.Cause(connCtx)) })
	ctx, release := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	return ctx, func() {
		detach()
		release()
		end(nil)
	}
}

// cleanupContext returns a context for a request to the server that must be made although ctx has
// ended.
func cleanupContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), 5*time.Second, errNoAnswer)
}

// enter makes Close wait until the returned function is called.
func (c *connection) enter() (leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()

	if c.closed {
		return nil, ErrClosed
	}

	// Under mu, so that Close cannot begin to wait between the check and Add.
	c.work.Add(1)
	return c.work.Done, nil
}

// background runs work in a goroutine that Close waits for. Slow work on the NATS client's callback
// goroutine would delay the callback of the next disconnect.
func (c *connection) background(work func()) {
	leave, err := c.enter()
	if err != nil {
		return
	}

	go func() {
		defer leave()

		work()
	}()
}

// requestRecheck makes the maintainer ensure the streams soon.
func (c *connection) requestRecheck() {
	select {
	case c.recheck <- struct{}{}:
	default:
	}
}

// close implements Bus.Close.
func (c *connection) close(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}

	c.closed = true
	c.mu.Unlock()
	c.stop(ErrClosed)

	done := make(chan struct{})
	go func() {
		c.work.Wait()
		close(done)
	}()

	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("close the bus: handlers were still at work: %w", context.Cause(ctx))
	}

	c.teardown()
	return err
}

// teardown ends the connection and stops the embedded server.
func (c *connection) teardown() {
	c.stop(ErrClosed)
	c.mu.Lock()
	nc := c.nc
	c.mu.Unlock()
	if nc != nil {
		// The client buffers acknowledgements. Without a flush the last ones are lost and their
		// messages are delivered again.
		if nc.IsConnected() {
			_ = nc.FlushTimeout(2 * time.Second)
		}

		nc.Close()
	}

	if c.srv != nil {
		c.srv.stop()
	}
}

// cause replaces "context canceled" by the reason for the cancellation.
func cause(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}

	if ctx.Err() != nil {
		return context.Cause(ctx)
	}

	// The client reports a lost connection in two more ways.
	if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrReconnectBufExceeded) {
		return fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	return err
}
