package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// keep joins the server, where Open has not, and looks after the streams until the bus is
// closed: after each connection, when somebody finds that one is missing, and now and then
// while nothing is published.
func (b *Bus) keep() {
	if errors.Is(b.joined(), ErrDisconnected) { // and not closed already
		if !b.connectLater() {
			return
		}
		b.wonder()
	}

	look := time.NewTicker(b.cfg.rhythm.look)
	defer look.Stop()
	silent := 0 // times in a row without an answer
	for looks := 0; ; looks++ {
		select {
		case <-b.ctx.Done():
			return
		case <-b.doubt:
		case <-look.C:
			if b.isWell(looks%5 == 0) {
				continue
			}
		}
		hurry, enough := context.WithTimeoutCause(b.ctx, ensureWait, errNoAnswer)
		_, err := b.ensureStreams(hurry) // which tells of its failures, and the next look asks again
		enough()
		if silent++; !errors.Is(err, errNoAnswer) {
			silent = 0
		}
		if silent == mostSilent {
			silent = 0
			b.elsewhere()
		}
	}
}

// mostSilent is how often in a row JetStream may leave us without an answer before another
// server is asked.
const mostSilent = 2

// elsewhere connects to another server of a cluster: the one that we are connected to may be
// cut off from the others, or not know yet who answers for a stream.
func (b *Bus) elsewhere() {
	if b.srv != nil || len(b.nc.Servers()) < 2 {
		return
	}
	b.cfg.Logger.Warn("JetStream does not answer by way of this NATS server: another one is tried", "server", b.nc.ConnectedAddr())
	if err := b.nc.ForceReconnect(); err != nil {
		b.cfg.Logger.Warn("nats", "error", err)
	}
}

// wonder has the streams made sure of soon.
func (b *Bus) wonder() {
	select {
	case b.doubt <- struct{}{}:
	default:
	}
}

// lookWait bounds one look, and ensureWait what follows it. They are short: nobody waits for
// an answer, and the question is asked again.
const (
	lookWait   = 5 * time.Second
	ensureWait = 8 * time.Second
)

// isWell looks at the streams and is false if they have to be made sure of. A publication
// that was acknowledged a moment ago says more than a look, and spares it.
func (b *Bus) isWell(all bool) bool {
	b.mu.Lock()
	linked, sure := b.link.Err() == nil, b.state.sure
	busy := b.state.publication.err == nil && time.Since(b.state.publication.at) < b.cfg.rhythm.look
	grow := b.state.fewer != nil && time.Since(b.state.grownAt) >= b.cfg.rhythm.grow
	b.mu.Unlock()
	switch {
	case !linked:
		return true // there is nobody to ask; the next connection is a reason of its own
	case !sure || grow:
		return false
	}

	ctx, done := b.exchange(b.ctx)
	defer done()
	ctx, enough := context.WithTimeoutCause(ctx, lookWait, errNoAnswer)
	defer enough()
	if !busy {
		stream, err := b.js.Stream(ctx, b.cfg.Stream)
		if err == nil {
			err = errors.Join(led(stream.CachedInfo()), full(stream.CachedInfo()))
		}
		b.looked(why(ctx, err))
		if unwell(err) {
			return false
		}
	}
	return !all || b.othersAreThere(ctx)
}

// othersAreThere is false only if a stream is known to be missing: consumers notice that
// by themselves, but nothing asks for the dead letters until there is one.
func (b *Bus) othersAreThere(ctx context.Context) bool {
	for _, subject := range append([]string{deadLetterSubjects}, inboundSubjects...) {
		owners, err := b.owners(ctx, subject)
		if err == nil && len(owners) == 0 {
			return false
		}
	}
	return true
}

// errNoLeader is a stream that nobody can write to at the moment. It still says how it is.
var errNoLeader = errors.New("the stream has no leader: too few of the servers that keep it run")

func led(info *jetstream.StreamInfo) error {
	if info.Cluster != nil && info.Cluster.Leader == "" {
		return errNoLeader
	}
	return nil
}

// unwell is what making sure of the streams may help against, or waiting: a stream that is
// full is as it should be.
func unwell(err error) bool {
	return err != nil && (errors.Is(err, errNoLeader) || !errors.Is(err, errFull))
}

// errFull is a stream that takes no more, and is not to drop anything for what comes.
var errFull = errors.New("the stream is full")

// leastRoom is what the smallest event takes in a stream, about.
const leastRoom = 512

func full(info *jetstream.StreamInfo) error {
	limits, has := info.Config, info.State
	switch {
	case limits.Discard != jetstream.DiscardNew:
		return nil
	case limits.MaxMsgs > 0 && has.Msgs >= uint64(limits.MaxMsgs):
		return fmt.Errorf("%w: its max_msgs is %d, and discard is new", errFull, limits.MaxMsgs)
	case limits.MaxBytes > 0 && has.Bytes+leastRoom > uint64(limits.MaxBytes):
		return fmt.Errorf("%w: its max_bytes is %d, and discard is new", errFull, limits.MaxBytes)
	}
	return nil
}
