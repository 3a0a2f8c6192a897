package jobs

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/db"
)

func called(definition string) func(*Request) {
	return func(req *Request) { req.TaskDefinitionID = definition }
}

// A dequeue reads the same rows whatever waits for others: of river_job, task and ready none.
func TestDequeueReadsNothingOfOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.create(remote, tenant("a"), called("theirs"))
	b.exec(`INSERT INTO ready SELECT -n, task_id, place, tenant_id, definition_id, urgent, due_at, rank FROM ready, generate_series(1, 20000) n`)

	// read is what the session has read of the tables so far.
	read := func(tx pgx.Tx) (rows int) {
		err := tx.QueryRow(b.ctx, "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0) FROM pg_stat_xact_user_tables WHERE relname IN ('ready', 'river_job', 'task')").Scan(&rows)
		require.NoError(t, err)
		return rows
	}
	for name, p := range map[string]db.WorkerClaimParams{
		"all definitions": {DefinitionIds: []string{}},
		"one definition":  {DefinitionIds: []string{"theirs"}},
	} {
		p.Lane, p.Places, p.TenantID, p.Most, p.Walk, p.Spare, p.ExecutorID = LaneAutomated, readyPlaces(LaneAutomated, ""), "b", 10, 10, 84, "p1"
		err := pgx.BeginFunc(b.ctx, b.pool, func(tx pgx.Tx) error {
			before := read(tx)
			rows, err := b.q.WithTx(tx).WorkerClaim(b.ctx, p)
			require.NoError(t, err)
			require.Empty(t, rows, name)
			require.Less(t, read(tx)-before, 10, "%s: rows of others were read", name)
			return nil
		})
		require.NoError(t, err)
	}
	b.exec("DELETE FROM ready WHERE job_id < 0")
}

// wait lets a dequeue wait, and returns what it will be given; nothing, when the test ends.
func (b *testBundle) wait(req LeaseRequest) <-chan []Lease {
	got := make(chan []Lease, 1)
	req.Most, req.Wait = max(req.Most, 1), patience
	go func() {
		found, _ := b.Leases.Acquire(b.ctx, req)
		got <- found
	}()
	return got
}

// waitingAt returns how many dequeues can be woken for a job of a tenant's definition.
func (b *testBundle) waitingAt(tenant, definition string) int {
	b.notifier.waiters.mu.Lock()
	defer b.notifier.waiters.mu.Unlock()
	n := 0
	for _, id := range (leaseKey{LaneAutomated, tenant, definition}).ids() {
		n += len(b.notifier.waiters.at[id])
	}
	return n
}

// A task wakes one dequeue that can take it. The others sleep on.
func TestTaskWakesOneWhoCanTakeIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const each = 5
	automated := func(definitions ...string) []Selection {
		return []Selection{{Lane: LaneAutomated, Definitions: definitions}}
	}
	got := make(chan string, 4*each)
	for who, req := range map[string]LeaseRequest{
		"all":   {Worker: "w", Select: automated()},
		"named": {Worker: "w", Select: automated("mail")},
		"other": {Worker: "w", Select: automated("print")},
		"alien": {Worker: "w", Tenant: "alien", Select: automated()},
	} {
		for range each {
			found := b.wait(req)
			go func() {
				if leases := <-found; len(leases) > 0 {
					got <- who
				}
			}()
		}
	}
	waitFor(t, "all to wait", func() bool {
		return b.waitingAt("", "mail") == 2*each && b.waitingAt("", "print") == 2*each && b.waitingAt("alien", "mail") == each
	})

	for i := range 2 * each {
		b.create(remote, called("mail"))
		require.Contains(t, []string{"all", "named"}, receive(t, got))
		require.Equal(t, 2*each-1-i, b.waitingAt("", "mail"))
	}
	require.Equal(t, each, b.waitingAt("", "print"))
	require.Equal(t, each, b.waitingAt("alien", "mail"))
}

