package jobs

import (
	"slices"
	"sync"
	"time"
)

// batcher is group commit: items are handed in one at a time and written many
// at a time. While a flush is in flight the next batch collects; an idle batcher
// flushes at once, a busy one needs no timer to fill up.
//
// Large items have a queue and flushers of their own, so that small ones do not wait
// until hundreds of megabytes are written.
//
// flush owns its batch and must answer every item, whatever happens. What takes longer
// than a statement goes on beside it (aside).
//
// Batches of two flushers can overtake each other, and an item that waits aside is
// overtaken by all that come later. So the batcher promises no order, not even for one
// task: a caller whose second move builds on the first waits for the answer to the first,
// and the fence decides between callers.
type batcher[T any] struct {
	flush func([]T)
	batching[T]
	bulk *batcher[T] // of large items; nil where all go one way

	mu     sync.Mutex
	idle   sync.Cond // signalled when nothing is under way any more
	queue  []T       // guarded by mu
	active int       // flushers; guarded by mu
	late   int       // of those, the ones that have been away for flushPatience; guarded by mu
	apart  int       // what goes on aside; guarded by mu
}

// batching says how batches are made.
type batching[T any] struct {
	most     int         // items a flush
	flushers int         // flushes at a time while each returns within flushPatience; default 1
	backlog  int         // items that have to wait before a further flusher starts
	reserve  int         // flushes at a time when those before are late; default flushers
	size     func(T) int // bytes of an item; nil: items have none
}

const (
	// flushPatience is how long a flush may be away before another flusher takes over
	// what waits: a lock of somebody else's holds one batch, and not those behind.
	flushPatience = 100 * time.Millisecond
	// flushBytes bounds the payload of a flush. An item that is larger goes alone.
	flushBytes = 8 << 20
	// bulkyFrom is the size from which an item goes to the queue of large items.
	bulkyFrom = 64 << 10
)

func newBatcher[T any](flush func([]T), how batching[T]) *batcher[T] {
	how.flushers = max(how.flushers, 1)
	how.reserve = max(how.reserve, how.flushers)
	b := &batcher[T]{flush: flush, batching: how}
	b.idle.L = &b.mu
	if how.size != nil {
		b.bulk = &batcher[T]{flush: flush, batching: how}
		b.bulk.flushers, b.bulk.reserve = 1, 2
		b.bulk.idle.L = &b.bulk.mu
	}
	return b
}

// add hands in items; it never blocks.
func (b *batcher[T]) add(items ...T) {
	if b.bulk == nil {
		b.put(items)
		return
	}
	bulky := func(item T) bool { return b.size(item) >= bulkyFrom }
	if !slices.ContainsFunc(items, bulky) {
		b.put(items)
		return
	}
	var small []T
	for _, item := range items {
		if bulky(item) {
			b.bulk.put([]T{item})
		} else {
			small = append(small, item)
		}
	}
	b.put(small)
}

func (b *batcher[T]) put(items []T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(items) == 0 {
		return
	}
	b.queue = append(b.queue, items...)
	if b.active < b.flushers && len(b.queue) >= b.backlog {
		b.begin()
		return
	}
	b.relieve()
}

// relieve starts a flusher where none will be back soon. Hold mu.
func (b *batcher[T]) relieve() {
	if len(b.queue) > 0 && b.active == b.late && b.active < b.reserve {
		b.begin()
	}
}

// begin starts a flusher. Hold mu.
func (b *batcher[T]) begin() {
	b.active++
	go b.run()
}

func (b *batcher[T]) run() {
	for batch := b.take(); batch != nil; batch = b.take() {
		late := time.AfterFunc(flushPatience, func() { b.away(1) })
		b.flush(batch)
		if !late.Stop() {
			b.away(-1)
		}
	}
}

// away counts the flushers that are late.
func (b *batcher[T]) away(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.late += n
	b.relieve()
}

// take is the next batch; nil when there is none, and the flusher has ended.
func (b *batcher[T]) take() []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.fit()
	if n == 0 {
		b.active--
		b.rest()
		return nil
	}
	batch := slices.Clone(b.queue[:n])
	clear(b.queue[:n]) // payloads must not live on in what is left of the array
	b.queue = b.queue[n:]
	return batch
}

// fit is how many of the queue go into one flush. Hold mu.
func (b *batcher[T]) fit() int {
	n := min(len(b.queue), b.most)
	if b.size == nil {
		return n
	}
	bytes := 0
	for i, item := range b.queue[:n] {
		if bytes += b.size(item); bytes > flushBytes {
			return max(i, 1)
		}
	}
	return n
}

// rest tells drain when nothing is under way. Hold mu.
func (b *batcher[T]) rest() {
	if b.active == 0 && b.apart == 0 {
		b.idle.Broadcast()
	}
}

// aside does what a flush would have to wait for. drain waits for it.
func (b *batcher[T]) aside(work func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.apart++
	go func() {
		defer func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.apart--
			b.rest()
		}()
		work()
	}()
}

// drain waits until everything handed in so far is written.
func (b *batcher[T]) drain() {
	if b.bulk != nil {
		b.bulk.drain()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.active > 0 || b.apart > 0 {
		b.idle.Wait()
	}
}
