package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// deadLetters makes so many tasks that end as dead letters.
func (b *testBundle) deadLetters(n int, change ...func(*Request)) []db.Task {
	b.t.Helper()
	w := b.work(noop(does("", &Failure{Code: "BROKEN", Message: "no paper"})))
	defer w.stop()
	out := make([]db.Task, n)
	for i := range out {
		task := b.create(change...)
		waitFor(b.t, "a dead letter", func() bool {
			var err error
			out[i], err = b.Get(b.ctx, task.TenantID, task.TaskID)
			require.NoError(b.t, err)
			return Status(out[i].Status) == Failed
		})
	}
	return out
}

func letters(req *LeaseRequest) { req.Select = []Selection{{Lane: LaneDeadLetter}} }

func TestDeadLetterIsLeasedAndAcknowledged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.deadLetters(1)[0]
	require.Empty(t, b.dequeue("w-1"), "a worker's own queues hold none")
	lease := b.dequeue("handler", letters)[0]
	require.Equal(t, task.TaskID, lease.TaskID)
	require.Equal(t, Failed, lease.Status)
	require.Contains(t, string(lease.Error), "BROKEN")
	require.Equal(t, DefaultVisibility, lease.Visibility)
	require.Equal(t, Continue, b.beat(lease.Token).Directive)
	require.Empty(t, b.dequeue("other", letters), "it is taken")

	after, err := b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"reason": "told the customer"}`))
	require.NoError(t, err)
	require.Equal(t, db.TaskStatusFAILED, after.Status)
	require.Equal(t, task.Version, after.Version, "the task stays as it ended")
	require.Equal(t, "handler: told the customer", ask[string](b, "SELECT actor || ': ' || reason FROM dead_letter_discard WHERE task_id = $1", task.TaskID))
	require.Zero(t, ask[int](b, "SELECT count(*) FROM lease"))
	_, err = b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"reason": "told the customer"}`))
	require.NoError(t, err, "its answer was lost, and it says it again")
	var conflict *Conflict
	_, err = b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{"reason": "another"}`))
	require.ErrorAs(t, err, &conflict)
	_, err = b.Leases.Fail(b.ctx, "", lease.Token, &Failure{Code: "NO"}, 0)
	require.ErrorIs(t, err, ErrLeaseLost)
	require.ErrorIs(t, b.beat(lease.Token).Err, ErrLeaseLost)
	require.Empty(t, b.dequeue("other", letters), "it waits for nobody any more")
}

// Every way back makes a new token, and the one before is worth nothing.
func TestDeadLetterGoesBack(t *testing.T) {
	t.Parallel()
	for name, way := range map[string]func(b *testBundle, l Lease) error{
		"released": func(b *testBundle, l Lease) error {
			_, err := b.Leases.Release(b.ctx, "", l.Token, 0, "not mine")
			if err == nil {
				_, err = b.Leases.Release(b.ctx, "", l.Token, 0, "not mine")
			}
			return err
		},
		"failed": func(b *testBundle, l Lease) error {
			_, err := b.Leases.Fail(b.ctx, "", l.Token, &Failure{Code: "DESK_AWAY", Message: "try later"}, 0)
			require.Empty(b.t, b.dequeue("other", letters), "it rests")
			b.exec("UPDATE river_job SET scheduled_at = now() WHERE queue = $1 AND state = 'available'", LaneDeadLetter)
			return err
		},
		"expired": func(b *testBundle, l Lease) error {
			b.expire(l.TaskID)
			return b.Leases.requeueExpiredDeadLetters(b.ctx)
		},
		"by the reaper": func(b *testBundle, l Lease) error {
			b.work(nil)
			b.expire(l.TaskID)
			waitFor(b.t, "the reaper", func() bool { return ask[int](b, "SELECT count(*) FROM lease") == 0 })
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			task := b.deadLetters(1)[0]
			first := b.dequeue("handler", letters)[0]
			require.NoError(t, way(b, first))
			second := b.dequeue("other", letters)[0]
			require.Equal(t, task.TaskID, second.TaskID)
			require.NotEqual(t, first.Token, second.Token)
			_, err := b.Leases.Complete(b.ctx, "", first.Token, nil)
			require.ErrorIs(t, err, ErrLeaseLost)
			require.ErrorIs(t, b.beat(first.Token).Err, ErrLeaseLost)
			_, err = b.Leases.Complete(b.ctx, "", second.Token, nil)
			require.NoError(t, err)
		})
	}
}

// A handler redrives what it holds: at the desk, by the task's id.
func TestLeasedDeadLetterIsRedrivenOrDiscarded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	two := b.deadLetters(2)
	held := map[uuid.UUID]Lease{}
	for _, l := range b.dequeue("handler", letters) {
		held[l.TaskID] = l
	}
	require.Len(t, held, 2)
	w := b.work(noop(does(`{}`, nil)))
	out, err := b.DeadLetters.Redrive(b.ctx, Actor{Name: "handler", Reason: "fixed"}, Redrive{TaskIDs: []uuid.UUID{two[0].TaskID}, Rate: 100})
	require.NoError(t, err)
	require.Equal(t, 1, out.Tasks)
	b.becomes(two[0].TaskID, Completed)
	_, err = b.Leases.Complete(b.ctx, "", held[two[0].TaskID].Token, nil)
	require.ErrorIs(t, err, ErrLeaseLost)
	w.stop()

	_, err = b.DeadLetters.Discard(b.ctx, two[1].TaskID, Actor{Name: "error-handler", Reason: "old"})
	require.NoError(t, err)
	require.ErrorIs(t, b.beat(held[two[1].TaskID].Token).Err, ErrLeaseLost)
	var conflict *Conflict
	_, err = b.Leases.Complete(b.ctx, "", held[two[1].TaskID].Token, nil)
	require.ErrorAs(t, err, &conflict, "somebody else laid it aside, for another reason")
}

// Free places take dead letters first, the most urgent of them before the others,
// and a parked dequeue wakes for one.
func TestDeadLettersComeFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	low, high := b.deadLetters(1, priority(Low))[0], b.deadLetters(1, priority(High))[0]
	waiting := b.create(remote)
	all := func(req *LeaseRequest) {
		req.Select = []Selection{{Lane: LaneAutomated}, {Lane: LaneDeadLetter}}
	}
	found := b.dequeue("both", all, func(req *LeaseRequest) { req.Most = 2 })
	require.ElementsMatch(t, []uuid.UUID{low.TaskID, high.TaskID}, []uuid.UUID{found[0].TaskID, found[1].TaskID})
	require.Equal(t, high.TaskID, found[0].TaskID)
	require.Equal(t, waiting.TaskID, b.dequeue("both", all)[0].TaskID)

	parked := make(chan []Lease, 1)
	go func() {
		got, err := b.Leases.Acquire(b.ctx, LeaseRequest{Worker: "parked", Most: 1, Wait: patience, Select: []Selection{{Lane: LaneDeadLetter}}})
		if err != nil {
			got = nil
		}
		parked <- got
	}()
	next := b.deadLetters(1)[0]
	require.Equal(t, next.TaskID, receive(t, parked)[0].TaskID)
}

func TestDeadLettersKeepTenantsApart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.deadLetters(1, func(req *Request) { req.Tenant = "a" })
	require.Empty(t, b.dequeue("handler", letters))
	lease := b.dequeue("handler", letters, func(req *LeaseRequest) { req.Tenant = "a" })[0]
	_, err := b.Leases.Complete(b.ctx, "", lease.Token, nil)
	require.ErrorIs(t, err, ErrNotFound)
	b.exec("UPDATE river_queue SET paused_at = now() WHERE name = $1", LaneDeadLetter)
	_, err = b.Leases.Release(b.ctx, "a", lease.Token, 0, "")
	require.NoError(t, err)
	require.Empty(t, b.dequeue("handler", letters, func(req *LeaseRequest) { req.Tenant = "a" }), "it is paused")
	b.exec("UPDATE river_queue SET paused_at = NULL")
	b.maintain(true, LaneDeadLetter)
	require.Empty(t, b.dequeue("handler", letters, func(req *LeaseRequest) { req.Tenant = "a" }), "it is in maintenance")
	b.maintain(false, LaneDeadLetter)
	require.Len(t, b.dequeue("handler", letters, func(req *LeaseRequest) { req.Tenant = "a" }), 1)
}

// Handlers race for dead letters, and redrives race with them: each letter ends once.
func TestHandlersRace(t *testing.T) {
	t.Parallel()
	const n, handlers = 40, 8
	b := setup(t)
	tasks := b.deadLetters(n)
	ids := make([]uuid.UUID, n)
	for i, task := range tasks {
		ids[i] = task.TaskID
	}
	other := join(t, b.pool, "p2")
	acked := make(chan uuid.UUID, n*handlers)
	failed := make(chan error, handlers)
	for i := range handlers {
		p := []*testBundle{b, other}[i%2]
		go func() {
			failed <- func() error {
				for {
					found, err := p.Leases.Acquire(p.ctx, LeaseRequest{Worker: "h", Most: 3, Select: []Selection{{Lane: LaneDeadLetter}}})
					if err != nil || len(found) == 0 {
						return err
					}
					for _, l := range found {
						switch _, err := p.Leases.Complete(p.ctx, "", l.Token, nil); {
						case err == nil:
							acked <- l.TaskID
						case !errors.Is(err, ErrLeaseLost):
							return err
						}
					}
				}
			}()
		}()
	}
	out, err := b.DeadLetters.Redrive(b.ctx, Actor{Name: "desk", Reason: "all of them"}, Redrive{TaskIDs: ids, Rate: 10_000})
	require.NoError(t, err)
	for more := true; more; {
		more, err = other.DeadLetters.redriveStep(context.WithoutCancel(b.ctx))
		require.NoError(t, err)
	}
	for range handlers {
		require.NoError(t, receive(t, failed))
	}
	close(acked)
	ended := map[uuid.UUID]bool{}
	for id := range acked {
		require.False(t, ended[id], "acknowledged twice")
		ended[id] = true
	}
	redriven := ask[int](b, "SELECT count(*) FROM task WHERE status = 'PENDING'")
	require.Equal(t, n, len(ended)+redriven, "%d of %d", out.Tasks, n)
	waitFor(t, "leases left beside a redrive to be swept", func() bool {
		b.exec("UPDATE lease SET expires_at = now() - interval '1 ms'")
		require.NoError(t, b.Leases.requeueExpiredDeadLetters(b.ctx))
		_, err := b.q.LeaseSweep(b.ctx)
		require.NoError(t, err)
		return ask[int](b, "SELECT count(*) FROM lease") == 0
	})
}
