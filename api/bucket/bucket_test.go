package bucket_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/api/bucket"
)

// clock is moved by hand.
type clock struct{ at time.Time }

func (c *clock) now() time.Time          { return c.at }
func (c *clock) forward(d time.Duration) { c.at = c.at.Add(d) }

func newClock() *clock { return &clock{time.Date(2026, 1, 15, 10, 30, 0, 0, time.UTC)} }

func TestBurstAndRate(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := bucket.New[string](bucket.Limit{Rate: 10, Burst: 5}, 100, c.now)
	for left := 4; left >= 0; left-- {
		v := b.Take("acme", 1, 0)
		require.True(t, v.OK)
		require.Equal(t, left, v.Left)
	}
	v := b.Take("acme", 1, 0)
	require.False(t, v.OK)
	require.Equal(t, 100*time.Millisecond, v.Wait)
	require.Equal(t, 500*time.Millisecond, v.Full)
	require.True(t, b.Take("other", 1, 0).OK, "another's bucket is another")
	c.forward(99 * time.Millisecond)
	require.False(t, b.Has("acme").OK)
	require.False(t, b.Take("acme", 1, 0).OK)
	c.forward(time.Millisecond)
	require.True(t, b.Has("acme").OK)
	require.True(t, b.Take("acme", 1, 0).OK)
	c.forward(time.Hour)
	require.Equal(t, 4, b.Take("acme", 1, 0).Left, "never more than the burst")
}

// More than the burst is had of a full bucket, and owed: in the long run it is the rate.
func TestMoreThanTheBurst(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := bucket.New[int](bucket.Limit{Rate: 10, Burst: 5}, 100, c.now)
	require.True(t, b.Take(1, 100, 0).OK)
	v := b.Take(1, 1, 0)
	require.False(t, v.OK)
	require.Equal(t, 9600*time.Millisecond, v.Wait, "100 tokens at 10 a second, less the burst, and one more")
	v = b.Take(1, 100, 0)
	require.Equal(t, 10*time.Second, v.Wait)
	c.forward(v.Wait)
	require.True(t, b.Take(1, 100, 0).OK)
}

// No rate, burst and sequence of calls gets more than the burst and the rate allow; and
// whoever waits for exactly as long as it was told gets what it asked for.
func TestExactness(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := newClock()
		l := bucket.Limit{Rate: rapid.Float64Range(0.01, 1e6).Draw(t, "rate"), Burst: rapid.IntRange(1, 3000).Draw(t, "burst")}
		b := bucket.New[int](l, 10, c.now)
		begun, taken := c.at, 0
		for range rapid.IntRange(1, 60).Draw(t, "calls") {
			c.forward(time.Duration(rapid.Int64Range(0, int64(2*time.Second)).Draw(t, "pause")))
			n := rapid.IntRange(1, l.Burst).Draw(t, "n")
			paid := 0
			if n > 1 && rapid.Bool().Draw(t, "in two steps") {
				if b.Take(1, 1, 0).OK {
					taken, paid = taken+1, 1
				}
			}
			v := b.Take(1, n, paid)
			if !v.OK {
				require.Positive(t, v.Wait)
				c.forward(v.Wait - 1)
				require.False(t, b.Take(1, n, 0).OK, "a nanosecond too early")
				c.forward(1)
				paid = 0
				v = b.Take(1, n, 0)
				require.True(t, v.OK, "after the wait")
			}
			taken += n - paid
			back := float64(c.at.Sub(begun)) / float64(max(time.Duration(float64(time.Second)/l.Rate), 1))
			require.LessOrEqual(t, float64(taken), float64(l.Burst)+back+1e-6)
			require.LessOrEqual(t, v.Left, l.Burst)
		}
	})
}

// However many callers there are, there are no more buckets than most; and a full one is
// not kept.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := bucket.New[int](bucket.Limit{Rate: 1, Burst: 2}, 100, c.now)
	for i := range 10_000 {
		require.True(t, b.Take(i, 2, 0).OK)
	}
	require.Equal(t, 100, b.Len())
	require.False(t, b.Take(9_999, 1, 0).OK, "the last is remembered")
	c.forward(2 * time.Second)
	require.True(t, b.Take(1, 1, 0).OK)
	require.Equal(t, 1, b.Len(), "all others were full")
}

func BenchmarkTake(b *testing.B) {
	all := bucket.New[string](bucket.Limit{Rate: 1e6, Burst: 1e6}, 1000, nil)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			all.Take("acme", 1, 0)
		}
	})
}
