package natsbus

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-3f7a0631/tes/outbox/redact"
)

const (
	// ReasonHeader says on a dead letter why it is one.
	ReasonHeader = "Tes-Reason"
	// maxReason bounds it in bytes.
	maxReason = 1024
)

// OnDeadLetter has fn told of each dead letter, once it is stored: under an id of
// its own, the subject that it was heard on and the reason. After an error it is
// told again. Call it before Consume.
func (b *Bus) OnDeadLetter(fn func(ctx context.Context, id, subject, reason string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buried = fn
}

// bury stores the message on its dead-letter subject, tells of it, and only then
// ends its deliveries. If one of these cannot be done the message comes again, and
// with it the attempt to bury it.
func (c *consumer) bury(ctx context.Context, msg jetstream.Msg, meta *jetstream.MsgMetadata, reason string) {
	ctx, done := c.bus.goodbye(ctx)
	defer done()
	reason = oneLine(reason)
	id := "dead-" + meta.Stream + "-" + strconv.FormatUint(meta.Sequence.Stream, 10)
	err := c.bus.deadLetter(ctx, id, msg, reason)
	if err == nil {
		err = c.bus.tellBuried(ctx, id, msg.Subject(), reason)
	}
	if err == nil {
		err = msg.TermWithReason(reason)
	}
	if err == nil {
		return
	}
	c.bus.cfg.Logger.Error("a dead letter could not be stored or counted and will be tried again",
		"subject", msg.Subject(), "stream_seq", meta.Sequence.Stream, "error", why(ctx, err))
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		_, _ = c.bus.ensureStreams(ctx)
	}
	_ = msg.NakWithDelay(c.bus.pause(int(meta.NumDelivered)))
}

func (b *Bus) tellBuried(ctx context.Context, id, subject, reason string) error {
	b.mu.Lock()
	tell := b.buried
	b.mu.Unlock()
	if tell == nil {
		return nil
	}
	return tell(ctx, id, subject, reason)
}

func (b *Bus) deadLetter(ctx context.Context, id string, msg jetstream.Msg, reason string) error {
	letter := &nats.Msg{Subject: deadLetterPrefix + msg.Subject(), Header: nats.Header{}, Data: msg.Data()}
	for k, v := range msg.Headers() {
		// The sender's orders to the server were for the other stream.
		if !strings.HasPrefix(k, "Nats-") {
			letter.Header[k] = v
		}
	}
	letter.Header.Set(ReasonHeader, reason)
	// The same letter however often it is tried, and whether or not its sender
	// gave the message an id.
	letter.Header.Set(jetstream.MsgIDHeader, id)
	_, err := b.js.PublishMsg(ctx, letter)
	if !errors.Is(err, nats.ErrMaxPayload) {
		return err
	}
	// The reason made it too large. Better cut than never buried.
	keep := nats.Header{
		ReasonHeader:          {reason},
		jetstream.MsgIDHeader: letter.Header[jetstream.MsgIDHeader],
		"Tes-Cut-From":        {strconv.Itoa(len(letter.Data))},
	}
	letter.Header = keep
	room := max(int(b.nc.MaxPayload())-headerSize(keep), 0)
	letter.Data = letter.Data[:min(room, len(letter.Data))]
	_, err = b.js.PublishMsg(ctx, letter)
	return err
}

// oneLine makes s fit for a header and a terminal: without credentials, printable, no
// line breaks, not longer than maxReason.
func oneLine(s string) string {
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
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}
