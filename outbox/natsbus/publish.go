package natsbus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/seed-3f7a0631/tes/outbox"
)

const (
	// The default limit of a server for the messages of an atomic batch.
	maxBatchMessages = 1000
	// The limit of the embedded server. It is larger because a batch costs a dozen syncs and
	// renames, whatever its size.
	embeddedBatchMessages = 4000
	// For the server a batch is a directory, files and renames. A few messages are stored several
	// times faster with one synced write each.
	minBatchMessages = 8
	// The server keeps a batch in memory until its commit, and drops messages when the queue in
	// front of a stream exceeds 128 MiB.
	maxBatchBytes = 8 << 20
	// An upper bound of the headers by which a message belongs to a batch.
	batchHeaderBytes = 128
)

// errHeaderTooLarge is JetStream's code for a header over 64 KiB.
const errHeaderTooLarge jetstream.ErrorCode = 10097

// publisher publishes batches on the events stream, one after the other.
type publisher struct {
	cfg     Config
	conn    *connection
	streams *streams
	reader  *reader
	health  *health

	mu            sync.Mutex // guards the rest
	fence         fence      // of the next publication
	fenceRefusals int        // publications in a row that the fence has refused
}

// publish implements Bus.Publish.
func (p *publisher) publish(ctx context.Context, batch []outbox.Message) (last uint64, err error) {
	if _, err := p.streams.current(); err != nil {
		return 0, err
	}

	defer func() { p.health.recordPublish(err) }()

	chunks, err := p.split(batch)
	if err != nil {
		return 0, err
	}

	// The fence refuses the batch if another process has published since Tail was called.
	f := p.takeFence()
	defer func() { p.leaveFence(f, err) }()

	var next *staged
	for i, chunk := range chunks {
		now := next
		if now != nil && now.fence != f {
			now = nil // staged with another expected sequence: the server will drop it
		}
		if now == nil {
			now = p.stage(chunk, f)
		}

		next = nil
		ahead := fence{f.armed, f.after + uint64(len(chunk))}
		committed := make(chan struct{})
		var seq uint64
		go func() {
			defer close(committed)

			seq, err = p.commit(ctx, now, &f)
		}()

		// The next chunk is sent while the server writes this one. The next one is committed
		// when this one is stored, which keeps the order.
		if i+1 < len(chunks) {
			next = p.stage(chunks[i+1], ahead)
		}

		<-committed
		if seq > 0 {
			last = seq
		}
		if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
			err = p.recreateStream(ctx, err)
		}
		if err != nil {
			return last, fmt.Errorf("publish %d messages from %s on: %w", len(chunk), chunk[0].Header.Get(jetstream.MsgIDHeader), err)
		}
	}

	return last, nil
}

// recreateStream creates a deleted stream again. The batch fails all the same, because the lost
// messages must be published before newer ones.
func (p *publisher) recreateStream(ctx context.Context, cause error) error {
	another, err := p.streams.ensure(ctx)
	if err != nil {
		return fmt.Errorf("%w; %w", cause, err)
	}

	if !another {
		return cause
	}
	return fmt.Errorf("stream %s was gone and was created again, empty: %w", p.cfg.Stream, cause)
}

// split checks every message before any is sent, and cuts the batch into chunks that fit an atomic
// batch.
func (p *publisher) split(batch []outbox.Message) ([][]*nats.Msg, error) {
	limit, most := p.conn.nc.MaxPayload(), maxBatchMessages
	if p.conn.srv != nil {
		most = embeddedBatchMessages
	}

	var chunks [][]*nats.Msg
	var chunk []*nats.Msg
	var bytes int
	cut := func() {
		if len(chunk) > 0 {
			chunks = append(chunks, chunk)
		}

		chunk, bytes = nil, 0
	}

	for i, m := range batch {
		if m.ID == "" {
			return nil, fmt.Errorf("publish: message %d of %d has no id", i+1, len(batch))
		}
		if !isPlainSubject(m.Subject) {
			return nil, &BadSubject{ID: m.ID, Subject: m.Subject}
		}

		msg, size := p.message(m)
		if int64(size) > limit {
			return nil, &TooLarge{ID: m.ID, Size: size, Limit: limit}
		}

		// A message that fits only without the headers of a batch is a separate chunk.
		alone := int64(size+batchHeaderBytes) > limit
		if alone || len(chunk) == most || bytes+size > maxBatchBytes {
			cut()
		}
		if chunk == nil {
			chunk = make([]*nats.Msg, 0, min(len(batch)-i, most))
		}

		chunk = append(chunk, msg)
		bytes += size
		if alone {
			cut()
		}
	}

	cut()
	return chunks, nil
}

