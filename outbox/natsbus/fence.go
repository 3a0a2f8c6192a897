package natsbus

import (
	"errors"
	"slices"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fence is the sequence at which the stream must end for a message to be stored. The server refuses
// the message if another publisher's message was stored meanwhile. So a relay that was frozen with a
// batch in flight, and replaced meanwhile, stores no message of the batch when it wakes up.
//
// Tail arms the fence, and each acknowledgement advances it. An error disarms the fence until the
// next Tail, because the end of the stream is unknown after an error.
type fence struct {
	armed bool
	after uint64
}

// fenceBytes is an upper bound of what the fence adds to a message's header.
const fenceBytes = 64

// mark sets the fence in a message's header, or removes it.
func (f fence) mark(msg *nats.Msg) {
	if f.armed {
		msg.Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(f.after, 10))
	} else {
		msg.Header.Del(jetstream.ExpectedLastSeqHeader)
	}
}

// maxFenceRefusals is how many publications in a row the fence may refuse before one is made without
// a fence: another publisher on our subjects must not stop the relay for ever.
const maxFenceRefusals = 3

// arm sets the fence to the stream's end, if the stream has no other subjects and sources.
func (p *publisher) arm(info *jetstream.StreamInfo) {
	alone := slices.Equal(info.Config.Subjects, []string{eventSubjects}) && len(info.Config.Sources) == 0
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fence = fence{alone && p.fenceRefusals < maxFenceRefusals, info.State.LastSeq}
}

// takeFence returns the fence for a publication. A concurrent one gets no fence.
func (p *publisher) takeFence() fence {
	p.mu.Lock()
	defer p.mu.Unlock()

	f := p.fence
	// Until leaveFence: the result of this publication decides where the stream ends.
	p.fence.armed = false
	return f
}

// leaveFence stores the fence for the next publication, after one that took it.
func (p *publisher) leaveFence(f fence, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()

	switch {
	case errors.Is(err, ErrMoved):
		p.fenceRefusals++
	case err == nil:
		p.fence, p.fenceRefusals = f, 0
	}
}

// isWrongLastSequence reports that JetStream refused a message because of the fence. A stream with
// replicas has an error code of its own.
func isWrongLastSequence(err error) bool {
	return hasCode(err, jetstream.JSErrCodeStreamWrongLastSequence) || hasCode(err, jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}
