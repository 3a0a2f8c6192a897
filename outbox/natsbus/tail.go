package natsbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Tail is the sequence of the last event stored, and when the stream was made:
// another time means another stream, whose sequences start again.
func (b *Bus) Tail(ctx context.Context) (last uint64, created time.Time, err error) {
	if err := b.joined(); err != nil {
		return 0, time.Time{}, err
	}
	ctx, done := b.exchange(ctx)
	defer done()
	stream, err := b.js.Stream(ctx, b.cfg.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		b.wonder()
	}
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("read the tail of stream %s: %w", b.cfg.Stream, why(ctx, err))
	}
	info := stream.CachedInfo()
	b.arm(info)
	return info.State.LastSeq, info.Created, nil
}

// Stored is the id of the event at sequence seq, or "" if there is none, be it
// that it never was, was lost, or is too old.
func (b *Bus) Stored(ctx context.Context, seq uint64) (id string, err error) {
	if seq == 0 {
		return "", nil // to the server 0 means "unset" and is an error
	}
	events, err := b.stream()
	if err != nil {
		return "", err
	}
	ctx, done := b.exchange(ctx)
	defer done()
	msg, err := events.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read event %d of stream %s: %w", seq, b.cfg.Stream, why(ctx, err))
	}
	return eventID(msg.Header.Get(jetstream.MsgIDHeader)), nil
}

// idReaders is how many messages are asked for at a time when ids are read.
const idReaders = 16

// IDs are the ids of the events from one sequence to another, both included, with the
// sequence of each. A place whose event is gone, or never was, has none.
func (b *Bus) IDs(ctx context.Context, from, to uint64) (map[string]uint64, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ids, places := map[string]uint64{}, make(chan uint64)
	var mu sync.Mutex
	var readers sync.WaitGroup
	for range min(idReaders, to-min(from, to)+1) {
		readers.Go(func() {
			for seq := range places {
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
		case places <- seq:
		case <-ctx.Done():
		}
	}
	close(places)
	readers.Wait()
	return ids, context.Cause(ctx)
}
