package jobs

import (
	"sync"
	"sync/atomic"
	"time"
)

// lockedRowTTL is how long a row counts as locked after a statement has waited for it in vain.
const lockedRowTTL = 2 * time.Second

// lockedRows remembers the rows that another session had locked less than lockedRowTTL ago. An
// item for such a row is written apart from the start, and so fails no batch.
type lockedRows struct {
	n     atomic.Int64 // entries of until, so that the usual case (none) takes no lock
	mu    sync.Mutex
	until map[any]time.Time // by batchItems.row; guarded by mu
}

func (l *lockedRows) add(row any) {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.until == nil {
		l.until = map[any]time.Time{}
	}
	// awaitRow adds the row after each failed try: the entry lasts as long as the lock.
	l.until[row] = time.Now().Add(lockedRowTTL)
	l.n.Store(int64(len(l.until)))
}

func (l *lockedRows) has(row any) bool {
	if l.none() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()

	until, known := l.until[row]
	return known && time.Now().Before(until)
}

func (l *lockedRows) none() bool { return l.n.Load() == 0 }

// expire drops the entries whose time is over.
func (l *lockedRows) expire() {
	if l.none() {
		return
	}

	l.mu.Lock()
	defer l.mu.Unlock()

	now := time.Now()
	for row, until := range l.until {
		if now.After(until) {
			delete(l.until, row)
		}
	}

	l.n.Store(int64(len(l.until)))
}
