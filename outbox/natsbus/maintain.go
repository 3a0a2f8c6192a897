package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// maintain connects to the server, unless Open has, and ensures the streams until the bus is closed:
// after each reconnect, when a stream was found to be missing, and when a probe finds an error.
func (b *Bus) maintain() {
	if errors.Is(b.checkConnected(), ErrDisconnected) { // not if the bus is closed
		if !b.connectWithRetry() {
			return
		}

		b.requestRecheck()
	}

	ticker := time.NewTicker(b.cfg.intervals.probe)
	defer ticker.Stop()

	unanswered := 0 // times in a row without an answer
	for probes := 0; ; probes++ {
		select {
		case <-b.ctx.Done():
			return
		case <-b.recheck:
		case <-ticker.C:
			if b.isHealthy(probes%5 == 0) {
				continue
			}
		}

		// ensureStreams logs its errors, and the next probe tries again.
		ctx, cancel := context.WithTimeoutCause(b.ctx, ensureTimeout, errNoAnswer)
		_, err := b.ensureStreams(ctx)
		cancel()

		if unanswered++; !errors.Is(err, errNoAnswer) {
			unanswered = 0
		}
		if unanswered == maxUnanswered {
			unanswered = 0
			b.switchServer()
		}
	}
}

// maxUnanswered is how many requests in a row JetStream may leave unanswered before the bus connects
// to another server.
const maxUnanswered = 2

// switchServer connects to another server of a cluster. The current one may be cut off from the
// others, or may not know yet which server leads a stream.
func (b *Bus) switchServer() {
	// There is no other server to connect to.
	if b.srv != nil || len(b.nc.Servers()) < 2 {
		return
	}

	b.cfg.Logger.Warn("JetStream does not answer by way of this NATS server: another one is tried", "server", b.nc.ConnectedAddr())
	if err := b.nc.ForceReconnect(); err != nil {
		b.cfg.Logger.Warn("nats", "error", err)
	}
}

// requestRecheck makes maintain ensure the streams soon.
func (b *Bus) requestRecheck() {
	select {
	case b.recheck <- struct{}{}:
	default:
	}
}

// probeTimeout bounds a probe, and ensureTimeout the call of ensureStreams after it. Both are short
// because they are repeated.
const (
	probeTimeout  = 5 * time.Second
	ensureTimeout = 8 * time.Second
)

// isHealthy probes the streams, the events stream alone unless all is set. The result is false if the
// streams must be ensured. The events stream is not probed if a publication was acknowledged a
// moment ago, which proves more.
func (b *Bus) isHealthy(all bool) bool {
	b.mu.Lock()
	connected, ensured := b.connCtx.Err() == nil, b.state.ensured
	busy := b.state.lastPublish.err == nil && time.Since(b.state.lastPublish.at) < b.cfg.intervals.probe
	grow := b.state.replicasErr != nil && time.Since(b.state.replicasAskedAt) >= b.cfg.intervals.replicas
	others := b.state.otherErr != nil && all
	b.mu.Unlock()
	switch {
	case !connected:
		return true // a reconnect ensures the streams by itself
	case !ensured || grow || others:
		return false
	}

	ctx, done := b.requestContext(b.ctx)
	defer done()

	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errNoAnswer)
	defer cancel()

	if !busy {
		stream, err := b.js.Stream(ctx, b.cfg.Stream)
		if err == nil {
			err = errors.Join(checkLeader(stream.CachedInfo()), checkFull(stream.CachedInfo()))
		}

		b.recordProbe(cause(ctx, err))
		if needsEnsure(err) {
			return false
		}
	}

	return !all || b.otherStreamsExist(ctx)
}

// otherStreamsExist returns false only if a stream is known to be missing. Consumers notice a missing
// stream by themselves, but the stream of dead letters is not used until there is one.
func (b *Bus) otherStreamsExist(ctx context.Context) bool {
	for _, subject := range append([]string{deadLetterSubjects}, inboundSubjects...) {
		// An error says nothing about the stream.
		owners, err := b.capturing(ctx, subject)
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