// staged is a chunk that was sent without its last message, which commits the chunk. Without a
// commit the server drops the messages after ten seconds.
type staged struct {
	chunk []*nats.Msg
	fence fence
	batch jetstreamext.BatchPublisher // nil: the messages are published one by one
	err   error                       // of sending
}

// stage sends a chunk, without the message that commits it.
func (p *publisher) stage(chunk []*nats.Msg, f fence) *staged {
	s := &staged{chunk: chunk, fence: f}
	for i, msg := range chunk {
		fence{f.armed && i == 0, f.after}.mark(msg) // only the first message of a batch may have the fence
	}

	if len(chunk) < minBatchMessages || !p.streams.batches.Load() {
		return s
	}

	// Without an acknowledgement of the first message: only that of the commit means anything, and
	// waiting for two would halve the rate.
	if s.batch, s.err = jetstreamext.NewBatchPublisher(p.conn.js, jetstreamext.BatchFlowControl{}); s.err != nil {
		return s
	}

	for _, msg := range chunk[:len(chunk)-1] {
		if s.err = s.batch.AddMsg(msg); s.err != nil {
			break
		}
	}

	return s
}

// commit stores a staged chunk. The server refuses the whole batch if one of its messages is stored
// already, after a lost acknowledgement or a killed relay. Then the messages are published one by
// one up to the first new one, and the rest is tried as a batch once more.
func (p *publisher) commit(ctx context.Context, s *staged, f *fence) (last uint64, err error) {
	for tries := 0; s.batch != nil && tries < 2; tries++ {
		seq, err := p.commitBatch(ctx, s)
		if err == nil {
			f.after = seq
			return seq, nil
		}
		if isWrongLastSequence(err) {
			return last, fmt.Errorf("%w: %w", ErrMoved, err)
		}
		if !isRefusal(err) {
			return last, err
		}
		// The server is older than it said, or was replaced: no batches until the streams are
		// ensured.
		if lacksBatches(err) {
			p.streams.batches.Store(false)
		}

		n, seq, err := p.publishSingles(ctx, s.chunk, true, f)
		if seq > 0 {
			last = seq
		}
		if err != nil {
			return last, err
		}

		s = p.stage(s.chunk[n:], *f)
	}

	_, seq, err := p.publishSingles(ctx, s.chunk, false, f)
	if seq > 0 {
		last = seq
	}

	return last, err
}

func (p *publisher) commitBatch(ctx context.Context, s *staged) (uint64, error) {
	ctx, done := p.conn.requestContext(ctx)
	defer done()

	if s.err != nil {
		return 0, cause(ctx, s.err)
	}

	// The last message commits the chunk.
	ack, err := s.batch.CommitMsg(ctx, s.chunk[len(s.chunk)-1])
	if err != nil {
		return 0, cause(ctx, err)
	}
	return ack.Sequence, nil
}

// publishSingles publishes messages individually, each when the one before it is stored. With
// pastDuplicates it stops after the first new message. n is how many messages are stored.
func (p *publisher) publishSingles(ctx context.Context, chunk []*nats.Msg, pastDuplicates bool, f *fence) (n int, last uint64, err error) {
	for _, msg := range chunk {
		msg.Header.Del(jetstreamext.BatchIDHeader)
		msg.Header.Del(jetstreamext.BatchSeqHeader)
		msg.Header.Del(jetstreamext.BatchCommitHeader)
		seq, fresh, err := p.publishOne(ctx, msg, f)
		if err != nil {
			return n, last, err
		}

		n, last = n+1, seq
		if pastDuplicates && fresh {
			break
		}
	}

	return n, last, nil
}

