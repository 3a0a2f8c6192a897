package natsbus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/seed-3f7a0631/tes/outbox"
)

const (
	// A server's limit for an atomic batch, unless it is configured.
	maxBatchMessages = 1000
	// The embedded server's: opening and closing a batch costs it a dozen syncs and
	// renames, which a larger one shares.
	embeddedBatchMessages = 4000
	// A batch is a directory, files and renames to the server: for a few messages,
	// one synced write each is several times sooner.
	minBatchMessages = 8
	// A batch waits in the server's memory until its commit, and the queue in
	// front of a stream takes 128 MiB before it drops.
	maxBatchBytes = 8 << 20
	// The headers by which a message belongs to a batch, generously.
	batchHeaderBytes = 128
)

// errHeaderTooLarge is JetStream's code for a header over 64 KiB.
const errHeaderTooLarge jetstream.ErrorCode = 10097

// Publish stores the batch in the order given and returns the stream sequence
// of its last message. With nil every message is stored. With an error a
// prefix of the batch may be stored (last is the end of what is known of it, or
// 0): publish the same messages again, in the same order. A message that was
// stored within the duplicate window is recognised by its ID and stored once.
//
// A *TooLarge or *BadSubject never heals: park the message that it names.
func (b *Bus) Publish(ctx context.Context, batch []outbox.Message) (last uint64, err error) {
	if _, err := b.stream(); err != nil {
		return 0, err
	}
	defer func() { b.published(err) }()
	chunks, err := b.split(batch)
	if err != nil {
		return 0, err
	}
	f := b.takeFence()
	defer func() { b.leaveFence(f, err) }()
	var next *staged
	for i, chunk := range chunks {
		now := next
		if now != nil && now.fence != f {
			now = nil // it was staged for another place: the server forgets it
		}
		if now == nil {
			now = b.stage(chunk, f)
		}
		next = nil
		ahead := fence{f.armed, f.after + uint64(len(chunk))}
		committed := make(chan struct{})
		var seq uint64
		go func() {
			defer close(committed)
			seq, err = b.commit(ctx, now, &f)
		}()
		// While the server writes this chunk, the next travels. It is committed only
		// once this one is stored, or order would hang on luck.
		if i+1 < len(chunks) {
			next = b.stage(chunks[i+1], ahead)
		}
		<-committed
		if seq > 0 {
			last = seq
		}
		if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
			err = b.remake(ctx, err)
		}
		if err != nil {
			return last, fmt.Errorf("publish %d messages from %s on: %w", len(chunk), chunk[0].Header.Get(jetstream.MsgIDHeader), err)
		}
	}
	return last, nil
}

// remake brings back a stream that was deleted under us. The batch fails all
// the same: what the stream has lost must be sent before anything newer.
func (b *Bus) remake(ctx context.Context, cause error) error {
	another, err := b.ensureStreams(ctx)
	if err != nil {
		return fmt.Errorf("%w; %w", cause, err)
	}
	if !another {
		return cause
	}
	return fmt.Errorf("stream %s was gone and has been made anew, empty: %w", b.cfg.Stream, cause)
}

