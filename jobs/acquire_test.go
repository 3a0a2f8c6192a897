package jobs

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// dequeue asks as a worker does that takes everything.
func (b *testBundle) dequeue(worker string, change ...func(*LeaseRequest)) []Lease {
	b.t.Helper()
	req := LeaseRequest{Worker: worker, Most: 10, Select: []Selection{{Lane: LaneAutomated}, {Lane: LaneIntegration}}}
	for _, fn := range change {
		fn(&req)
	}
	found, err := b.Leases.Acquire(b.ctx, req)
	require.NoError(b.t, err)
	return found
}

// dequeueOne waits for work, and takes one task.
func (b *testBundle) dequeueOne(worker string) Lease {
	b.t.Helper()
	found := b.dequeue(worker, func(req *LeaseRequest) { req.Most, req.Wait = 1, patience })
	require.Len(b.t, found, 1)
	return found[0]
}

// What is asked again with the same id is answered with the same leases.
func TestDequeueIsIdempotent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.create(remote)
	b.create(remote)
	b.create(remote)
	ask := func(worker, id string) (tokens []string) {
		for _, l := range b.dequeue(worker, func(req *LeaseRequest) { req.ID, req.Most = id, 2 }) {
			tokens = append(tokens, l.Token)
		}
		return tokens
	}
	first := ask("w-1", "r-1")
	require.Len(t, first, 2)
	require.Equal(t, first, ask("w-1", "r-1"))
	other := join(t, b.pool, "p2")
	require.Len(t, other.dequeue("w-1", func(req *LeaseRequest) { req.ID = "r-1" }), 2, "in every process")
	require.Equal(t, first[0], other.dequeue("w-1", func(req *LeaseRequest) { req.ID = "r-1" })[0].Token)
	third := ask("w-2", "r-1")
	require.Len(t, third, 1, "the id is the worker's own")
	require.NotContains(t, first, third[0])
	require.Empty(t, ask("w-1", "r-2"))
}

func TestDequeueTakesWhatWasSelected(t *testing.T) {
	t.Parallel()
	b := setup(t)
	named := func(id string) func(*Request) { return func(req *Request) { req.TaskDefinitionID = id } }
	low := b.create(remote, named("render"), priority(Low))
	old := b.create(remote, named("render"))
	urgent := b.create(remote, named("render"), priority(Critical))
	other := b.create(remote, named("mail"))
	foreign := b.create(remote, elsewhere, func(req *Request) { req.Config.Executor = ExecutorWorker })
	ids := func(found []Lease) (out []string) {
		for _, l := range found {
			out = append(out, l.TaskID.String())
		}
		return out
	}
	from := func(sel ...Selection) func(*LeaseRequest) { return func(req *LeaseRequest) { req.Select = sel } }

	b.exec("UPDATE river_queue SET paused_at = now() WHERE name = $1", LaneAutomated)
	require.Empty(t, b.dequeue("w", from(Selection{Lane: LaneAutomated})), "it is paused")
	b.exec("UPDATE river_queue SET paused_at = NULL")

	require.Equal(t, []string{foreign.TaskID.String()}, ids(b.dequeue("w", from(Selection{Lane: LaneIntegration}))))
	found := b.dequeue("w", from(Selection{Lane: LaneAutomated, Definitions: []string{"render"}, Most: 2, Visibility: 5 * time.Second}))
	require.Equal(t, []string{urgent.TaskID.String(), old.TaskID.String()}, ids(found))
	require.Equal(t, 5*time.Second, found[0].Visibility)
	found = b.dequeue("w", from(Selection{Lane: LaneAutomated, Definitions: []string{"mail"}}, Selection{Lane: LaneAutomated, Definitions: []string{"render", "none"}}))
	require.ElementsMatch(t, []string{other.TaskID.String(), low.TaskID.String()}, ids(found))
}

