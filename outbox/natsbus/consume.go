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
	// slots is how many messages of one consumer are processed at once. It is large because a
	// handler mostly waits for a commit that it shares with the others.
	slots = 128
	// ackWait is how long the server waits for the acknowledgement of a delivery. A handler may
	// take longer: every third of ackWait the server is told that it is still running.
	ackWait = 30 * time.Second
	// returnDelay is the delay of a message that is returned because Consume ends. Without a
	// delay the server would deliver it to the pending request of this same consumer, which is
	// being withdrawn, and the message would be lost for ackWait.
	returnDelay = 250 * time.Millisecond
)

// consumers has what every call of Consume needs.
type consumers struct {
	cfg         Config
	conn        *connection
	streams     *streams
	deadLetters *deadLetters

	// pause returns the time until a failed message is delivered again; tests shorten it.
	pause func(delivery int) time.Duration
}

// consume implements Bus.Consume.
func (cs *consumers) consume(ctx context.Context, durable, subject string, h outbox.Handler) error {
	leave, err := cs.conn.enter()
	if err != nil {
		return err
	}

	defer leave()

	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(cs.conn.ctx, end)()

	// A failure to create the durable does not end Consume: run tries again every second.
	c := &consumer{consumers: cs, durable: durable, subject: subject, handle: h}
	c.ensure(ctx)
	c.run(ctx)
	return nil
}

// consumer is one call of Consume.
type consumer struct {
	*consumers
	durable string
	subject string
	handle  outbox.Handler

	pull   jetstream.Consumer // nil until create has succeeded
	outage once.Errors
}

// ensure creates the durable. It logs each kind of failure once.
func (c *consumer) ensure(ctx context.Context) {
	err := c.create(ctx)
	log := c.cfg.Logger.With("subject", c.subject)
	switch {
	case err == nil:
		if n, lasted := c.outage.Over(); n > 0 {
			log.Warn("consuming again", "failures", n, "after", lasted.Round(time.Millisecond))
		}
	case ctx.Err() != nil || errors.Is(err, ErrDisconnected):
	case c.outage.Note(err):
		log.Warn("consuming is interrupted", "error", err)
	}
}

// create finds the stream of the subject and creates the durable, unless it exists. It is called
// again when the durable or the stream is gone.
func (c *consumer) create(ctx context.Context) error {
	stream, err := c.streams.streamOf(ctx, c.subject)
	if err != nil {
		return err
	}

	ctx, done := c.conn.requestContext(ctx)
	defer done()

	pull, err := c.conn.js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable:       c.durable,
		FilterSubject: c.subject,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    -1, // the server's limit would only stop the deliveries; ours makes a dead letter
	})
	if err != nil {
		return fmt.Errorf("make consumer %s on stream %s: %w", c.durable, stream, cause(ctx, err))
	}

	c.pull = pull
	return nil
}

// run processes messages while there are free slots. It requests no message without a free slot, so
// that no message waits behind a slow handler, or is counted as delivered without being processed.
func (c *consumer) run(ctx context.Context) {
	var busy sync.WaitGroup
	defer busy.Wait()

	taken := make(chan struct{}, slots)
	act := func(msg jetstream.Msg) {
		busy.Go(func() {
			defer func() { <-taken }()

			c.process(ctx, msg)
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
			c.fetchMore(msg, slots-len(taken), func(more jetstream.Msg) {
				taken <- struct{}{} // never blocks: only this goroutine takes slots
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

		c.ensure(ctx)
	}
}

// fetchMore requests the messages that wait behind msg, at most so many, and calls act with each.
// One request for many messages is much faster than many requests.
func (c *consumer) fetchMore(msg jetstream.Msg, most int, act func(jetstream.Msg)) {
	meta, err := msg.Metadata()
	if err != nil || meta.NumPending == 0 || most <= 0 {
		return
	}

	// Never more than the server has: a request for more would wait.
	batch, err := c.pull.FetchNoWait(min(most, int(min(meta.NumPending, slots))))
	if err != nil {
		return // the next request returns the error
	}

	for more := range batch.Messages() {
		act(more)
	}
}

// next returns neither a message nor an error if no message came for a while.
func (c *consumer) next(ctx context.Context) (jetstream.Msg, error) {
	connCtx := c.conn.connContext()
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(connCtx, end)()

	if c.pull == nil || connCtx.Err() != nil {
		return nil, ErrDisconnected
	}

	msg, err := c.pull.Next(jetstream.FetchContext(ctx))
	// The request expired without a message: the subject is quiet.
	if errors.Is(err, nats.ErrTimeout) || errors.Is(err, jetstream.ErrNoMessages) {
		return nil, nil
	}
	return msg, err
}

// process calls the handler with one delivery and tells the server the result.
func (c *consumer) process(ctx context.Context, msg jetstream.Msg) {
	log := c.cfg.Logger.With("subject", msg.Subject())
	meta, err := msg.Metadata()
	if err != nil {
		log.Error("a delivery without JetStream's metadata", "error", err)
		return
	}

	log = log.With("stream_seq", meta.Sequence.Stream, "delivery", meta.NumDelivered)
	deliveries, limit := int(meta.NumDelivered), c.cfg.MaxDeliveries

	// Beyond the limit only if a process died in the handler each time.
	if deliveries > limit {
		c.sendToDeadLetters(ctx, msg, meta, fmt.Sprintf("given up after %d deliveries, the last of which was never answered", deliveries-1))
		return
	}

	err = c.runHandler(ctx, msg, meta)
	var poison *outbox.Poison
	switch {
	case err == nil:
		// The work is done even if ctx has ended. A lost acknowledgement costs a redelivery.
		ctx, done := cleanupContext(ctx)
		defer done()

		if err := msg.DoubleAck(ctx); err != nil {
			log.Warn("a handled message could not be acknowledged and will come again", "error", cause(ctx, err))
		}
	case errors.As(err, &poison):
		log.Warn("poison message", "reason", poison.Reason)
		c.sendToDeadLetters(ctx, msg, meta, poison.Reason)
	case ctx.Err() != nil:
		_ = msg.NakWithDelay(returnDelay)
	case deliveries >= limit:
		log.Error("message given up", "error", err)
		c.sendToDeadLetters(ctx, msg, meta, fmt.Sprintf("given up after %d deliveries: %v", deliveries, err))
	default:
		pause := c.pause(deliveries)
		log.Warn("message will come again", "in", pause, "error", err)
		_ = msg.NakWithDelay(pause) // if it is lost, the message is delivered again after ackWait
	}
}

// runHandler calls the handler and tells the server meanwhile that it is still running.
func (c *consumer) runHandler(ctx context.Context, msg jetstream.Msg, meta *jetstream.MsgMetadata) (err error) {
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
		// A message that makes the handler panic must not end the process.
		if p := recover(); p != nil {
			c.cfg.Logger.Error("message handler panicked", "subject", msg.Subject(), "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()

	return c.handle(ctx, delivery(msg, meta))
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

// redeliveryPause doubles from 1 s to 30 s.
func redeliveryPause(delivery int) time.Duration {
	return min(time.Second<<min(delivery-1, 5), 30*time.Second)
}

// wait waits for a duration; false if ctx ended first.
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
