package natsbus

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/once"
)

const (
	// places is how many messages of one consumer are acted on at once: many, for
	// a handler mostly waits for a commit that it shares with the others.
	places = 128
	// ackWait is how long the server waits for a word about a delivery. A
	// handler may take longer: we say that it is at work every third of it.
	ackWait = 30 * time.Second
	// handBack is how long a message rests that was given back because we stop.
	// At once would be too soon: the server would hand it to our own request
	// that is just being withdrawn, and nobody would see it for ackWait.
	handBack = 250 * time.Millisecond
)

// Consume gives every message on subject to h until ctx ends or the bus is
// closed, and then returns nil. Processes that name the same durable share its
// messages; a new durable starts with the oldest message kept. Many calls of h
// run at once, in no particular order.
//
// A message is acknowledged after h returns nil, and the server has to confirm
// it; still h may see one twice, and must know it by its id. After an error or
// a panic it comes again, later each time, and after Config.MaxDeliveries it
// ends on deadletter.<subject>, as a *outbox.Poison does at once.
//
// A server that is away, or does not let us consume, is waited for: the log has why, once.
func (b *Bus) Consume(ctx context.Context, durable, subject string, h outbox.Handler) error {
	leave, err := b.enter()
	if err != nil {
		return err
	}
	defer leave()
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(b.ctx, end)()

	c := &consumer{bus: b, durable: durable, subject: subject, handle: h}
	c.ready(ctx)
	c.run(ctx)
	return nil
}

// consumer is one call of Consume.
type consumer struct {
	bus     *Bus
	durable string
	subject string
	handle  outbox.Handler

	pull   jetstream.Consumer // nil until there is one
	outage once.Errors
}

// ready makes the durable if it can be made now, and tells once why not.
func (c *consumer) ready(ctx context.Context) {
	err := c.make(ctx)
	log := c.bus.cfg.Logger.With("subject", c.subject)
	switch {
	case err == nil:
		if n, lasted := c.outage.Over(); n > 0 {
			log.Warn("consuming goes on", "failures", n, "after", lasted.Round(time.Millisecond))
		}
	case ctx.Err() != nil || errors.Is(err, ErrDisconnected):
	case c.outage.Note(err):
		log.Warn("consuming is interrupted", "error", err)
	}
}

// make finds the stream and makes the durable on it. It is called again when that
// turns out to be gone.
func (c *consumer) make(ctx context.Context) error {
	stream, err := c.bus.streamOf(ctx, c.subject)
	if err != nil {
		return err
	}
	ctx, done := c.bus.exchange(ctx)
	defer done()
	pull, err := c.bus.js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable:       c.durable,
		FilterSubject: c.subject,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    -1, // the server's limit only stops delivering; ours ends on a dead letter
	})
	if err != nil {
		return fmt.Errorf("make consumer %s on stream %s: %w", c.durable, stream, why(ctx, err))
	}
	c.pull = pull
	return nil
}

// run hands out messages for as long as there are places. It asks for none that has
// no place: none waits behind a slow handler, and none is counted as delivered that
// nobody looks at.
func (c *consumer) run(ctx context.Context) {
	var busy sync.WaitGroup
	defer busy.Wait()
	taken := make(chan struct{}, places)
	act := func(msg jetstream.Msg) {
		busy.Go(func() {
			defer func() { <-taken }()
			c.act(ctx, msg)
		})
	}
	for {
		select {
		case <-ctx.Done():
			return
		case taken <- struct{}{}:
		}
		msg, err := c.next(ctx)
		if msg != nil {
			act(msg)
			c.backlog(msg, places-len(taken), func(more jetstream.Msg) {
				taken <- struct{}{} // there is room: nobody else takes any
				act(more)
			})
			continue
		}
		<-taken
		if err == nil || ctx.Err() != nil {
			continue
		}
		// The connection, the consumer or the stream is gone.
		if !wait(ctx, time.Second) {
			return
		}
		c.ready(ctx)
	}
}

