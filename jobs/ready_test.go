package jobs

import (
	"context"
	"encoding/json"
	"math"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// While an executor is not ready its tasks wait in their lanes, the retries too, and
// the other lanes go on; while it is being tried, a few are under way.
func TestLaneWaitsForItsExecutor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var ready, underWay, most atomic.Int64
	proceed := make(chan struct{})
	b.work(map[string]Registration{
		"noop": {Executor: does(`{}`, nil)},
		"integration": {Ready: func() int { return int(ready.Load()) }, Executor: ExecutorFunc(func(context.Context, Job) (Result, error) {
			n := underWay.Add(1)
			defer underWay.Add(-1)
			most.Store(max(most.Load(), n))
			<-proceed
			return Result{Output: json.RawMessage(`{}`)}, nil
		})},
	})
	var waiting []uuid.UUID
	for range 20 {
		waiting = append(waiting, b.create(elsewhere).TaskID)
	}
	// Some of them are retries.
	require.EqualValues(t, 5, b.exec(`UPDATE river_job SET queue = $1 WHERE id IN (SELECT id FROM river_job ORDER BY id LIMIT 5)`, LaneRetry))
	for range 20 {
		b.becomes(b.create().TaskID, Completed)
	}
	for _, id := range waiting {
		task := b.get(id)
		require.Equal(t, Pending, Status(task.Status))
		require.Zero(t, task.Attempt)
	}
	require.Zero(t, ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'running'"))

	ready.Store(1)
	waitFor(t, "one of each lane to begin", func() bool { return underWay.Load() == 2 })
	for range 5 {
		b.becomes(b.create().TaskID, Completed)
	}
	require.EqualValues(t, 2, most.Load(), "one of each lane")
	require.Equal(t, 2, ask[int](b, "SELECT count(*) FROM task WHERE status = 'RUNNING'"))

	ready.Store(math.MaxInt)
	close(proceed)
	for _, id := range waiting {
		require.EqualValues(t, 1, b.becomes(id, Completed).Attempt)
	}
}
