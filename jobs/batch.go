package jobs

import "sync"

// batcher is group commit: items are handed in one at a time and written many
// at a time. While a flush is in flight the next batch collects; an idle batcher
// flushes at once, a busy one needs no timer to fill up.
//
// flush owns its batch and must answer every item, whatever happens.
type batcher[T any] struct {
	flush    func([]T)
	most     int // items a flush
	flushers int // flushes at a time; the further ones start only behind a backlog
	backlog  int // items that have to wait before a further flusher starts

	mu     sync.Mutex
	idle   sync.Cond // signalled when running falls to zero
	queue  []T       // guarded by mu
	active int       // guarded by mu
}

func newBatcher[T any](most, flushers, backlog int, flush func([]T)) *batcher[T] {
	b := &batcher[T]{flush: flush, most: most, flushers: flushers, backlog: backlog}
	b.idle.L = &b.mu
	return b
}

// add hands in items; it never blocks.
func (b *batcher[T]) add(items ...T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, items...)
	if b.active == 0 || (b.active < b.flushers && len(b.queue) >= b.backlog) {
		b.active++
		go b.run()
	}
}

func (b *batcher[T]) run() {
	for {
		batch := b.take()
		if batch == nil {
			return
		}
		b.flush(batch)
	}
}

func (b *batcher[T]) take() []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(b.queue), b.most)
	if n == 0 {
		b.active--
		if b.active == 0 {
			b.idle.Broadcast()
		}
		return nil
	}
	batch := b.queue[:n:n]
	b.queue = b.queue[n:]
	return batch
}

// drain waits until everything handed in so far is written.
func (b *batcher[T]) drain() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.active > 0 {
		b.idle.Wait()
	}
}
