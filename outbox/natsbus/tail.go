package natsbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Tail returns the sequence of the last stored event and the time at which the stream was created.
// Another time means another stream, whose sequences start at 1 again.
func (b *Bus) Tail(ctx context.Context) (last uint64, created time.Time, err error) {
	if err := b.checkConnected(); err != nil {
		return 0, time.Time{}, err
	}

	ctx, done := b.requestContext(ctx)
	defer done()

	stream, err := b.js.Stream(ctx, b.cfg.Stream)
	// maintain creates the stream again and calls the functions of OnReconnect.
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		b.requestRecheck()
	}
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("read the tail of stream %s: %w", b.cfg.Stream, cause(ctx, err))
	}

	info := stream.CachedInfo()
	// From now on a batch is stored only if no other process publishes before.
	b.arm(info)
	return info.State.LastSeq, info.Created, nil
}

// Stored returns the id of the event at a sequence; empty if the stream has no event there (any
// more).
func (b *Bus) Stored(ctx context.Context, seq uint64) (id string, err error) {
	if seq == 0 {
		return "", nil // the server takes 0 for a missing parameter
	}

	events, err := b.stream()
	if err != nil {
		return "", err
	}

	ctx, done := b.requestContext(ctx)
	defer done()

	msg, err := events.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read event %d of stream %s: %w", seq, b.cfg.Stream, cause(ctx, err))
	}
	return eventID(msg.Header.Get(jetstream.MsgIDHeader)), nil
}

// idReaders is how many messages IDs requests at a time.
const idReaders = 16

// IDs returns the sequence of each event id between two sequences, both included. Sequences without
// an event are left out.
func (b *Bus) IDs(ctx context.Context, from, to uint64) (map[string]uint64, error) {
	// The first error ends all readers.
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	ids, slots := map[string]uint64{}, make(chan uint64)
	var mu sync.Mutex
	var readers sync.WaitGroup
	for range min(idReaders, to-min(from, to)+1) {
		readers.Go(func() {
			for seq := range slots {
				id, err := b.Stored(ctx, seq)
				if err != nil {
					stop(err)
					return
				}

				if id == "" {
					continue
				}

				mu.Lock()
				ids[id] = seq
				mu.Unlock()
			}
		})
	}

	for seq := from; seq <= to && ctx.Err() == nil; seq++ {
		select {
		case slots <- seq:
		case <-ctx.Done():
		}
	}

	close(slots)
	readers.Wait()
	return ids, context.Cause(ctx)
}
