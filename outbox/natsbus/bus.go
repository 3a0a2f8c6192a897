package natsbus

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-3f7a0631/tes/outbox"
)

// Bus is a connection to JetStream, with the server itself if it is embedded. It is safe for
// concurrent use. The fields do the work; each has a file of its own, see the package documentation.
type Bus struct {
	cfg        Config
	health     *health
	conn       *connection
	streams    *streams
	maintainer *maintainer
	reader     *reader
	publisher  *publisher
	consumers  *consumers
}

// Open connects to the server at cfg.URL, or starts one, and returns when the streams exist. Open
// waits for an external server until ctx ends, for ten seconds at most.
func Open(ctx context.Context, cfg Config) (*Bus, error) {
	return open(ctx, cfg, func(b *Bus) error {
		if err := b.conn.connect(ctx); err != nil {
			return err
		}

		_, err := b.streams.ensure(ctx)
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
	return open(ctx, cfg, func(*Bus) error { return checkCredentials(cfg.Credentials) })
}

// open makes a bus, calls begin, and starts the goroutine that maintains the streams.
func open(ctx context.Context, cfg Config, begin func(*Bus) error) (*Bus, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("open the bus: %w", err)
	}

	b := newBus(cfg)

	// Dialling ends with the context of the bus, which outlives this call; so ctx ends that one.
	detach := context.AfterFunc(ctx, func() { b.conn.stop(context.Cause(ctx)) })

	err := b.conn.embed()
	if err == nil {
		err = begin(b)
	}
	// ctx ended after begin had succeeded: the bus is stopped already.
	if !detach() && err == nil {
		err = fmt.Errorf("open the bus: %w", context.Cause(ctx))
	}
	if err != nil {
		b.conn.teardown()
		return nil, err
	}

	b.conn.background(b.maintainer.run)
	return b, nil
}

// newBus makes the parts of a bus, each over the parts that it uses. Nothing is connected yet.
func newBus(cfg Config) *Bus {
	h := &health{}
	conn := newConnection(cfg, h)
	s := newStreams(cfg, conn, h)
	r := &reader{cfg: cfg, conn: conn, streams: s}

	return &Bus{
		cfg:        cfg,
		health:     h,
		conn:       conn,
		streams:    s,
		maintainer: &maintainer{cfg: cfg, conn: conn, streams: s, health: h},
		reader:     r,
		publisher:  &publisher{cfg: cfg, conn: conn, streams: s, reader: r, health: h},
		consumers:  &consumers{cfg: cfg, conn: conn, streams: s, deadLetters: &deadLetters{conn: conn}, pause: redeliveryPause},
	}
}

// Await waits until the streams were ensured for the first time, until ctx ends, or for a
// duration. A process that waits a moment after Start usually begins without a logged failure.
func (b *Bus) Await(ctx context.Context, atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()

	select {
	case <-b.streams.ready:
	case <-ctx.Done():
	case <-timer.C:
	}
}

// ClientURL returns the URL for other processes; empty if the server accepts only this process.
// The URL contains the secret: do not log it.
func (b *Bus) ClientURL() string { return b.conn.url }

// OnReconnect adds a function that is called when the streams exist again: after a reconnect, after
// a deleted stream was created again, and after the first connection of Start. At that moment a
// caller should compare the published messages with the stored ones. fn is not called for the
// connection that Open made. Calls are made in sequence, on a goroutine that Close waits
// for.
func (b *Bus) OnReconnect(fn func()) { b.streams.addHook(fn) }

// Close ends consuming and waits for running handlers until ctx ends. Then Close ends the
// connection and stops the embedded server, whether the handlers have returned or not. A second
// call does nothing.
func (b *Bus) Close(ctx context.Context) error { return b.conn.close(ctx) }

// Health returns OK, Away or Failing, and the reason, which names no address and no credential and
// may be shown to anybody. With OK the reason is empty, or an error of another stream than the
// events stream or of a stream's replicas.
func (b *Bus) Health() (state, reason string) {
	return b.health.report(b.conn.lost(), b.streams.known() != nil)
}

// Connected reports whether there is a connection at this moment.
func (b *Bus) Connected() bool { return b.conn.lost() == nil }

// Publish stores the batch in order and returns the stream sequence of its last message. A nil error
// means that every message is stored. After an error a prefix of the batch may be stored, and last
// is the end of its known part, or 0: publish the same messages again, in the same order. A
// message that was stored within the duplicate window is recognised by its id and not stored again.
//
// After a *TooLarge or *BadSubject, publish the batch without the message that the error names: the
// bus can never store that message.
func (b *Bus) Publish(ctx context.Context, batch []outbox.Message) (last uint64, err error) {
	return b.publisher.publish(ctx, batch)
}

// Tail returns the sequence of the last stored event and the time at which the stream was created.
// Another time means another stream, whose sequences start at 1 again. After Tail, a batch is
// stored only if no other process has published meanwhile.
func (b *Bus) Tail(ctx context.Context) (last uint64, created time.Time, err error) {
	info, err := b.reader.tail(ctx)
	if err != nil {
		return 0, time.Time{}, err
	}

	b.publisher.arm(info)
	return info.State.LastSeq, info.Created, nil
}

// Stored returns the id of the event at a sequence; empty if the stream has no event there (any
// more).
func (b *Bus) Stored(ctx context.Context, seq uint64) (id string, err error) {
	return b.reader.stored(ctx, seq)
}

// IDs returns the sequence of each event id between two sequences, both included. Sequences without
// an event are left out.
func (b *Bus) IDs(ctx context.Context, from, to uint64) (map[string]uint64, error) {
	return b.reader.ids(ctx, from, to)
}

// Consume calls h with every message on subject until ctx ends or the bus is closed, and then
// returns nil. Processes with the same durable share its messages. A new durable starts with the
// oldest stored message. Many calls of h run at once, in no order.
//
// A message is acknowledged after h returns nil, and the server confirms the acknowledgement. A
// message may be delivered twice all the same; h must recognise the id. After an error or a panic
// the message is delivered again, later each time, and after Config.MaxDeliveries it is stored on
// deadletter.<subject>. After a *outbox.Poison it is stored there at once.
//
// While the server is away, or refuses the consumer, Consume waits. Each kind of error is logged
// once.
func (b *Bus) Consume(ctx context.Context, durable, subject string, h outbox.Handler) error {
	return b.consumers.consume(ctx, durable, subject, h)
}

// OnDeadLetter sets a function that is called with each dead letter after it is stored: with the
// letter's id, the subject of the original message and the reason. After an error fn is called
// again. Call OnDeadLetter before Consume.
func (b *Bus) OnDeadLetter(fn func(ctx context.Context, id, subject, reason string) error) {
	b.consumers.deadLetters.setOnStored(fn)
}