func TestRetriesComeFirstAndGoOnFromTheCheckpoint(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote, policy(RetryPolicy{MaxRetries: 2, RetryInterval: 1}))
	lease := b.dequeueOne("w-1")
	_, err := b.Leases.Heartbeat(b.ctx, "", []Heartbeat{{Token: lease.Token, Checkpoint: json.RawMessage(`{"page": 12}`)}})
	require.NoError(t, err)
	failure := &Failure{Code: "RENDER", Message: "no ink"}
	after, err := b.Leases.Fail(b.ctx, "", lease.Token, failure, 0)
	require.NoError(t, err)
	require.Equal(t, db.TaskStatusPENDING, after.Status)
	require.NotNil(t, after.NextRetryAt)
	again, err := b.Leases.Fail(b.ctx, "", lease.Token, failure, 0)
	require.NoError(t, err, "the same word again")
	require.Equal(t, after.Version, again.Version)

	fresh := b.create(remote, priority(Critical))
	var first Lease
	waitFor(t, "the retry to be due", func() bool {
		found := b.dequeue("w-2", func(req *LeaseRequest) { req.Select = []Selection{{Lane: LaneRetry}} })
		if len(found) > 0 {
			first = found[0]
		}
		return len(found) > 0
	})
	require.Equal(t, task.TaskID, first.TaskID)
	require.Equal(t, 2, first.Attempt)
	require.JSONEq(t, `{"page": 12}`, string(first.Checkpoint))

	// It may ask for more time than the policy gives, never for less.
	before := time.Now()
	after, err = b.Leases.Fail(b.ctx, "", first.Token, failure, time.Hour)
	require.NoError(t, err)
	require.WithinDuration(t, before.Add(time.Hour), *after.NextRetryAt, 10*time.Second)
	_, err = b.Leases.Fail(b.ctx, "", lease.Token, &Failure{Code: "RENDER", Message: "no paper"}, 0)
	var conflict *Conflict
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, fresh.TaskID, b.dequeueOne("w-3").TaskID)
}

// Retries come before the standard lanes, whichever selection names them first, and in
// one answer too; one that is given back is a retry still.
func TestRetriesComeBeforeTheStandardLanes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	retry := b.create(remote, elsewhere, remote, priority(Medium), policy(RetryPolicy{MaxRetries: 2, RetryInterval: 1}))
	_, err := b.Leases.Fail(b.ctx, "", b.dequeueOne("w").Token, &Failure{Code: "X"}, 0)
	require.NoError(t, err)
	b.exec("UPDATE river_job SET scheduled_at = now() WHERE queue = $1 AND state = 'available'", LaneRetry)
	fresh := b.create(remote, priority(High))
	both := func(most int) []Lease {
		return b.dequeue("w", func(req *LeaseRequest) {
			req.Most, req.Select = most, []Selection{{Lane: LaneAutomated}, {Lane: LaneRetry}}
		})
	}
	giveBack := func(found []Lease) {
		for _, l := range found {
			_, err := b.Leases.Release(b.ctx, "", l.Token, 0, "")
			require.NoError(t, err)
		}
	}
	for range 2 {
		found := both(1)
		require.Equal(t, retry.TaskID, found[0].TaskID)
		giveBack(found)
		require.EqualValues(t, LaneRetry, b.get(retry.TaskID).Lane)
		found = both(2)
		require.Equal(t, []uuid.UUID{retry.TaskID, fresh.TaskID}, []uuid.UUID{found[0].TaskID, found[1].TaskID})
		giveBack(found)
	}
	found := b.dequeue("w", func(req *LeaseRequest) {
		req.Select = []Selection{{Lane: LaneAutomated, Most: 1}, {Lane: LaneIntegration, Most: 1}}
	})
	require.Len(t, found, 2)
}

// A parked dequeue is woken by the task, not by its poll.
func TestParkedDequeue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	other.work(nil) // which listens
	other.listens()
	anything := LeaseRequest{Worker: "w", Select: []Selection{{Lane: LaneAutomated}}}
	for _, at := range []*testBundle{b, other} {
		got := at.wait(anything)
		b.create(remote)
		require.Len(t, receive(t, got), 1)
	}

	got := b.wait(anything)
	b.Leases.StartDraining()
	require.Empty(t, receive(t, got), "the process stops, and answers")
	task := b.create(remote)
	lease := b.dequeueOne("w")
	require.Equal(t, task.TaskID, lease.TaskID)
	require.Equal(t, FinishUp, b.beat(lease.Token).Directive)
}

// Who is gone before the answer is ready has taken nothing.
func TestGoneWorkerTakesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote)
	ask := func(ctx context.Context, id string) <-chan error {
		ended := make(chan error, 1)
		go func() {
			_, err := b.Leases.Acquire(ctx, LeaseRequest{Worker: "w-1", ID: id, Most: 1, Select: []Selection{{Lane: LaneAutomated}}})
			ended <- err
		}()
		return ended
	}
	gone, cancel := context.WithCancel(b.ctx)
	holder := b.hold(task) // its start waits for the row
	ended := ask(gone, "")
	b.waiting(1)
	cancel()
	holder.letGo()
	require.ErrorIs(t, receive(t, ended), context.Canceled)
	require.ErrorIs(t, receive(t, ask(gone, "")), context.Canceled, "and does not even begin")
	task = b.get(task.TaskID)
	require.Equal(t, db.TaskStatusPENDING, task.Status)
	require.Zero(t, task.Attempt)
	require.Equal(t, "created started released", b.story(task.TaskID))
	require.Equal(t, 1, b.dequeueOne("w-2").Attempt)
}

