package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// How a bus is, by Health.
const (
	OK      = "ok"      // the last publication was acknowledged, or the stream would take one
	Away    = "away"    // there is no connection
	Failing = "failing" // there is one, and events are not taken
)

// state is what is known of the bus; guarded by Bus.mu.
type state struct {
	away        error // why there was no connection when it was last tried
	publication attempt
	look        error // what was found while nothing was published
	sure        bool  // the streams were made sure of since the last connection
	making      error // why the events stream could not be
	beside      error // why another stream, or a consumer, could not be
	fewer       error // which streams have fewer replicas than they should
	grownAt     time.Time
}

// attempt is the last publication of this process.
type attempt struct {
	at    time.Time
	err   error
	since time.Time // of the first failure in a row
	n     int       // failures in a row
}

// ownWord is how long a failed publication speaks for the bus. Whoever publishes tries
// again within a minute at most; after that somebody else publishes, and the look counts.
const ownWord = 90 * time.Second

// Health says how the bus is: OK, Away or Failing, and why, in a sentence that names no
// address and no credential: anybody may read it. With OK the reason is empty, or says
// what is wrong beside: with the streams of what we hear, or with a stream's replicas.
func (b *Bus) Health() (state, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.state
	last := s.publication
	switch {
	case b.ctx.Err() != nil:
		return Away, "the bus is closed"
	case b.link.Err() != nil:
		if s.away != nil {
			return Away, public(s.away)
		}
		return Away, public(ErrDisconnected)
	case last.err != nil && time.Since(last.at) < ownWord:
		return Failing, fmt.Sprintf("%s (%d times since %s)", public(last.err), last.n, last.since.UTC().Format(time.RFC3339))
	case s.making != nil:
		return Failing, public(s.making)
	case !s.sure && b.events == nil:
		return Failing, "the streams are not there yet"
	case s.look != nil:
		return Failing, public(s.look)
	case s.beside != nil:
		return OK, public(s.beside)
	case s.fewer != nil:
		return OK, public(s.fewer)
	}
	return OK, ""
}

// Connected says whether the server can be spoken to at this moment.
func (b *Bus) Connected() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.link.Err() == nil
}

// published notes what became of a publication. Some failures say nothing of the stream:
// a message that none ever takes, a caller that gave up, a lost connection, which is known
// by itself, and another publisher's being faster.
func (b *Bus) published(err error) {
	var large *TooLarge
	var bad *BadSubject
	if errors.As(err, &large) || errors.As(err, &bad) {
		return
	}
	for _, other := range []error{context.Canceled, ErrClosed, ErrDisconnected, ErrMoved} {
		if errors.Is(err, other) {
			return
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	last := &b.state.publication
	last.at, last.err = time.Now(), err
	if err == nil {
		last.n, b.state.look = 0, nil
		return
	}
	if last.n++; last.n == 1 {
		last.since = last.at
	}
}

func (b *Bus) looked(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state.look = err
	if unwell(err) {
		b.state.sure = false // whoever waits for the bus is told when it is well again
	}
}

// public is an error for everybody's eyes.
func public(err error) string {
	var no *jetstream.APIError
	var js jetstream.JetStreamError
	switch {
	case refuses(err):
		return "the NATS server refuses our credentials"
	case untrusted(err):
		return "the NATS server and this process do not take each other's certificates; the log says why"
	case errors.Is(err, ErrDisconnected):
		return "there is no connection to the NATS server"
	case errors.As(err, &no):
		return "JetStream says: " + oneLine(no.Description)
	case errors.As(err, &js) && js.APIError() != nil:
		return "JetStream says: " + oneLine(js.APIError().Description)
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders):
		return "the stream does not answer: it is gone, or has no leader"
	case errors.Is(err, errNoAnswer), errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return errNoAnswer.Error()
	case errors.Is(err, errNoLeader), errors.Is(err, errFull), errors.Is(err, errUnfit), errors.Is(err, errTooFewServers), errors.Is(err, errUnservable):
		return oneLine(err.Error())
	case errors.Is(err, ErrMoved):
		return ErrMoved.Error()
	}
	return "there is no connection to the NATS server that works; the log says why"
}
