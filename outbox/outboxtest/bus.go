package outboxtest

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/outbox"
)

// Bus is a stream in memory that stores each message id once and records every delivery. It
// replaces the bus in the tests of the relay only; the NATS bus has tests in package natsbus.
type Bus struct {
	// Before is called at the start of each Publish; its error refuses the batch. After is
	// called when the batch is stored and Publish has not returned yet.
	Before func(batch []outbox.Message) error
	After  func()

	mu         sync.Mutex
	created    time.Time        // guarded by mu
	stream     []outbox.Message // guarded by mu
	deliveries []outbox.Message // guarded by mu
}

// NewBus returns an empty Bus that takes every message.
func NewBus() *Bus {
	return &Bus{created: time.Now(), Before: func([]outbox.Message) error { return nil }, After: func() {}}
}

// Publish stores the messages the stream does not have yet.
func (b *Bus) Publish(_ context.Context, batch []outbox.Message) (uint64, error) {
	// Without the lock: Before may call other methods of the bus.
	if err := b.Before(batch); err != nil {
		return 0, err
	}

	last := b.store(batch)
	b.After()
	return last, nil
}

func (b *Bus) store(batch []outbox.Message) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()

	last := 0
	for _, m := range batch {
		b.deliveries = append(b.deliveries, m)
		last = slices.IndexFunc(b.stream, func(stored outbox.Message) bool { return stored.ID == m.ID }) + 1
		if last == 0 {
			b.stream = append(b.stream, m)
			last = len(b.stream)
		}
	}
	return uint64(last)
}

// Stored returns the id of the message at a sequence; empty if missing.
func (b *Bus) Stored(_ context.Context, seq uint64) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	if seq == 0 || seq > uint64(len(b.stream)) {
		return "", nil
	}
	return b.stream[seq-1].ID, nil
}

// IDs returns the sequence of each message id between two sequences, both included.
func (b *Bus) IDs(_ context.Context, from, to uint64) (map[string]uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	ids := map[string]uint64{}
	for seq := from; seq <= min(to, uint64(len(b.stream))); seq++ {
		ids[b.stream[seq-1].ID] = seq
	}
	return ids, nil
}

// Tail returns the last sequence of the stream and the time of its creation.
func (b *Bus) Tail(context.Context) (uint64, time.Time, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(len(b.stream)), b.created, nil
}

// Truncate removes all messages after the first n.
func (b *Bus) Truncate(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stream = b.stream[:n]
}

// Recreate replaces the stream by an empty one with another time of creation.
func (b *Bus) Recreate() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stream, b.created = nil, b.created.Add(time.Hour)
}

// SetID gives the stored message at a sequence the id of another publisher's message.
func (b *Bus) SetID(seq int, id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stream[seq-1].ID = id
}

// StoredIDs returns the ids of the stream, in order.
func (b *Bus) StoredIDs() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return idsOf(b.stream)
}

// DeliveredIDs returns the ids of all deliveries, in order; a redelivery counts again.
func (b *Bus) DeliveredIDs() []string { return idsOf(b.Deliveries()) }

// Deliveries returns all messages that were published, in order; a redelivery counts again.
func (b *Bus) Deliveries() []outbox.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.deliveries)
}

func idsOf(messages []outbox.Message) []string {
	ids := []string{}
	for _, m := range messages {
		ids = append(ids, m.ID)
	}
	return ids
}