// One notification of another process may stand for many jobs: who was woken wakes the next.
func TestWokenDequeueWakesTheNext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	other.work(nil) // which listens
	other.listens()
	const n = 8
	var all sync.WaitGroup
	for range n {
		found := other.wait(LeaseRequest{Worker: "w", Select: []Selection{{Lane: LaneAutomated}}})
		all.Go(func() { require.Len(t, receive(t, found), 1) })
	}
	waitFor(t, "all to wait", func() bool { return other.waitingAt("", "mail") == n })
	for range n {
		b.create(remote, called("mail"))
	}
	all.Wait()
}

// What nobody was told of is found by one look for all, within leasePoll.
func TestWaitingDequeuesLookTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.create(remote, tenant("quiet"))
	b.exec("UPDATE river_job SET state = 'scheduled' WHERE kind = 'task.worker'")
	found := b.wait(LeaseRequest{Worker: "w", Tenant: "quiet", Select: []Selection{{Lane: LaneAutomated}}})
	waitFor(t, "it to wait", func() bool { return b.waitingAt("quiet", "theirs") == 1 })
	b.exec("UPDATE river_job SET state = 'available' WHERE kind = 'task.worker'") // as River's leader does
	require.Len(t, receive(t, found), 1)
}

// A call that waits is answered when another process has answered the same request.
func TestWaitingCallIsAnsweredLikeItsTwin(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	req := LeaseRequest{Worker: "w", ID: "twin", Select: []Selection{{Lane: LaneAutomated}}}
	found := other.wait(req)
	waitFor(t, "it to wait", func() bool { return other.waitingAt("", "mail") == 1 })
	b.create(remote)
	mine := receive(t, b.wait(req))
	twin := receive(t, found)
	require.Equal(t, mine[0].Token, twin[0].Token)
}

// CRITICAL has half of a claim; LOW stands before all that is three minutes younger.
func TestClaimsReserveHalfForCritical(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 6 {
		b.create(remote, priority(Low))
	}
	b.exec("UPDATE river_job SET scheduled_at = now() - interval '4 minutes' WHERE kind = 'task.worker'")
	for range 6 {
		b.create(remote, priority(Critical))
		b.create(remote, priority(Medium))
	}

	count := func(most int) map[Priority]int {
		got := map[Priority]int{}
		for _, l := range b.dequeue("w", func(req *LeaseRequest) { req.Most = most }) {
			got[l.Priority]++
		}
		return got
	}
	require.Equal(t, map[Priority]int{Critical: 1}, count(1))
	require.Equal(t, map[Priority]int{Critical: 2, Low: 2}, count(4))
	require.Equal(t, map[Priority]int{Critical: 3, Low: 3}, count(6))
	require.Equal(t, map[Priority]int{Low: 1, Medium: 6}, count(10), "nothing is kept free for CRITICAL that does not wait")
}