// Unless it asks again by the same id: whoever answers that has told it of the lease.
func TestGoneWorkerAsksAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	task := b.create(remote)
	gone, hangUp := context.WithCancel(b.ctx)
	holder := b.hold(task) // its start waits for the row
	ended := make(chan error, 1)
	go func() {
		_, err := b.Leases.Acquire(gone, LeaseRequest{Worker: "w-1", ID: "r-1", Most: 1, Select: []Selection{{Lane: LaneAutomated}}})
		ended <- err
	}()
	b.waiting(1)
	hangUp()
	holder.letGo()
	require.NoError(t, receive(t, ended))
	again := other.dequeue("w-1", func(req *LeaseRequest) { req.ID = "r-1" })
	require.Len(t, again, 1)
	require.NoError(t, b.beat(again[0].Token).Err)
	require.Equal(t, "created started", b.story(task.TaskID))
}

// The first call of a request is parked still when it is asked again: both are
// answered alike, here and in another process.
func TestParkedDequeueIsIdempotent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	other.work(nil) // which listens
	b.work(nil)
	got := make(chan []Lease, 4)
	const calls = 4
	for i := range calls {
		at := []*testBundle{b, b, b, other}[i]
		go func() {
			found, err := at.Leases.Acquire(at.ctx, LeaseRequest{Worker: "w", ID: "r", Most: 1, Wait: patience, Select: []Selection{{Lane: LaneAutomated}}})
			if err == nil {
				got <- found
			}
		}()
	}
	waitFor(t, "a call to wait", func() bool { return len(b.notifier.waiters.keys()) > 0 })
	b.create(remote)
	first := receive(t, got)
	require.Len(t, first, 1)
	for range calls - 1 {
		found := receive(t, got)
		require.Len(t, found, 1)
		require.Equal(t, first[0].Token, found[0].Token)
	}
}

// Two tasks at once, for a request that is parked twice.
func TestParkedDequeueTakesNoMoreThanItAskedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote)
	holder := b.hold(task)
	got := make(chan []Lease, 2)
	for range 2 {
		go func() {
			found, err := b.Leases.Acquire(b.ctx, LeaseRequest{Worker: "w", ID: "r", Most: 1, Wait: patience, Select: []Selection{{Lane: LaneAutomated}}})
			if err == nil {
				got <- found
			}
		}()
	}
	b.waiting(1) // one has claimed, and begins
	b.create(remote)
	holder.letGo()
	first, second := receive(t, got), receive(t, got)
	require.Len(t, first, 1)
	require.Equal(t, first[0].Token, second[0].Token)
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM task WHERE status = 'PENDING'"))
}

func TestLeasesKeepTenantsApart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.create(remote, func(req *Request) { req.Tenant = "acme" })
	require.Empty(t, b.dequeue("w-1"))
	found := b.dequeue("w-1", func(req *LeaseRequest) { req.Tenant, req.ID = "acme", "r" })
	require.Len(t, found, 1)
	require.Empty(t, b.dequeue("w-1", func(req *LeaseRequest) { req.ID = "r" }))
	_, err := b.Leases.Complete(b.ctx, "", found[0].Token, nil)
	require.ErrorIs(t, err, ErrNotFound)
	require.ErrorIs(t, b.beat(found[0].Token).Err, ErrNotFound)
	_, err = b.Leases.Complete(b.ctx, "acme", found[0].Token, nil)
	require.NoError(t, err)
}

// Fifty workers in two processes race for two hundred tasks: each task has one.
func TestWorkersRace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	both := []*testBundle{b, join(t, b.pool, "p2")}
	const tasks, workers = 200, 50
	for range tasks {
		b.create(remote)
	}
	var mu sync.Mutex
	by := map[string]int{} // guarded by mu
	var all sync.WaitGroup
	for i := range workers {
		at := both[i%2]
		all.Go(func() {
			for {
				found, err := at.Leases.Acquire(at.ctx, LeaseRequest{Worker: "w", Most: 3, Select: []Selection{{Lane: LaneAutomated}}})
				if err != nil || len(found) == 0 {
					return
				}
				for _, l := range found {
					mu.Lock()
					by[l.TaskID.String()]++
					mu.Unlock()
					_, _ = at.Leases.Complete(at.ctx, "", l.Token, nil)
				}
			}
		})
	}
	all.Wait()
	require.Len(t, by, tasks)
	for id, n := range by {
		require.Equal(t, 1, n, id)
	}
	require.Equal(t, tasks, ask[int](b, "SELECT count(*) FROM task WHERE status = 'COMPLETED' AND attempt = 1"))
}
