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

// answerWait bounds one exchange with the server. It is long because a full
// batch is synced to disk before it is answered; a lost connection ends the
// wait at once.
const answerWait = 15 * time.Second

// Bus is a connection to JetStream and, where it is embedded, the server
// itself. It is safe for concurrent use.
type Bus struct {
	cfg     Config
	url     string
	srv     *embedded // nil with an external server
	nc      *nats.Conn
	js      jetstream.JetStream // nil until the first connection; see joined
	batches atomic.Bool         // the events stream takes atomic batches

	// ctx ends with Close and is what every goroutine of the bus lives under.
	ctx  context.Context
	stop context.CancelCauseFunc

	// pause is how long a failed delivery waits for its next; tests shorten it.
	pause func(delivery int) time.Duration

	setup   sync.Mutex    // one at a time makes streams
	calling sync.Mutex    // one at a time calls the hooks
	doubt   chan struct{} // holds one: the streams are to be made sure of
	ready   chan struct{} // closed when they were made sure of for the first time
	begin   func()        // closes it

	// What is told once and counted: no connection, no streams, too few replicas.
	dialling, making, growing once.Errors

	mu     sync.Mutex
	closed bool
	hooks  []func()
	buried func(ctx context.Context, id, subject, reason string) error // told of dead letters; may be nil
	fence  fence                                                       // of the next publication
	moves  int                                                         // how often in a row it has refused
	events jetstream.Stream                                            // as it was last made sure of; nil: not yet, or it cannot be used
	heard  []string                                                    // subjects that somebody here consumes
	state  state
	// link ends when the connection does; a new one stands after a reconnect.
	link   context.Context
	unlink context.CancelCauseFunc
	work   sync.WaitGroup // whatever Close waits for; Add under mu and only while not closed
}

// Open joins the server at cfg.URL, or starts one, and returns when the streams
// are there. It waits for an external server until ctx ends, ten seconds at
// most.
func Open(ctx context.Context, cfg Config) (*Bus, error) {
	return open(ctx, cfg, func(b *Bus) error {
		if err := b.connect(ctx); err != nil {
			return err
		}
		_, err := b.ensureStreams(ctx)
		return err
	})
}

// Start is Open for who can do without an external server for a while: it returns at once,
// and the server is joined when it can be, whether it is away, has no JetStream to offer, or
// refuses us. The first error of each kind is logged, and Health has the last. Until the
// streams are there every call fails, and Consume waits; OnReconnect tells when they are.
//
// What no server can mend is an error still: a URL or a credentials file that cannot be
// read, readers' names that cannot be. The embedded server, which is never away, is started
// as by Open.
func Start(ctx context.Context, cfg Config) (*Bus, error) {
	if cfg.URL == "" {
		return Open(ctx, cfg)
	}
	return open(ctx, cfg, func(b *Bus) error { return b.checkCredentials() })
}

// open makes a bus ready with begin, and looks after it from then on.
func open(ctx context.Context, cfg Config, begin func(*Bus) error) (*Bus, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("open the bus: %w", err)
	}
	b := &Bus{cfg: cfg, url: cfg.URL, pause: redeliverAfter, doubt: make(chan struct{}, 1), ready: make(chan struct{})}
	b.begin = sync.OnceFunc(func() { close(b.ready) })
	b.ctx, b.stop = context.WithCancelCause(context.Background())
	b.newLink()
	b.dropLink() // there is no connection yet
	// Dialling looks at the bus's own context, which outlives this call.
	detach := context.AfterFunc(ctx, func() { b.stop(context.Cause(ctx)) })

	err := b.embed()
	if err == nil {
		err = begin(b)
	}
	if !detach() && err == nil {
		err = fmt.Errorf("open the bus: %w", context.Cause(ctx))
	}
	if err != nil {
		b.shut()
		return nil, err
	}
	b.background(b.keep)
	return b, nil
}

// embed starts the embedded server, where there is to be one.
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

// Await waits for the streams to have been made sure of once, until ctx ends, or for as
// long as given: usually the server is there, and whoever begins a moment later has no
// failure to tell of.
func (b *Bus) Await(ctx context.Context, most time.Duration) {
	enough := time.NewTimer(most)
	defer enough.Stop()
	select {
	case <-b.ready:
	case <-ctx.Done():
	case <-enough.C:
	}
}

// ClientURL is where another process can join this bus, or "" if none can. It
// holds the secret: do not log it.
func (b *Bus) ClientURL() string { return b.url }

// OnReconnect adds fn to what is called when the streams are there again: after a lost
// connection came back, after a stream that had vanished was made again, and after the first
// connection of Start. Each is the moment to compare what was published with what is stored.
// It is not called for the connection that Open made. Calls come one after the other, on a
// goroutine that Close waits for.
func (b *Bus) OnReconnect(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hooks = append(b.hooks, fn)
}

// Close ends consuming, waits for the handlers at work until ctx ends, and
// then stops the connection and the embedded server whether or not they are
// done. Closing twice is fine.
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
	b.shut()
	return err
}

// shut takes down what open has put up, last first.
func (b *Bus) shut() {
	b.stop(ErrClosed)
	b.mu.Lock()
	nc := b.nc
	b.mu.Unlock()
	if nc != nil {
		// Acknowledgements are written behind; without this the last are lost
		// and their messages come again.
		if nc.IsConnected() {
			_ = nc.FlushTimeout(2 * time.Second)
		}
		nc.Close()
	}
	if b.srv != nil {
		b.srv.stop()
	}
}

// enter counts the caller among what Close waits for, and leaves it to call
// the function that it gets.
func (b *Bus) enter() (leave func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	b.work.Add(1)
	return b.work.Done, nil
}

// joined is an error until there has been a first connection. Whoever uses js or nc asks
// first; from then on both stay.
func (b *Bus) joined() error {
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

// exchange is the context of one question to the server: it ends with ctx,
// with the connection, with the bus, and after answerWait.
func (b *Bus) exchange(ctx context.Context) (context.Context, context.CancelFunc) {
	b.mu.Lock()
	link := b.link
	b.mu.Unlock()
	ctx, end := context.WithCancelCause(ctx)
	if link.Err() != nil {
		end(context.Cause(link)) // now, and not when AfterFunc's goroutine gets to it
	}
	detach := context.AfterFunc(link, func() { end(context.Cause(link)) })
	ctx, release := context.WithTimeoutCause(ctx, answerWait, errNoAnswer)
	return ctx, func() {
		detach()
		release()
		end(nil)
	}
}

// why replaces "context canceled" by whose doing it was.
func why(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrReconnectBufExceeded) {
		return fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	return err
}
