// Package bucket limits the rate of callers: a token bucket for each, in memory that is bounded for
// any number of callers.
//
// A bucket is stored as the time at which it will be full again (the generic cell rate algorithm):
// one integer, without rounding, from which the time to wait is exact.
package bucket

import (
	"container/list"
	"sync"
	"time"
)

// Limit is a rate limit. The zero value means no limit.
type Limit struct {
	Rate  float64 // tokens that come back per second; 0: no limit
	Burst int     // tokens of a full bucket; at least 1
}

// Off returns whether there is no limit.
func (l Limit) Off() bool { return l.Rate <= 0 }

// each is the time in which one token comes back.
func (l Limit) each() time.Duration { return max(time.Duration(float64(time.Second)/l.Rate), 1) }

// Window is the time in which an empty bucket becomes full.
func (l Limit) Window() time.Duration { return l.each() * time.Duration(l.Burst) }

// Verdict is the result of Take and Has.
type Verdict struct {
	OK   bool
	Left int           // remaining tokens
	Wait time.Duration // if not OK: the time until the same call would succeed
	Full time.Duration // until the bucket is full again
}

// Buckets are the buckets of one kind of callers. They are safe for concurrent use.
type Buckets[K comparable] struct {
	limit Limit
	most  int
	now   func() time.Time

	mu    sync.Mutex
	all   map[K]*list.Element // of *bucket[K]; guarded by mu
	order *list.List          // most recently used first; guarded by mu
}

type bucket[K comparable] struct {
	key  K
	full time.Time // when the bucket is full again; in the past: it is full
}

// New makes buckets of one limit, at most so many. Above that, the least recently used one is
// forgotten, which amounts to a full bucket. now is the clock; nil: time.Now.
func New[K comparable](limit Limit, most int, now func() time.Time) *Buckets[K] {
	if now == nil {
		now = time.Now
	}
	limit.Burst = max(limit.Burst, 1)
	return &Buckets[K]{limit: limit, most: most, now: now, all: map[K]*list.Element{}, order: list.New()}
}

// Limit returns the limit of these buckets.
func (b *Buckets[K]) Limit() Limit { return b.limit }

// Take takes n tokens. A call for more tokens than a full bucket holds needs a full bucket, and the
// excess is owed. Of the n tokens, paid were taken before for the same request.
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
	// The tokens that were paid before are given back for the comparison, and taken again with n.
	before := later(now, one.full.Add(-each*time.Duration(paid)))
	if before.Add(need).Sub(now) > window {
		// A refused call takes nothing, so that a client that keeps asking is not locked out.
		v := b.verdict(one, now)
		v.Wait = later(now, one.full).Add(need).Sub(now) - window
		return v
	}

	one.full = before.Add(each * time.Duration(n))
	v := b.verdict(one, now)
	v.OK = true
	return v
}

// Has returns whether a token could be taken, and takes none.
func (b *Buckets[K]) Has(key K) Verdict {
	if b.limit.Off() {
		return Verdict{OK: true}
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	// An unknown key has a full bucket. Has is called for every address, so no bucket is made here.
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

// Len returns the number of buckets.
func (b *Buckets[K]) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.all)
}

func (b *Buckets[K]) verdict(one *bucket[K], now time.Time) Verdict {
	full := max(one.full.Sub(now), 0)
	return Verdict{Full: full, Left: max(int((b.limit.Window()-full)/b.limit.each()), 0)}
}

// use finds or creates a bucket. If there are too many, full ones and the least recently used one
// are removed: a removed full bucket makes no difference.
func (b *Buckets[K]) use(key K, now time.Time) *bucket[K] {
	if at, known := b.all[key]; known {
		b.order.MoveToFront(at)
		return at.Value.(*bucket[K])
	}

	// A new bucket is full.
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
