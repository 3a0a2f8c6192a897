package jobs

import (
	"context"
	"fmt"
	"sync"

	"github.com/seed-3f7a0631/tes/db"
)

// eventBlock is the increment of task_event_id_seq.
const eventBlock = 20000

// jobBlock is how many job ids are drawn from River's sequence at a time. A
// process that dies leaves a gap.
const jobBlock = 1000

// ids hands out event and job ids without asking the database each time.
type ids struct {
	q *db.Queries

	mu        sync.Mutex
	nextEvent int64   // guarded by mu
	endEvent  int64   // guarded by mu
	jobs      []int64 // guarded by mu
}

// events returns the first of n event ids in a row.
func (i *ids) events(ctx context.Context, n int) (int64, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.endEvent-i.nextEvent < int64(n) {
		// A batch needs ids in a row, so the rest of the old block is skipped: event ids have gaps.
		last, err := i.q.EventIDBlock(ctx)
		if err != nil {
			return 0, fmt.Errorf("reserve event ids: %w", err)
		}
		i.nextEvent, i.endEvent = last-eventBlock+1, last+1
	}

	first := i.nextEvent
	i.nextEvent += int64(n)
	return first, nil
}

// job returns n job ids.
func (i *ids) job(ctx context.Context, n int) ([]int64, error) {
	i.mu.Lock()
	defer i.mu.Unlock()

	for len(i.jobs) < n {
		more, err := i.q.JobIDs(ctx, max(jobBlock, int32(n)))
		if err != nil {
			return nil, fmt.Errorf("reserve job ids: %w", err)
		}
		i.jobs = append(i.jobs, more...)
	}

	// The cap keeps an append by the caller out of the ids of later calls.
	taken := i.jobs[:n:n]
	i.jobs = i.jobs[n:]
	return taken, nil
}
