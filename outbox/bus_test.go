package outbox_test

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/outbox"
)

// memoryBus is a stream that stores each id once, and remembers every delivery. It
// stands at the relay's seam only; the real bus has its tests in natsbus.
type memoryBus struct {
	// before is asked at each Publish; an error refuses the batch. after comes once
	// the batch is stored and before the relay hears of it.
	before func(batch []outbox.Message) error
	after  func()

	mu         sync.Mutex
	made       time.Time
	stream     []outbox.Message // guarded by mu
	deliveries []outbox.Message // guarded by mu
}

func newMemoryBus() *memoryBus {
	return &memoryBus{made: time.Now(), before: func([]outbox.Message) error { return nil }, after: func() {}}
}

func (m *memoryBus) Publish(_ context.Context, batch []outbox.Message) (uint64, error) {
	if err := m.before(batch); err != nil {
		return 0, err
	}
	m.mu.Lock()
	var last int
	for _, one := range batch {
		m.deliveries = append(m.deliveries, one)
		last = slices.IndexFunc(m.stream, func(o outbox.Message) bool { return o.ID == one.ID }) + 1
		if last == 0 {
			m.stream = append(m.stream, one)
			last = len(m.stream)
		}
	}
	m.mu.Unlock()
	m.after()
	return uint64(last), nil
}

func (m *memoryBus) Stored(_ context.Context, seq uint64) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if seq == 0 || seq > uint64(len(m.stream)) {
		return "", nil
	}
	return m.stream[seq-1].ID, nil
}

func (m *memoryBus) IDs(_ context.Context, from, to uint64) (map[string]uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids := map[string]uint64{}
	for seq := from; seq <= min(to, uint64(len(m.stream))); seq++ {
		ids[m.stream[seq-1].ID] = seq
	}
	return ids, nil
}

func (m *memoryBus) Tail(context.Context) (uint64, time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return uint64(len(m.stream)), m.made, nil
}

// truncate loses everything after the first n.
func (m *memoryBus) truncate(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stream = m.stream[:n]
}

// renew is another stream of the same name.
func (m *memoryBus) renew() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stream, m.made = nil, m.made.Add(time.Hour)
}

func (m *memoryBus) ids() []string          { return idsOf(m.list(false)) }
func (m *memoryBus) deliveredIDs() []string { return idsOf(m.list(true)) }

func (m *memoryBus) list(deliveries bool) []outbox.Message {
	m.mu.Lock()
	defer m.mu.Unlock()
	if deliveries {
		return slices.Clone(m.deliveries)
	}
	return slices.Clone(m.stream)
}

func idsOf(messages []outbox.Message) []string {
	ids := []string{}
	for _, m := range messages {
		ids = append(ids, m.ID)
	}
	return ids
}