// Whoever writes river_job, ready follows: what River UI, River's leader and a hand in psql do.
func TestReadyFollowsJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var jobs []int64
	for i := range 8 {
		task := b.create(remote, called(fmt.Sprintf("d%d", i%3)))
		jobs = append(jobs, b.get(task.TaskID).JobID)
	}

	steps := []string{
		"UPDATE river_job SET state = 'available', finalized_at = NULL, attempted_at = NULL WHERE id = $1",
		"UPDATE river_job SET state = 'running', finalized_at = NULL, attempted_at = now() WHERE id = $1",
		"UPDATE river_job SET state = 'scheduled', finalized_at = NULL, scheduled_at = now() + interval '1 hour' WHERE id = $1",
		"UPDATE river_job SET state = 'pending', finalized_at = NULL WHERE id = $1",
		"UPDATE river_job SET state = 'cancelled', finalized_at = now() WHERE id = $1",
		"UPDATE river_job SET priority = 1 + priority % 4 WHERE id = $1",
		"UPDATE river_job SET scheduled_at = scheduled_at - interval '1 minute' WHERE id = $1",
		"UPDATE river_job SET queue = CASE queue WHEN 'task-execution-retry' THEN 'task-execution-automated' ELSE 'task-execution-retry' END WHERE id = $1",
		"UPDATE river_job SET kind = CASE kind WHEN 'task.worker' THEN 'task.automated' ELSE 'task.worker' END WHERE id = $1",
		"UPDATE river_job SET metadata = metadata || '{\"x\": 1}' WHERE id = $1",
		"DELETE FROM river_job WHERE id = $1",
	}
	rapid.Check(t, func(rt *rapid.T) {
		tx, err := b.pool.Begin(b.ctx)
		require.NoError(rt, err)
		defer func() { _ = tx.Rollback(context.WithoutCancel(b.ctx)) }()
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			_, err := tx.Exec(b.ctx, rapid.SampledFrom(steps).Draw(rt, "step"), rapid.SampledFrom(jobs).Draw(rt, "job"))
			require.NoError(rt, err)
			var differ int
			err = tx.QueryRow(b.ctx, `
				SELECT count(*)
				FROM (
					SELECT j.id, t.task_id, ready_place(j.queue, t.type), t.tenant_id, t.definition_id, j.priority = 1 AS urgent, j.scheduled_at, ready_rank(j.scheduled_at, j.priority)
					FROM river_job j
					JOIN task t ON t.job_id = j.id
					WHERE j.state = 'available' AND j.kind = 'task.worker'
				) AS want (job_id, task_id, place, tenant_id, definition_id, urgent, due_at, rank)
				FULL JOIN ready r ON to_jsonb(r) = to_jsonb(want)
				WHERE r.job_id IS NULL OR want.job_id IS NULL`).Scan(&differ)
			require.NoError(rt, err)
			require.Zero(rt, differ)
		}
	})
}

// A row of ready that nothing stands behind goes with the first claim that meets it, and what is
// not there is put there by the reconciliation.
func TestReadyIsRepaired(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lost := b.create(remote)
	b.exec("DELETE FROM ready")
	b.exec(`INSERT INTO ready (job_id, task_id, place, tenant_id, definition_id, urgent, due_at, rank)
		VALUES (1 << 40, $1, 'task-execution-automated', '', 'echo', false, now(), now())`, uuid.New())
	require.Empty(t, b.dequeue("w"))
	require.Zero(t, ask[int](b, "SELECT count(*) FROM ready"))

	b.work(nil) // which reconciles
	require.Equal(t, lost.TaskID, b.dequeueOne("w").TaskID)
}

// Claims that run at the same time take different jobs, and none finds nothing while there is work.
func TestClaimsBesideEachOtherFindWork(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const claims = 20
	for range claims {
		b.create(remote)
	}

	var txs []pgx.Tx
	defer func() {
		for _, tx := range txs {
			_ = tx.Rollback(context.WithoutCancel(b.ctx))
		}
	}()
	seen := map[int64]bool{}
	for range claims {
		tx, err := b.pool.Begin(b.ctx)
		require.NoError(t, err)
		txs = append(txs, tx)
		rows, err := b.q.WithTx(tx).WorkerClaim(b.ctx, db.WorkerClaimParams{
			MostBytes: 1 << 20, Lane: LaneAutomated, Places: readyPlaces(LaneAutomated, ""), DefinitionIds: []string{}, Most: 1, Walk: 1, Spare: 2 + spareHeads, ExecutorID: "p1",
		})
		require.NoError(t, err)
		require.Len(t, rows, 1)
		require.False(t, seen[rows[0].JobID])
		seen[rows[0].JobID] = true
	}
}

// The forged and the strange among the notifications wake nobody and fill no memory.
func TestLeaseNotifications(t *testing.T) {
	t.Parallel()
	for payload, want := range map[string]bool{
		KindWorker: true, KindWorker + " a": true, KindWorker + " a b": true,
		KindWorker + " a b c": false, "task.workers": false, "": false, " ": false,
	} {
		require.Equal(t, want, knownLane(payload), "%q", payload)
	}
}
