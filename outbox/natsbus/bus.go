package natsbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-3f7a0631/tes/outbox/once"
)

// answerTimeout bounds a request to the server. It is long because the server syncs a full batch
// to disk before the answer. A lost connection ends the wait at once.
const answerTimeout = 15 * time.Second

// Bus is a connection to JetStream, with the server itself if it is embedded. It is safe for
// concurrent use.
type Bus struct {
	cfg     Config
	url     string
	srv     *embedded // nil with an external server
	nc      *nats.Conn
	js      jetstream.JetStream // nil until the first connection; see checkConnected
	batches atomic.Bool         // the events stream takes atomic batches

	// ctx ends with Close. Every goroutine of the bus ends with it.
	ctx  context.Context
	stop context.CancelCauseFunc

	// pause returns the time until a failed message is delivered again; tests shorten it.
	pause func(delivery int) time.Duration

	ensureMu  sync.Mutex    // serialises ensureStreams
	hooksMu   sync.Mutex    // serialises calls of hooks
	recheck   chan struct{} // has room for one; asks maintain to ensure the streams soon
	ready     chan struct{} // closed when the streams were ensured for the first time
	markReady func()        // closes ready

	// Errors of an outage, each kind logged once: no connection, no streams, too few replicas.
	dialErrors, setupErrors, replicaErrors once.Errors

	// The rest is guarded by mu.
	mu            sync.Mutex
	closed        bool
	hooks         []func()                                                    // called when the streams are there again
	onDeadLetter  func(ctx context.Context, id, subject, reason string) error // may be nil
	fence         fence                                                       // of the next publication
	fenceRefusals int                                                         // publications in a row that the fence has refused
	events        jetstream.Stream                                            // when it was ensured last; nil: not yet, or it cannot be used
	consumed      []string                                                    // subjects that Consume was called for
	state         state
	connCtx       context.Context // ends with the connection; a reconnect makes a new one
	cancelConn    context.CancelCauseFunc
	work          sync.WaitGroup // calls and goroutines that Close waits for; Add only while not closed
}

// Open connects to the server at cfg.URL, or starts one, and returns when the streams exist. Open
// waits for an external server until ctx ends, for ten seconds at most.
func Open(ctx context.Context, cfg Config) (*Bus, error) {
	return open(ctx, cfg, func(b *Bus) error {
		if err := b.connect(ctx); err != nil {
			return err
		}

		_, err := b.ensureStreams(ctx)
		return err
	})
}

// Start is Open without waiting for an external server: Start returns at once and connects in the
// background, whether the server is away, has no JetStream, or refuses the credentials. Each kind
// of error is logged once, and Health returns the last error. Until the streams exist, every call
// fails and Consume waits. OnReconnect's functions are called when the streams exist.
//
// Start returns an error for a configuration that no server could accept: a URL or a credentials
// file that cannot be read, invalid names of readers. The embedded server is started as by Open.
func Start(ctx context.Context, cfg Config) (*Bus, error) {
	if cfg.URL == "" {
		return Open(ctx, cfg)
	}
	return open(ctx, cfg, func(b *Bus) error { return b.checkCredentials() })
}

// open makes a bus, calls begin, and starts the goroutine that maintains the streams.
func open(ctx context.Context, cfg Config, begin func(*Bus) error) (*Bus, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("open the bus: %w", err)
	}

	b := &Bus{cfg: cfg, url: cfg.URL, pause: redeliveryPause, recheck: make(chan struct{}, 1), ready: make(chan struct{})}
	b.markReady = sync.OnceFunc(func() { close(b.ready) })
	b.ctx, b.stop = context.WithCancelCause(context.Background())
	b.beginConn()
	b.endConn() // there is no connection yet

	// Dialling ends with the context of the bus, which outlives this call; so ctx ends that one.
	detach := context.AfterFunc(ctx, func() { b.stop(context.Cause(ctx)) })

	err := b.embed()
	if err == nil {
		err = begin(b)
	}
	// ctx ended after begin had succeeded: the bus is stopped already.
	if !detach() && err == nil {
		err = fmt.Errorf("open the bus: %w", context.Cause(ctx))
	}
	if err != nil {
		b.teardown()
		return nil, err
	}

	b.background(b.maintain)
	return b, nil
}

// embed starts the embedded server, unless the configuration names an external one.
func (b *Bus) embed() error {
	if b.cfg.URL != "" {
		return nil
	}

	srv, err := embed(b.cfg)
	if err != nil {
		return err
	}

	b.srv, b.url = srv, srv.clientURL(b.cfg)
	return nil
}

// Await waits until the streams were ensured for the first time, until ctx ends, or for a
// duration. A process that waits a moment after Start usually begins without a logged failure.
func (b *Bus) Await(ctx context.Context, atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()

	select {
	case <-b.ready:
	case <-ctx.Done():
	case <-timer.C:
	}
}

// ClientURL returns the URL for other processes; empty if the server accepts only this process.
// The URL contains the secret: do not log it.
func (b *Bus) ClientURL() string { return b.url }

// OnReconnect adds a function that is called when the streams exist again: after a reconnect, after
// a deleted stream was created again, and after the first connection of Start. At that moment a
// caller should compare the published messages with the stored ones. fn is not called for the
// connection that Open made. Calls are made in sequence, on a goroutine that Close waits
// for.
func (b *Bus) OnReconnect(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hooks = append(b.hooks, fn)
}

// Close ends consuming and waits for running handlers until ctx ends. Then Close ends the
// connection and stops the embedded server, whether the handlers have returned or not. A second
// call does nothing.
func (b *Bus) Close(ctx context.Context) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}

	b.closed = true
	b.mu.Unlock()
	b.stop(ErrClosed)

	done := make(chan struct{})
	go func() {
		b.work.Wait()
		close(done)
	}()

	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("close the bus: handlers were still at work: %w", context.Cause(ctx))
	}

	b.teardown()
	return err
}

// teardown ends the connection and stops the embedded server.
func (b *Bus) teardown() {
	b.stop(ErrClosed)
	b.mu.Lock()
	nc := b.nc
	b.mu.Unlock()
	if nc != nil {
		// The client buffers acknowledgements. Without a flush the last ones are lost and their
		// messages are delivered again.
		if nc.IsConnected() {
			_ = nc.FlushTimeout(2 * time.Second)
		}

		nc.Close()
	}

	if b.srv != nil {
		b.srv.stop()
	}
}

// enter makes Close wait until the returned function is called.
func (b *Bus) enter() (leave func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	if b.closed {
		return nil, ErrClosed
	}

	// Under mu, so that Close cannot begin to wait between the check and Add.
	b.work.Add(1)
	return b.work.Done, nil
}

// checkConnected returns an error until the first connection was made. Call it before using js or
// nc, which are nil until then and are not changed afterwards.
func (b *Bus) checkConnected() error {
	b.mu.Lock()
	defer b.mu.Unlock()

	switch {
	case b.ctx.Err() != nil:
		return ErrClosed
	case b.js == nil:
		return ErrDisconnected
	}
	return nil
}

// requestContext returns the context of one request to the server. It ends with ctx, with the
// connection, with the bus, and after answerTimeout.
func (b *Bus) requestContext(ctx context.Context) (context.Context, context.CancelFunc) {
	b.mu.Lock()
	connCtx := b.connCtx
	b.mu.Unlock()
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
