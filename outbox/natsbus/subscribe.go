package natsbus

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-3f7a0631/tes/outbox"
)

// From is where Subscribe starts: New, All, or a stream sequence.
type From uint64

const (
	// New starts with the first message that is stored after Subscribe has returned.
	New From = 0
	// All starts with the oldest stored message.
	All From = 1
)

// Subscribe calls fn with every message on subject and its stream sequence, in order. Other
// consumers get the messages as well. Subscribe returns when the subscription exists; one goroutine
// calls fn until ctx ends or the bus is closed. After a reconnect fn sees no gap and no message
// twice. One stream must capture the subject; an empty subject is every event.
func (b *Bus) Subscribe(ctx context.Context, subject string, from From, fn func(d outbox.Delivery, seq uint64)) error {
	leave, err := b.conn.enter()
	if err != nil {
		return err
	}

	if subject == "" {
		subject = eventSubjects
	}

	show := func(msg jetstream.Msg) {
		// Only a message that is not from JetStream has no metadata.
		if meta, err := msg.Metadata(); err == nil {
			fn(delivery(msg, meta), meta.Sequence.Stream)
		}
	}

	feed, err := b.follow(ctx, subject, from, show)
	if err != nil {
		leave()
		return fmt.Errorf("subscribe to %s: %w", subject, err)
	}

	// The feed stops with the caller or with the bus, whichever ends first.
	stopWithCaller := context.AfterFunc(ctx, feed.Stop)
	stopWithBus := context.AfterFunc(b.conn.ctx, feed.Stop)
	go func() {
		defer leave()

		<-feed.Closed()
		stopWithCaller()
		stopWithBus()
	}()

	return nil
}

func (b *Bus) follow(ctx context.Context, subject string, from From, show jetstream.MessageHandler) (jetstream.ConsumeContext, error) {
	name, err := b.streams.streamOf(ctx, subject)
	if err != nil {
		return nil, err
	}

	ctx, done := b.conn.requestContext(ctx)
	defer done()

	if from == New {
		// The policy "new" would skip messages that are stored while the first connection is
		// lost.
		stream, err := b.conn.js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("read the tail of stream %s: %w", name, cause(ctx, err))
		}

		from = From(stream.CachedInfo().State.LastSeq + 1)
	}

	pull, err := b.conn.js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{subject},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    uint64(from),
	})
	if err != nil {
		return nil, fmt.Errorf("make a consumer on stream %s: %w", name, cause(ctx, err))
	}
	return pull.Consume(show)
}

// Send publishes one message on a subject that is not an event's, and returns when it is stored.
// Fakes of peer services use Send. A Nats-Msg-Id in header makes a repetition harmless.
func (b *Bus) Send(ctx context.Context, subject string, header map[string]string, body []byte) error {
	if err := b.conn.checkConnected(); err != nil {
		return err
	}

	msg := &nats.Msg{Subject: subject, Header: make(nats.Header, len(header)), Data: body}
	for k, v := range header {
		msg.Header[k] = []string{v}
	}

	ctx, done := b.conn.requestContext(ctx)
	defer done()

	if _, err := b.conn.js.PublishMsg(ctx, msg); err != nil {
		return fmt.Errorf("send to %s: %w", subject, cause(ctx, err))
	}
	return nil
}