// backlog gives act what waits behind a message, at most so many: one request for
// many is what makes a backlog quick.
func (c *consumer) backlog(msg jetstream.Msg, most int, act func(jetstream.Msg)) {
	meta, err := msg.Metadata()
	if err != nil || meta.NumPending == 0 || most <= 0 {
		return
	}
	batch, err := c.pull.FetchNoWait(min(most, int(min(meta.NumPending, places))))
	if err != nil {
		return // the next request says why
	}
	for more := range batch.Messages() {
		act(more)
	}
}

// next returns neither message nor error when nothing came for a while.
func (c *consumer) next(ctx context.Context) (jetstream.Msg, error) {
	c.bus.mu.Lock()
	link := c.bus.link
	c.bus.mu.Unlock()
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(link, end)()
	if c.pull == nil || link.Err() != nil {
		return nil, ErrDisconnected
	}
	msg, err := c.pull.Next(jetstream.FetchContext(ctx))
	if errors.Is(err, nats.ErrTimeout) || errors.Is(err, jetstream.ErrNoMessages) {
		return nil, nil
	}
	return msg, err
}

// act has one delivery handled and tells the server how that went.
func (c *consumer) act(ctx context.Context, msg jetstream.Msg) {
	log := c.bus.cfg.Logger.With("subject", msg.Subject())
	meta, err := msg.Metadata()
	if err != nil {
		log.Error("a delivery without JetStream's metadata", "error", err)
		return
	}
	log = log.With("stream_seq", meta.Sequence.Stream, "delivery", meta.NumDelivered)
	deliveries, limit := int(meta.NumDelivered), c.bus.cfg.MaxDeliveries

	// Only a process that dies in the handler gets this far beyond the limit.
	if deliveries > limit {
		c.bury(ctx, msg, meta, fmt.Sprintf("given up after %d deliveries, the last of which was never answered", deliveries-1))
		return
	}
	err = c.call(ctx, msg, meta)
	var poison *outbox.Poison
	switch {
	case err == nil:
		// The work is done even if ctx has ended; a lost acknowledgement only
		// costs a repetition.
		ctx, done := c.bus.goodbye(ctx)
		defer done()
		if err := msg.DoubleAck(ctx); err != nil {
			log.Warn("a handled message could not be acknowledged and will come again", "error", why(ctx, err))
		}
	case errors.As(err, &poison):
		log.Warn("poison message", "reason", poison.Reason)
		c.bury(ctx, msg, meta, poison.Reason)
	case ctx.Err() != nil:
		_ = msg.NakWithDelay(handBack)
	case deliveries >= limit:
		log.Error("message given up", "error", err)
		c.bury(ctx, msg, meta, fmt.Sprintf("given up after %d deliveries: %v", deliveries, err))
	default:
		pause := c.bus.pause(deliveries)
		log.Warn("message will come again", "in", pause, "error", err)
		_ = msg.NakWithDelay(pause) // if this is lost, ackWait brings it back
	}
}

// call runs the handler, and keeps the server patient meanwhile.
func (c *consumer) call(ctx context.Context, msg jetstream.Msg, meta *jetstream.MsgMetadata) (err error) {
	done := make(chan struct{})
	var beat sync.WaitGroup
	beat.Go(func() {
		tick := time.NewTicker(ackWait / 3)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = msg.InProgress()
			case <-done:
				return
			}
		}
	})
	defer beat.Wait()
	defer close(done)
	defer func() {
		if p := recover(); p != nil {
			c.bus.cfg.Logger.Error("message handler panicked", "subject", msg.Subject(), "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()
	return c.handle(ctx, delivery(msg, meta))
}

// goodbye is the context for a last word to the server, which must be said
// although ctx has ended.
func (b *Bus) goodbye(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), 5*time.Second, errNoAnswer)
}

func delivery(msg jetstream.Msg, meta *jetstream.MsgMetadata) outbox.Delivery {
	header := make(map[string]string, len(msg.Headers()))
	for k := range msg.Headers() {
		header[k] = msg.Headers().Get(k)
	}
	return outbox.Delivery{
		Subject:     msg.Subject(),
		Header:      header,
		Body:        msg.Data(),
		Redelivered: int(meta.NumDelivered),
		At:          meta.Timestamp,
	}
}

// redeliverAfter doubles from 1 s to 30 s.
func redeliverAfter(delivery int) time.Duration {
	return min(time.Second<<min(delivery-1, 5), 30*time.Second)
}

// wait is false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
