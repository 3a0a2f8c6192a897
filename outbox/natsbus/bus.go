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
	js      jetstream.JetStream
	batches atomic.Bool // the events stream takes atomic batches

	// ctx ends with Close and is what every goroutine of the bus lives under.
	ctx  context.Context
	stop context.CancelCauseFunc

	// pause is how long a failed delivery waits for its next; tests shorten it.
	pause func(delivery int) time.Duration

	setup   sync.Mutex // one at a time makes streams
	calling sync.Mutex // one at a time calls the hooks

	mu     sync.Mutex
	closed bool
	hooks  []func()
	buried func(ctx context.Context, id, subject, reason string) error // told of dead letters; may be nil
	fence  fence                                                       // of the next publication
	moves  int                                                         // how often in a row it has refused
	events jetstream.Stream                                            // as it was last made sure of
	// link ends when the connection does; a new one stands after a reconnect.
	link   context.Context
	unlink context.CancelCauseFunc
	work   sync.WaitGroup // whatever Close waits for; Add under mu and only while not closed
}

// Open joins the server at cfg.URL, or starts one, and returns when the streams
// are there. It waits for an external server until ctx ends, ten seconds at
// most.
func Open(ctx context.Context, cfg Config) (*Bus, error) {
	cfg = cfg.withDefaults()
	if err := checkReaders(cfg.Readers); err != nil {
		return nil, fmt.Errorf("open the bus: %w", err)
	}
	b := &Bus{cfg: cfg, url: cfg.URL, pause: redeliverAfter}
	b.ctx, b.stop = context.WithCancelCause(context.Background())
	// Dialling looks at the bus's own context, which outlives this call.
	detach := context.AfterFunc(ctx, func() { b.stop(context.Cause(ctx)) })

	err := b.open(ctx)
	if !detach() && err == nil {
		err = fmt.Errorf("open the bus: %w", context.Cause(ctx))
	}
	if err != nil {
		b.shut()
		return nil, err
	}
	return b, nil
}

func (b *Bus) open(ctx context.Context) error {
	if b.cfg.URL == "" {
		srv, err := embed(b.cfg)
		if err != nil {
			return err
		}
		b.srv, b.url = srv, srv.clientURL(b.cfg)
	}
	if err := b.connect(ctx); err != nil {
		return err
	}
	if err := b.checkServer(ctx); err != nil {
		return err
	}
	_, err := b.ensureStreams(ctx)
	return err
}

// ClientURL is where another process can join this bus, or "" if none can. It
// holds the secret: do not log it.
func (b *Bus) ClientURL() string { return b.url }

// OnReconnect adds fn to what is called when a lost connection is back, and
// when a stream that had vanished was made again: either is the moment to
// compare what was published with what is stored. It is not called for the
// connection that Open made. Calls come one after the other, on a goroutine
// that Close waits for.
func (b *Bus) OnReconnect(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hooks = append(b.hooks, fn)
}

// Connected says whether the server can be spoken to at this moment.
func (b *Bus) Connected() bool { return b.nc.IsConnected() }

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
	if b.nc != nil {
		// Acknowledgements are written behind; without this the last are lost
		// and their messages come again.
		if b.nc.IsConnected() {
			_ = b.nc.FlushTimeout(2 * time.Second)
		}
		b.nc.Close()
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
