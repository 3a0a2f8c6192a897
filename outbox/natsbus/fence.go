package natsbus

import (
	"errors"
	"slices"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fence is where the stream must end for a message to be stored: the server refuses what
// somebody else's message came before. A relay that was frozen with a round in its hands,
// and replaced meanwhile, stores nothing of it when it wakes.
//
// Tail arms it, and each acknowledgement moves it on. An error disarms it until the next
// Tail, for then the end is not known.
type fence struct {
	armed bool
	after uint64
}

// fenceBytes is what the fence adds to a message's header, generously.
const fenceBytes = 64

// mark puts the fence into a message's header, or takes it out.
func (f fence) mark(msg *nats.Msg) {
	if f.armed {
		msg.Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(f.after, 10))
	} else {
		msg.Header.Del(jetstream.ExpectedLastSeqHeader)
	}
}

// mostMoves is how often in a row the fence may refuse before one publication goes without:
// somebody who publishes to our subjects all the time must not stop us.
const mostMoves = 3

// arm sets the fence to the stream's end, if the stream is ours alone.
func (b *Bus) arm(info *jetstream.StreamInfo) {
	alone := slices.Equal(info.Config.Subjects, []string{eventSubjects}) && len(info.Config.Sources) == 0
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fence = fence{alone && b.moves < mostMoves, info.State.LastSeq}
}

// takeFence is for one publication at a time: a second beside it goes without.
func (b *Bus) takeFence() fence {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.fence
	b.fence.armed = false
	return f
}

func (b *Bus) leaveFence(f fence, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.Is(err, ErrMoved):
		b.moves++
	case err == nil:
		b.fence, b.moves = f, 0
	}
}

// moved is JetStream's word that the last sequence is another than was expected. A stream
// with replicas has a code of its own for it.
func moved(err error) bool {
	return said(err, jetstream.JSErrCodeStreamWrongLastSequence) || said(err, jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}
