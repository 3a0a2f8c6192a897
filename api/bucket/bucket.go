// Package bucket holds callers to a rate: a token bucket for each, in memory that is
// bounded however many callers there are.
//
// A bucket is kept as the instant at which it is full again (the generic cell rate
// algorithm): one integer, no rounding, and so an exact answer to when to come back.
package bucket

import (
	"container/list"
	"sync"
	"time"
)

// Limit is how much a caller may do. The zero value is no limit.
type Limit struct {
	Rate  float64 // tokens that come back each second; 0: no limit
	Burst int     // tokens that a full bucket holds; at least 1
}

// Off says that there is no limit.
func (l Limit) Off() bool { return l.Rate <= 0 }

// each is how long one token takes to come back.
func (l Limit) each() time.Duration { return max(time.Duration(float64(time.Second)/l.Rate), 1) }

// Window is how long an empty bucket takes to be full.
func (l Limit) Window() time.Duration { return l.each() * time.Duration(l.Burst) }

// Verdict is what a bucket says.
type Verdict struct {
	OK   bool
	Left int           // tokens that are left
	Wait time.Duration // not OK: until the same would be
	Full time.Duration // until the bucket is full again
}

// Buckets are the buckets of callers of one kind. Safe for concurrent use.
type Buckets[K comparable] struct {
	limit Limit
	most  int
	now   func() time.Time

	mu    sync.Mutex
	all   map[K]*list.Element // of *bucket[K]; guarded by mu
	order *list.List          // the last used first; guarded by mu
}

type bucket[K comparable] struct {
	key  K
	full time.Time // when it is full again; in the past: it is
}

// New makes buckets of one limit, at most so many of them: beyond that, the one that was
// not used for longest is forgotten, and so is full. now is the clock; nil: the real one.
func New[K comparable](limit Limit, most int, now func() time.Time) *Buckets[K] {
	if now == nil {
		now = time.Now
	}
	limit.Burst = max(limit.Burst, 1)
	return &Buckets[K]{limit: limit, most: most, now: now, all: map[K]*list.Element{}, order: list.New()}
}

// Limit is what all these buckets are held to.
func (b *Buckets[K]) Limit() Limit { return b.limit }

// Take takes n tokens. More than a full bucket holds are had of a full bucket, and are
// owed. Of the n, paid were taken before, for the same.
func (b *Buckets[K]) Take(key K, n, paid int) Verdict {
	if b.limit.Off() {
		return Verdict{OK: true}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	one := b.use(key, now)
	each, window := b.limit.each(), b.limit.Window()
	need := each * time.Duration(min(n, b.limit.Burst))
	before := later(now, one.full.Add(-each*time.Duration(paid)))
	if before.Add(need).Sub(now) > window {
		v := b.verdict(one, now)
		v.Wait = later(now, one.full).Add(need).Sub(now) - window
		return v
	}
	one.full = before.Add(each * time.Duration(n))
	v := b.verdict(one, now)
	v.OK = true
	return v
}

// Has says whether a token could be taken, and takes none.
func (b *Buckets[K]) Has(key K) Verdict {
	if b.limit.Off() {
		return Verdict{OK: true}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	at, known := b.all[key]
	if !known {
		return Verdict{OK: true, Left: b.limit.Burst}
	}
	one := at.Value.(*bucket[K])
	v := b.verdict(one, now)
	v.Wait = max(later(now, one.full).Add(b.limit.each()).Sub(now)-b.limit.Window(), 0)
	v.OK = v.Wait == 0
	return v
}

// Len is how many buckets there are.
func (b *Buckets[K]) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.all)
}

func (b *Buckets[K]) verdict(one *bucket[K], now time.Time) Verdict {
	full := max(one.full.Sub(now), 0)
	return Verdict{Full: full, Left: max(int((b.limit.Window()-full)/b.limit.each()), 0)}
}

// use finds a bucket, or makes one, and makes room for it. Those not used for longest
// are likely to be full, and a full one is no different from none.
func (b *Buckets[K]) use(key K, now time.Time) *bucket[K] {
	if at, known := b.all[key]; known {
		b.order.MoveToFront(at)
		return at.Value.(*bucket[K])
	}
	one := &bucket[K]{key: key, full: now}
	b.all[key] = b.order.PushFront(one)
	for last := b.order.Back(); len(b.all) > 1; last = b.order.Back() {
		old := last.Value.(*bucket[K])
		if len(b.all) <= b.most && old.full.After(now) {
			break
		}
		b.order.Remove(last)
		delete(b.all, old.key)
	}
	return one
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
