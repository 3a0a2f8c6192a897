package natsbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
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

// health is what the last requests said of the connection and the streams. The other parts record
// their errors here, and nothing is decided by an error but in report and by the maintainer.
type health struct {
	mu    sync.Mutex
	state state
}

// state is guarded by health.mu.
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

// report implements Bus.Health. lost is the error of the connection, and known says that the events
// stream was ensured before and can still be used.
func (h *health) report(lost error, known bool) (condition, reason string) {
	s := h.snapshot()

	// From the most serious error to the least: the first case is the answer.
	last := s.lastPublish
	switch {
	case errors.Is(lost, ErrClosed):
		return Away, "the bus is closed"
	case lost != nil && s.dialErr != nil:
		return Away, publicReason(s.dialErr)
	case lost != nil:
		return Away, publicReason(lost)
	case last.err != nil && time.Since(last.at) < publishErrorFor:
		return Failing, fmt.Sprintf("%s (%d times since %s)", publicReason(last.err), last.n, last.since.UTC().Format(time.RFC3339))
	case s.eventsErr != nil:
		return Failing, publicReason(s.eventsErr)
	case !s.ensured && !known:
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

// snapshot returns a copy of the state.
func (h *health) snapshot() state {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// recordDial records why there is no connection.
func (h *health) recordDial(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.dialErr = err
}

// recordLost records that the connection was lost: the streams must be ensured after a reconnect.
func (h *health) recordLost() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.ensured = false
}

// recordEvents records that the events stream was ensured. It reports whether that is the first time
// since the last reconnect.
func (h *health) recordEvents() (first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()

	first = !h.state.ensured
	if first {
		h.state.lastPublish.err = nil // a failure before the reconnect means nothing any more
	}

	h.state.ensured, h.state.probeErr = true, nil
	return first
}

// recordSetup records the errors of ensuring the events stream, the other streams, and the replicas.
func (h *health) recordSetup(events, others, fewer error) {
	h.mu.Lock()
	defer h.mu.Unlock()

	s := &h.state
	s.eventsErr, s.otherErr, s.replicasErr, s.replicasAskedAt = events, others, fewer, time.Now()
	if events != nil {
		s.ensured = false // the next probe tries again
	}
}

// recordPublish records the result of a publication. Some errors say nothing of the stream: a message
// that no stream can take, a cancelled call, a lost connection, which Health knows already, and
// another process that has published meanwhile.
func (h *health) recordPublish(err error) {
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

	h.mu.Lock()
	defer h.mu.Unlock()

	last := &h.state.lastPublish
	last.at, last.err = time.Now(), err
	if err == nil {
		last.n, h.state.probeErr = 0, nil
		return
	}

	// Health says since when publications fail, not since when the last failed.
	if last.n++; last.n == 1 {
		last.since = last.at
	}
}

// recordProbe records the result of a probe of the events stream.
func (h *health) recordProbe(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()

	h.state.probeErr = err
	if needsEnsure(err) {
		h.state.ensured = false // so that the functions of OnReconnect are called when it is over
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
		return "the NATS server and this process do not accept each other's certificates; the log says why"
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
