package batch

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A batch has at most MaxBytes, except for one larger item; and small items do not wait for
// the flush of large ones.
func TestBatchesAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var batches [][]int
		release := make(chan struct{})
		b := New(func(batch []int) {
			if batch[0] >= largeFrom {
				<-release
			}
			mu.Lock()
			defer mu.Unlock()
			batches = append(batches, batch)
		}, Config[int]{MaxItems: 500, Size: func(n int) int { return n }})
		items := []int{MaxBytes + 1, MaxBytes / 2, MaxBytes / 2, MaxBytes / 2, MaxBytes * 2, largeFrom}
		b.Add(items...)
		b.Add(1, 2, 3)
		synctest.Wait()
		mu.Lock()
		require.Equal(t, [][]int{{1, 2, 3}}, batches, "the small ones are written while the large ones wait")
		mu.Unlock()

		close(release)
		b.Drain()
		var large []int
		for _, batch := range batches[1:] {
			sum := 0
			for _, n := range batch {
				sum += n
			}
			require.True(t, sum <= MaxBytes || len(batch) == 1, "%v", batch)
			large = append(large, batch...)
		}
		slices.Sort(large)
		slices.Sort(items)
		require.Equal(t, items, large)
	})
}

// Items that come while a flush is late are written by another flusher, up to the reserve,
// and not before the flush is late.
func TestAnotherFlusherTakesOverFromALateOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release, begun := make(chan struct{}), make(chan int, 9)
		b := New(func(batch []int) {
			begun <- batch[0]
			<-release
		}, Config[int]{MaxItems: 1, Reserve: 2})
		at := time.Now()
		b.Add(1, 2, 3)
		require.Equal(t, 1, <-begun)
		require.Zero(t, time.Since(at))
		require.Equal(t, 2, <-begun)
		require.Equal(t, lateAfter, time.Since(at))
		time.Sleep(time.Second) // moves the bubble's clock; the test does not wait
		require.Empty(t, begun, "the reserve is used up")
		close(release)
		b.Drain()
		require.Equal(t, 3, <-begun)
	})
}

// Items that come while a flush is in flight are the next batch, all of them where MaxItems
// says nothing.
func TestBatchOfAnyLength(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var batches [][]int
		b := New(func(batch []int) {
			<-release
			batches = append(batches, batch)
		}, Config[int]{})
		b.Add(0)
		synctest.Wait()
		want := make([]int, 5000)
		for i := range want {
			want[i] = i + 1
			b.Add(i + 1)
		}
		close(release)
		b.Drain()
		require.Equal(t, [][]int{{0}, want}, batches)
	})
}

// Drain waits for the work that a flush has put aside, and the next batch does not.
func TestDrainWaitsForWorkAside(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release, flushed, drained := make(chan struct{}), make(chan int, 9), make(chan struct{})
		var b *Batcher[int]
		b = New(func(batch []int) {
			if batch[0] == 1 {
				b.Aside(func() { <-release })
			}
			flushed <- batch[0]
		}, Config[int]{MaxItems: 1})
		b.Add(1, 2)
		require.Equal(t, 1, <-flushed)
		require.Equal(t, 2, <-flushed)
		go func() { b.Drain(); close(drained) }()
		synctest.Wait()
		select {
		case <-drained:
			require.FailNow(t, "drained while work is aside")
		default:
		}
		close(release)
		<-drained
	})
}