func (p *publisher) publishOne(ctx context.Context, msg *nats.Msg, f *fence) (seq uint64, fresh bool, err error) {
	ctx, done := p.conn.requestContext(ctx)
	defer done()

	id := msg.Header.Get(jetstream.MsgIDHeader)
	if room := p.conn.nc.MaxPayload() - int64(msg.Size()); room < fenceBytes {
		fence{}.mark(msg) // no room for the fence
	} else {
		f.mark(msg)
	}

	ack, err := p.conn.js.PublishMsg(ctx, msg)
	var no *jetstream.APIError
	switch {
	case errors.Is(err, nats.ErrMaxPayload), // after a reconnect to a server with a lower limit
		errors.As(err, &no) && (no.ErrorCode == jetstream.JSErrCodeStreamMessageExceedsMaximum || no.ErrorCode == errHeaderTooLarge):
		return 0, false, &TooLarge{ID: eventID(id)}
	case isWrongLastSequence(err):
		return 0, false, fmt.Errorf("%w: %w", ErrMoved, err)
	case err != nil:
		return 0, false, fmt.Errorf("message %s: %w", eventID(id), cause(ctx, err))
	case !ack.Duplicate:
		f.after = ack.Sequence
		return ack.Sequence, true, nil
	}

	// The duplicate window knows ids of messages that a purge has removed. Such a message is stored
	// again, under an id that the window does not know.
	at, err := p.reader.stored(ctx, ack.Sequence)
	if err != nil {
		return 0, false, err
	}

	if at == eventID(id) {
		return ack.Sequence, false, nil
	}

	msg.Header.Set(jetstream.MsgIDHeader, eventID(id)+republishMark+strconv.FormatUint(ack.Sequence, 10))
	return p.publishOne(ctx, msg, f)
}

// republishMark separates an event's id from the lost sequence in the Nats-Msg-Id of an event that
// had to be stored again. Event ids are UUIDs and do not contain it.
const republishMark = "~"

func eventID(msgID string) string {
	id, _, _ := strings.Cut(msgID, republishMark)
	return id
}

// message returns m for the NATS client, and the size that counts for max_payload.
func (p *publisher) message(m outbox.Message) (*nats.Msg, int) {
	header := make(nats.Header, len(m.Header)+5)
	for k, v := range m.Header {
		// Nats-* headers are instructions to the server. Only this package sets them.
		if !strings.HasPrefix(k, "Nats-") {
			header[k] = []string{v}
		}
	}

	header[jetstream.MsgIDHeader] = []string{m.ID}
	header[jetstream.ExpectedStreamHeader] = []string{p.cfg.Stream}
	return &nats.Msg{Subject: m.Subject, Header: header, Data: m.Body}, headerSize(header) + len(m.Body)
}

func headerSize(header nats.Header) int {
	size := len("NATS/1.0\r\n\r\n")
	for k, values := range header {
		for _, v := range values {
			size += len(k) + len(v) + len(": \r\n")
		}
	}
	return size
}

// isPlainSubject reports whether the events stream captures a subject. Publishing on any other would
// fail for ever, like an outage.
func isPlainSubject(subject string) bool {
	if !strings.HasPrefix(subject, "task.") || strings.ContainsFunc(subject, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '*' || r == '>' }) {
		return false
	}

	for token := range strings.SplitSeq(subject, ".") {
		if token == "" {
			return false
		}
	}
	return true
}

// isRefusal reports that the server answered and stored no message of the batch, or that the server
// does not know atomic batches.
func isRefusal(err error) bool {
	var no *jetstream.APIError
	return errors.As(err, &no) || errors.Is(err, jetstreamext.ErrInvalidBatchAck)
}

func lacksBatches(err error) bool {
	var no *jetstream.APIError
	return errors.Is(err, jetstreamext.ErrInvalidBatchAck) ||
		errors.As(err, &no) && no.ErrorCode == jetstreamext.JSErrCodeBatchPublishNotEnabled
}
