package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The states of Health.
const (
	OK      = "ok"      // the last publication was acknowledged, or the events stream can be published to
	Away    = "away"    // there is no connection
	Failing = "failing" // there is a connection, and events cannot be published
)

// state is the last known state of the bus; guarded by Bus.mu.
type state struct {
	dialErr         error // of the last try to connect
	lastPublish     publication
	probeErr        error     // of the last probe of the events stream
	ensured         bool      // the streams were ensured since the last reconnect
	eventsErr       error     // of ensuring the events stream
	otherErr        error     // of ensuring the other streams and consumers
	replicasErr     error     // names the streams with fewer replicas than configured
	replicasAskedAt time.Time // when missing replicas were asked for last
}

// publication is the last publication of this process.
type publication struct {
	at    time.Time
	err   error
	since time.Time // of the first failure in a row
	n     int       // failures in a row
}

// publishErrorFor is how long Health returns the error of a failed publication. A process that
// publishes tries again within a minute. After that another process publishes, and the probe counts.
const publishErrorFor = 90 * time.Second

// Health returns OK, Away or Failing, and the reason, which names no address and no credential and
// may be shown to anybody. With OK the reason is empty, or an error of another stream than the
// events stream or of a stream's replicas.
func (b *Bus) Health() (state, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()

	s := &b.state
	// From the most serious error to the least: the first case is the answer.
	last := s.lastPublish
	switch {
	case b.ctx.Err() != nil:
		return Away, "the bus is closed"
	case b.connCtx.Err() != nil:
		if s.dialErr != nil {
			return Away, publicReason(s.dialErr)
		}
		return Away, publicReason(ErrDisconnected)
	case last.err != nil && time.Since(last.at) < publishErrorFor:
		return Failing, fmt.Sprintf("%s (%d times since %s)", publicReason(last.err), last.n, last.since.UTC().Format(time.RFC3339))
	case s.eventsErr != nil:
		return Failing, publicReason(s.eventsErr)
	case !s.ensured && b.events == nil:
		return Failing, "the streams are not there yet"
	case s.probeErr != nil:
		return Failing, publicReason(s.probeErr)
	case s.otherErr != nil:
		return OK, publicReason(s.otherErr)
	case s.replicasErr != nil:
		return OK, publicReason(s.replicasErr)
	}

	return OK, ""
}

// Connected reports whether there is a connection at this moment.
func (b *Bus) Connected() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.connCtx.Err() == nil
}

// recordPublish records the result of a publication. Some errors say nothing of the stream: a message
// that no stream can take, a cancelled call, a lost connection, which Health knows already, and
// another process that has published meanwhile.
func (b *Bus) recordPublish(err error) {
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

	last := &b.state.lastPublish
	last.at, last.err = time.Now(), err
	if err == nil {
		last.n, b.state.probeErr = 0, nil
		return
	}

	// Health says since when publications fail, not since when the last failed.
	if last.n++; last.n == 1 {
		last.since = last.at
	}
}

// recordProbe records the result of a probe of the events stream.
func (b *Bus) recordProbe(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	b.state.probeErr = err
	if needsEnsure(err) {
		b.state.ensured = false // so that the functions of OnReconnect are called when it is over
	}
}

// publicReason returns a text for an error that names no address and no credential.
func publicReason(err error) string {
	var no *jetstream.APIError
	var js jetstream.JetStreamError
	switch {
	case isAuthError(err):
		return "the NATS server refuses our credentials"
	case isCertificateError(err):
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
	case errors.Is(err, errNoLeader), errors.Is(err, errFull), errors.Is(err, errStreamUnusable), errors.Is(err, errTooFewServers), errors.Is(err, errServerUnusable):
		return oneLine(err.Error())
	case errors.Is(err, ErrMoved):
		return ErrMoved.Error()
	}

	return "there is no connection to the NATS server that works; the log says why"
}
