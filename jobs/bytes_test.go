package jobs

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/batch"
)

// megabyte is an input that is about as long as the door lets in.
func megabyte(req *Request) {
	req.Input = json.RawMessage(`{"text": "` + strings.Repeat("lorem ipsum ", 1<<20/12) + `"}`)
}

// Two hundred creates of a megabyte at once all end well, and so do small ones that come
// behind them.
func TestManyLargeCreatesAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.production("p2")
	const large = 200
	answers := make(chan error, large)
	for range large {
		go func() {
			_, _, err := p.Create(p.ctx, request(remote, megabyte))
			answers <- err
		}()
	}
	for range 20 {
		_, _, err := p.Create(p.ctx, request(remote))
		require.NoError(t, err)
	}
	for range large {
		require.NoError(t, receive(t, answers))
	}
	require.Equal(t, large+20, ask[int](b, "SELECT count(*) FROM task"))
}

// Small tasks end while many results of a megabyte are written.
func TestManyLargeResultsAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.production("p2")
	const large = 30
	entered, release := make(chan uuid.UUID, large), make(chan struct{})
	var long Request
	megabyte(&long)
	p.work(noop(func(_ context.Context, job Job) (Result, error) {
		if job.StepID != "large" {
			return Result{}, nil
		}
		entered <- job.TaskID
		<-release
		return Result{Output: long.Input}, nil
	}))
	for range large {
		b.create(func(req *Request) { req.StepID = "large" })
	}
	for range large {
		receive(t, entered)
	}
	close(release)
	for range 5 {
		b.becomes(b.create().TaskID, Completed)
	}
	b.ended(large+5, Completed)
}

// A claim brings short payloads along, and the long ones come a few at a time.
func TestClaimsAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const large = 12
	for range large {
		b.create(megabyte)
	}
	small := b.create(priority(Low))
	b.exec("UPDATE river_queue SET paused_at = NULL")
	rows, err := b.q.LaneClaim(b.ctx, db.LaneClaimParams{Lane: LaneAutomated, Kind: KindAutomated, Becomes: KindAutomated, Slots: 500, ExecutorID: "gone"})
	require.NoError(t, err)
	require.Len(t, rows, large+1)
	bytes := 0
	for _, row := range rows {
		bytes += len(row.Input) + len(row.Context)
		if row.TaskID == small.TaskID {
			require.JSONEq(t, `{}`, string(row.Input))
		}
	}
	require.Less(t, bytes, 1<<20)

	// Whoever claimed them is gone; each is run with all that it was given.
	b.exec("UPDATE river_job SET attempted_at = now() - interval '1 hour'")
	var want Request
	megabyte(&want)
	lengths := make(chan int, large+1)
	b.work(noop(func(_ context.Context, job Job) (Result, error) {
		lengths <- len(job.Input)
		return Result{}, nil
	}))
	b.ended(large+1, Completed)
	got := map[int]int{}
	for range large + 1 {
		got[receive(t, lengths)]++
	}
	require.Equal(t, map[int]int{len(want.Input): large, 2: 1}, got)
}

// So is an answer to a worker: what does not fit waits for the next.
func TestLeasesAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const large = 20
	for range large {
		b.create(remote, megabyte)
	}
	leased, answers := 0, 0
	for leased < large {
		found := b.dequeue("w", func(req *LeaseRequest) { req.Most = 100 })
		require.NotEmpty(t, found)
		bytes := 0
		for _, l := range found {
			bytes += len(l.Input)
		}
		require.Less(t, bytes, batch.MaxBytes+2<<20)
		leased += len(found)
		answers++
	}
	require.Greater(t, answers, 1)
}
