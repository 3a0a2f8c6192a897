package natsbus

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-3f7a0631/tes/outbox/redact"
)

const (
	// ReasonHeader is the header of a dead letter with the reason.
	ReasonHeader = "Tes-Reason"
	// maxReason bounds the reason, in bytes.
	maxReason = 1024
)

// deadLetters stores messages that could not be processed, and tells the program of them.
type deadLetters struct {
	conn *connection

	mu       sync.Mutex                                                  // guards onStored
	onStored func(ctx context.Context, id, subject, reason string) error // nil before OnDeadLetter
}

// setOnStored implements Bus.OnDeadLetter.
func (d *deadLetters) setOnStored(fn func(ctx context.Context, id, subject, reason string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onStored = fn
}

// sendToDeadLetters stores the message on its dead-letter subject, calls the function of
// OnDeadLetter, and only then ends the deliveries of the message. If a step fails, the message is
// delivered again, and all steps are repeated.
func (c *consumer) sendToDeadLetters(ctx context.Context, msg jetstream.Msg, meta *jetstream.MsgMetadata, reason string) {
	ctx, done := cleanupContext(ctx)
	defer done()

	reason = oneLine(reason)
	id := "dead-" + meta.Stream + "-" + strconv.FormatUint(meta.Sequence.Stream, 10)
	// In this order: after a crash between two steps all steps are repeated, under the same id.
	err := c.deadLetters.store(ctx, id, msg, reason)
	if err == nil {
		err = c.deadLetters.notify(ctx, id, msg.Subject(), reason)
	}
	if err == nil {
		err = msg.TermWithReason(reason)
	}
	if err == nil {
		return
	}

	c.cfg.Logger.Error("a dead letter could not be stored or counted and will be tried again",
		"subject", msg.Subject(), "stream_seq", meta.Sequence.Stream, "error", cause(ctx, err))
	// The stream of dead letters is missing: create the stream for the next try.
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		_, _ = c.streams.ensure(ctx)
	}

	_ = msg.NakWithDelay(c.pause(int(meta.NumDelivered)))
}

// notify calls the function of OnDeadLetter, if there is one.
func (d *deadLetters) notify(ctx context.Context, id, subject, reason string) error {
	d.mu.Lock()
	fn := d.onStored
	d.mu.Unlock()
	if fn == nil {
		return nil
	}
	return fn(ctx, id, subject, reason)
}

// store publishes a dead letter: the message's headers and body, and the reason.
func (d *deadLetters) store(ctx context.Context, id string, msg jetstream.Msg, reason string) error {
	letter := &nats.Msg{Subject: deadLetterPrefix + msg.Subject(), Header: nats.Header{}, Data: msg.Data()}
	for k, v := range msg.Headers() {
		// Nats-* headers are instructions to the server, for the original stream.
		if !strings.HasPrefix(k, "Nats-") {
			letter.Header[k] = v
		}
	}

	letter.Header.Set(ReasonHeader, reason)
	// One id for all tries, whether or not the original message has an id.
	letter.Header.Set(jetstream.MsgIDHeader, id)
	_, err := d.conn.js.PublishMsg(ctx, letter)
	if !errors.Is(err, nats.ErrMaxPayload) {
		return err
	}

	// The reason made the message too large. A letter that is cut off is better than none.
	keep := nats.Header{
		ReasonHeader:          {reason},
		jetstream.MsgIDHeader: letter.Header[jetstream.MsgIDHeader],
		"Tes-Cut-From":        {strconv.Itoa(len(letter.Data))},
	}

	letter.Header = keep
	room := max(int(d.conn.nc.MaxPayload())-headerSize(keep), 0)
	letter.Data = letter.Data[:min(room, len(letter.Data))]
	_, err = d.conn.js.PublishMsg(ctx, letter)
	return err
}

// oneLine makes s fit for a header and a terminal: no credentials, printable characters only, no line
// breaks, not longer than maxReason.
func oneLine(s string) string {
	// Secrets first: a cut could leave half of a secret, which no pattern finds.
	s = redact.Text(s[:min(len(s), 8*maxReason)])
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "\uFFFD"))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= maxReason {
		return s
	}

	end := maxReason - len("…")
	// Cut between two characters.
	for !utf8.RuneStart(s[end]) {
		end--
	}

	return s[:end] + "…"
}
