package natsbus

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
)

// reader reads the events stream for the relay's reconciliation.
type reader struct {
	cfg     Config
	conn    *connection
	streams *streams
}

// tail returns the state of the events stream, as the server has it at this moment.
func (r *reader) tail(ctx context.Context) (*jetstream.StreamInfo, error) {
	if err := r.conn.checkConnected(); err != nil {
		return nil, err
	}

	ctx, done := r.conn.requestContext(ctx)
	defer done()

	stream, err := r.conn.js.Stream(ctx, r.cfg.Stream)
	// The maintainer creates the stream again and calls the functions of OnReconnect.
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		r.conn.requestRecheck()
	}
	if err != nil {
		return nil, fmt.Errorf("read the tail of stream %s: %w", r.cfg.Stream, cause(ctx, err))
	}
	return stream.CachedInfo(), nil
}

// stored implements Bus.Stored.
func (r *reader) stored(ctx context.Context, seq uint64) (id string, err error) {
	if seq == 0 {
		return "", nil // the server takes 0 for a missing parameter
	}

	events, err := r.streams.current()
	if err != nil {
		return "", err
	}

	ctx, done := r.conn.requestContext(ctx)
	defer done()

	msg, err := events.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read event %d of stream %s: %w", seq, r.cfg.Stream, cause(ctx, err))
	}
	return eventID(msg.Header.Get(jetstream.MsgIDHeader)), nil
}

// idReaders is how many messages ids requests at a time.
const idReaders = 16

// ids implements Bus.IDs.
func (r *reader) ids(ctx context.Context, from, to uint64) (map[string]uint64, error) {
	// The first error ends all readers.
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	ids, slots := map[string]uint64{}, make(chan uint64)
	var mu sync.Mutex
	var readers sync.WaitGroup
	for range min(idReaders, to-min(from, to)+1) {
		readers.Go(func() {
			for seq := range slots {
				id, err := r.stored(ctx, seq)
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
