package batch

import (
	"slices"
	"sync"
	"time"
)

const (
	// MaxBytes bounds the payload of a batch, if items have a size. A larger item is a batch
	// of its own.
	MaxBytes = 8 << 20

	// lateAfter is how long a flush may take before another flusher may start for the items
	// that wait.
	lateAfter = 100 * time.Millisecond
	// largeFrom is the size from which an item goes to the queue of large items.
	largeFrom = 64 << 10
)

// Config says how batches are made. The zero value is one flusher and batches of any length.
type Config[T any] struct {
	// MaxItems is how many items a batch has at most; default no limit.
	MaxItems int
	// Flushers is how many flushes run at a time while none is late; default 1.
	Flushers int
	// Backlog is how many items must wait before a flusher starts beside one that is running
	// and not late; default 0.
	Backlog int
	// Reserve is how many flushes run at a time when all before are late; default Flushers.
	Reserve int
	// Size returns the bytes of an item; default nil: items have no size.
	Size func(T) int
}

// Batcher collects items into batches and flushes them. Safe for concurrent use.
type Batcher[T any] struct {
	flush func([]T)
	cfg   Config[T]
	large *Batcher[T] // of items from largeFrom; nil without Config.Size

	mu     sync.Mutex
	idle   sync.Cond // on mu; signalled when active and aside are both 0
	queue  []T       // guarded by mu
	active int       // flushers that run; guarded by mu
	late   int       // flushers of active whose flush takes longer than lateAfter; guarded by mu
	aside  int       // calls of Aside whose work runs; guarded by mu
}

// New returns a Batcher that calls flush with each batch, from several goroutines if cfg says
// so. flush owns the slice.
func New[T any](flush func([]T), cfg Config[T]) *Batcher[T] {
	cfg.Flushers = max(cfg.Flushers, 1)
	cfg.Reserve = max(cfg.Reserve, cfg.Flushers)
	b := newQueue(flush, cfg)

	if cfg.Size != nil {
		cfg.Flushers, cfg.Reserve = 1, 2
		b.large = newQueue(flush, cfg)
	}
	return b
}

func newQueue[T any](flush func([]T), cfg Config[T]) *Batcher[T] {
	b := &Batcher[T]{flush: flush, cfg: cfg}
	b.idle.L = &b.mu
	return b
}

// Add queues items. It never blocks.
func (b *Batcher[T]) Add(items ...T) {
	if b.large == nil {
		b.enqueue(items)
		return
	}

	isLarge := func(item T) bool { return b.cfg.Size(item) >= largeFrom }
	// Nearly always, and without a copy of items.
	if !slices.ContainsFunc(items, isLarge) {
		b.enqueue(items)
		return
	}

	var small []T
	for _, item := range items {
		if isLarge(item) {
			b.large.enqueue([]T{item})
		} else {
			small = append(small, item)
		}
	}

	b.enqueue(small)
}

func (b *Batcher[T]) enqueue(items []T) {
	b.mu.Lock()
	defer b.mu.Unlock()

	if len(items) == 0 {
		return
	}

	b.queue = append(b.queue, items...)

	if b.active < b.cfg.Flushers && len(b.queue) >= b.cfg.Backlog {
		b.startFlusher()
		return
	}

	b.relieveLate()
}

// relieveLate starts a flusher if no running one will soon come back for the queue: there is
// none, or all are late. Hold mu.
func (b *Batcher[T]) relieveLate() {
	if len(b.queue) > 0 && b.active == b.late && b.active < b.cfg.Reserve {
		b.startFlusher()
	}
}

// startFlusher starts a flusher. Hold mu.
func (b *Batcher[T]) startFlusher() {
	b.active++
	go b.runFlusher()
}

func (b *Batcher[T]) runFlusher() {
	for batch := b.take(); batch != nil; batch = b.take() {
		timer := time.AfterFunc(lateAfter, func() { b.countLate(1) })
		b.flush(batch)
		// The timer has fired, or is about to: take the flusher back from the late ones.
		if !timer.Stop() {
			b.countLate(-1)
		}
	}
}

// countLate adds to the number of late flushers, and starts another one if it is time to.
func (b *Batcher[T]) countLate(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.late += n
	b.relieveLate()
}

// take removes the next batch from the queue. The result is nil if the queue is empty; the
// flusher is not counted any more then and must end.
func (b *Batcher[T]) take() []T {
	b.mu.Lock()
	defer b.mu.Unlock()

	n := b.nextLen()
	if n == 0 {
		b.active--
		b.signalIdle()
		return nil
	}

	batch := slices.Clone(b.queue[:n])
	// The rest of the queue keeps the array; without clear the array would keep the payloads.
	clear(b.queue[:n])
	b.queue = b.queue[n:]
	return batch
}

// nextLen returns how many items of the queue make the next batch. Hold mu.
func (b *Batcher[T]) nextLen() int {
	n := len(b.queue)
	if b.cfg.MaxItems > 0 {
		n = min(n, b.cfg.MaxItems)
	}
	if b.cfg.Size == nil {
		return n
	}

	bytes := 0
	for i, item := range b.queue[:n] {
		if bytes += b.cfg.Size(item); bytes > MaxBytes {
			return max(i, 1)
		}
	}

	return n
}

// signalIdle wakes Drain if nothing runs any more. Hold mu.
func (b *Batcher[T]) signalIdle() {
	if b.active == 0 && b.aside == 0 {
		b.idle.Broadcast()
	}
}

// Aside runs work in a separate goroutine, for which Drain waits.
func (b *Batcher[T]) Aside(work func()) {
	b.mu.Lock()
	defer b.mu.Unlock()

	b.aside++
	go func() {
		defer func() {
			b.mu.Lock()
			defer b.mu.Unlock()

			b.aside--
			b.signalIdle()
		}()

		work()
	}()
}

// Waiting returns how many items are queued and not taken by a flusher yet.
func (b *Batcher[T]) Waiting() int {
	b.mu.Lock()
	n := len(b.queue)
	b.mu.Unlock()

	if b.large != nil {
		n += b.large.Waiting()
	}
	return n
}

// Drain waits until all items that were added before are flushed, and all work that was put
// aside is done.
func (b *Batcher[T]) Drain() {
	if b.large != nil {
		b.large.Drain()
	}

	b.mu.Lock()
	defer b.mu.Unlock()

	for b.active > 0 || b.aside > 0 {
		b.idle.Wait()
	}
}