// split checks every message before the first is sent, and cuts the batch into
// what fits one atomic batch.
func (b *Bus) split(batch []outbox.Message) ([][]*nats.Msg, error) {
	limit, most := b.nc.MaxPayload(), maxBatchMessages
	if b.srv != nil {
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
		if !plainSubject(m.Subject) {
			return nil, &BadSubject{ID: m.ID, Subject: m.Subject}
		}
		msg, size := b.message(m)
		if int64(size) > limit {
			return nil, &TooLarge{ID: m.ID, Size: size, Limit: limit}
		}
		// One that fits only without the batch's headers travels alone.
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

// staged is a chunk whose messages are on their way, all but the last: that one
// commits them, or the server forgets them after ten seconds.
type staged struct {
	chunk []*nats.Msg
	fence fence
	batch jetstreamext.BatchPublisher // nil: it is to go without a batch
	err   error                       // why not all were sent
}

// stage sends what can be sent before its turn.
func (b *Bus) stage(chunk []*nats.Msg, f fence) *staged {
	s := &staged{chunk: chunk, fence: f}
	for i, msg := range chunk {
		fence{f.armed && i == 0, f.after}.mark(msg) // of a batch only the first may say it
	}
	if len(chunk) < minBatchMessages || !b.batches.Load() {
		return s
	}
	// No acknowledgement of the first message: the commit's is the only one that
	// says anything, and waiting for two halves the rate.
	if s.batch, s.err = jetstreamext.NewBatchPublisher(b.js, jetstreamext.BatchFlowControl{}); s.err != nil {
		return s
	}
	for _, msg := range chunk[:len(chunk)-1] {
		if s.err = s.batch.AddMsg(msg); s.err != nil {
			break
		}
	}
	return s
}

// commit stores a staged chunk. The server refuses a batch whole if one message
// of it is stored already, which is what a lost acknowledgement or a killed relay
// leaves behind: then the messages that are stored are stepped over one by one,
// and the rest is tried as a batch once more.
func (b *Bus) commit(ctx context.Context, s *staged, f *fence) (last uint64, err error) {
	for tries := 0; s.batch != nil && tries < 2; tries++ {
		seq, err := b.commitBatch(ctx, s)
		if err == nil {
			f.after = seq
			return seq, nil
		}
		if moved(err) {
			return last, fmt.Errorf("%w: %w", ErrMoved, err)
		}
		if !refused(err) {
			return last, err
		}
		if lacksBatches(err) {
			b.batches.Store(false)
		}
		n, seq, err := b.publishSingles(ctx, s.chunk, true, f)
		if seq > 0 {
			last = seq
		}
		if err != nil {
			return last, err
		}
		s = b.stage(s.chunk[n:], *f)
	}
	_, seq, err := b.publishSingles(ctx, s.chunk, false, f)
	if seq > 0 {
		last = seq
	}
	return last, err
}

func (b *Bus) commitBatch(ctx context.Context, s *staged) (uint64, error) {
	ctx, done := b.exchange(ctx)
	defer done()
	if s.err != nil {
		return 0, why(ctx, s.err)
	}
	ack, err := s.batch.CommitMsg(ctx, s.chunk[len(s.chunk)-1])
	if err != nil {
		return 0, why(ctx, err)
	}
	return ack.Sequence, nil
}

// publishSingles sends one after the other, each when the one before it is
// stored. With pastDuplicates it stops after the first message that was new.
// It returns how many are stored.
func (b *Bus) publishSingles(ctx context.Context, chunk []*nats.Msg, pastDuplicates bool, f *fence) (n int, last uint64, err error) {
	for _, msg := range chunk {
		msg.Header.Del(jetstreamext.BatchIDHeader)
		msg.Header.Del(jetstreamext.BatchSeqHeader)
		msg.Header.Del(jetstreamext.BatchCommitHeader)
		seq, fresh, err := b.publishOne(ctx, msg, f)
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

func (b *Bus) publishOne(ctx context.Context, msg *nats.Msg, f *fence) (seq uint64, fresh bool, err error) {
	ctx, done := b.exchange(ctx)
	defer done()
	id := msg.Header.Get(jetstream.MsgIDHeader)
	if room := b.nc.MaxPayload() - int64(msg.Size()); room < fenceBytes {
		fence{}.mark(msg) // one that fits only just goes without
	} else {
		f.mark(msg)
	}
	ack, err := b.js.PublishMsg(ctx, msg)
	var no *jetstream.APIError
	switch {
	case errors.Is(err, nats.ErrMaxPayload), // the server we are connected to now takes less
		errors.As(err, &no) && (no.ErrorCode == jetstream.JSErrCodeStreamMessageExceedsMaximum || no.ErrorCode == errHeaderTooLarge):
		return 0, false, &TooLarge{ID: eventID(id)}
	case moved(err):
		return 0, false, fmt.Errorf("%w: %w", ErrMoved, err)
	case err != nil:
		return 0, false, fmt.Errorf("message %s: %w", eventID(id), why(ctx, err))
	case !ack.Duplicate:
		f.after = ack.Sequence
		return ack.Sequence, true, nil
	}
	// The window remembers ids of messages that a purge has taken away. Such a
	// message is stored again under an id that the window does not know.
	at, err := b.Stored(ctx, ack.Sequence)
	if err != nil {
		return 0, false, err
	}
	if at == eventID(id) {
		return ack.Sequence, false, nil
	}
	msg.Header.Set(jetstream.MsgIDHeader, eventID(id)+againMark+strconv.FormatUint(ack.Sequence, 10))
	return b.publishOne(ctx, msg, f)
}

// againMark parts an event's id from the lost sequence in the Nats-Msg-Id of an
// event that had to be stored again. Ids are UUIDs and do not hold it.
const againMark = "~"

func eventID(msgID string) string {
	id, _, _ := strings.Cut(msgID, againMark)
	return id
}

// message is m as NATS sends it, and its size by max_payload's reckoning.
func (b *Bus) message(m outbox.Message) (*nats.Msg, int) {
	header := make(nats.Header, len(m.Header)+5)
	for k, v := range m.Header {
		// Nats-* headers are orders to the server and are ours to give.
		if !strings.HasPrefix(k, "Nats-") {
			header[k] = []string{v}
		}
	}
	header[jetstream.MsgIDHeader] = []string{m.ID}
	header[jetstream.ExpectedStreamHeader] = []string{b.cfg.Stream}
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

// plainSubject keeps out what would never be captured, and so would look like
// an outage for ever.
func plainSubject(subject string) bool {
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

// refused says that the server answered, and stored nothing of the batch; or
// that it did not understand that it was one.
func refused(err error) bool {
	var no *jetstream.APIError
	return errors.As(err, &no) || errors.Is(err, jetstreamext.ErrInvalidBatchAck)
}

func lacksBatches(err error) bool {
	var no *jetstream.APIError
	return errors.Is(err, jetstreamext.ErrInvalidBatchAck) ||
		errors.As(err, &no) && no.ErrorCode == jetstreamext.JSErrCodeBatchPublishNotEnabled
}
