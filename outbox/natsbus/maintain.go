package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// maintainer is one goroutine that connects, probes the streams, and ensures them when a probe or
// another part has found an error. No other goroutine repeats failed work on the streams.
type maintainer struct {
	cfg     Config
	conn    *connection
	streams *streams
	health  *health
}

// run connects to the server, unless Open has, and ensures the streams until the bus is closed:
// after each reconnect, when a stream was found to be missing, and when a probe finds an error.
func (m *maintainer) run() {
	if errors.Is(m.conn.checkConnected(), ErrDisconnected) { // not if the bus is closed
		if !m.conn.connectWithRetry() {
			return
		}

		m.conn.requestRecheck()
	}

	ticker := time.NewTicker(m.cfg.intervals.probe)
	defer ticker.Stop()

	unanswered := 0 // times in a row without an answer
	for probes := 0; ; probes++ {
		select {
		case <-m.conn.ctx.Done():
			return
		case <-m.conn.recheck:
		case <-ticker.C:
			if m.isHealthy(probes%5 == 0) {
				continue
			}
		}

		// ensure logs its errors, and the next probe tries again.
		ctx, cancel := context.WithTimeoutCause(m.conn.ctx, ensureTimeout, errNoAnswer)
		_, err := m.streams.ensure(ctx)
		cancel()

		if unanswered++; !errors.Is(err, errNoAnswer) {
			unanswered = 0
		}
		if unanswered == maxUnanswered {
			unanswered = 0
			m.conn.switchServer()
		}
	}
}

// maxUnanswered is how many requests in a row JetStream may leave unanswered before the bus connects
// to another server.
const maxUnanswered = 2

// probeTimeout bounds a probe, and ensureTimeout the call of streams.ensure after it. Both are short
// because they are repeated.
const (
	probeTimeout  = 5 * time.Second
	ensureTimeout = 8 * time.Second
)

// isHealthy probes the streams, the events stream alone unless all is set. The result is false if the
// streams must be ensured. The events stream is not probed if a publication was acknowledged a
// moment ago, which proves more.
func (m *maintainer) isHealthy(all bool) bool {
	known := m.health.snapshot()
	busy := known.lastPublish.err == nil && time.Since(known.lastPublish.at) < m.cfg.intervals.probe
	grow := known.replicasErr != nil && time.Since(known.replicasAskedAt) >= m.cfg.intervals.replicas
	others := known.otherErr != nil && all

	switch {
	case m.conn.lost() != nil:
		return true // a reconnect ensures the streams by itself
	case !known.ensured || grow || others:
		return false
	}

	ctx, done := m.conn.requestContext(m.conn.ctx)
	defer done()

	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errNoAnswer)
	defer cancel()

	if !busy {
		stream, err := m.conn.js.Stream(ctx, m.cfg.Stream)
		if err == nil {
			err = errors.Join(checkLeader(stream.CachedInfo()), checkFull(stream.CachedInfo()))
		}

		m.health.recordProbe(cause(ctx, err))
		if needsEnsure(err) {
			return false
		}
	}

	return !all || m.otherStreamsExist(ctx)
}

// otherStreamsExist returns false only if a stream is known to be missing. Consumers notice a missing
// stream by themselves, but the stream of dead letters is not used until there is one.
func (m *maintainer) otherStreamsExist(ctx context.Context) bool {
	for _, subject := range append([]string{deadLetterSubjects}, inboundSubjects...) {
		// An error says nothing about the stream.
		owners, err := capturing(ctx, m.conn.js, subject)
		if err == nil && len(owners) == 0 {
			return false
		}
	}
	return true
}

// errNoLeader is the error of a stream that cannot be written to at the moment, but can be read.
var errNoLeader = errors.New("the stream has no leader: too few of the servers that keep it run")

func checkLeader(info *jetstream.StreamInfo) error {
	if info.Cluster != nil && info.Cluster.Leader == "" {
		return errNoLeader
	}
	return nil
}

// needsEnsure reports an error of a probe after which the streams must be ensured. A full stream is
// as it should be.
func needsEnsure(err error) bool {
	return err != nil && (errors.Is(err, errNoLeader) || !errors.Is(err, errFull))
}

// errFull is the error of a stream at its limit that must not drop old messages.
var errFull = errors.New("the stream is full")

// minEventBytes is about the size of the smallest event in a stream.
const minEventBytes = 512

func checkFull(info *jetstream.StreamInfo) error {
	// Only a stream that refuses new messages can be full. A stream that drops old messages never
	// is.
	limits, has := info.Config, info.State
	switch {
	case limits.Discard != jetstream.DiscardNew:
		return nil
	case limits.MaxMsgs > 0 && has.Msgs >= uint64(limits.MaxMsgs):
		return fmt.Errorf("%w: its max_msgs is %d, and discard is new", errFull, limits.MaxMsgs)
	case limits.MaxBytes > 0 && has.Bytes+minEventBytes > uint64(limits.MaxBytes):
		return fmt.Errorf("%w: its max_bytes is %d, and discard is new", errFull, limits.MaxBytes)
	}
	return nil
}
