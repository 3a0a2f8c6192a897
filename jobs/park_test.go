package jobs

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// parking is a session that holds one claimed job back in a transaction of its own.
type parking struct {
	tx     pgx.Tx
	parked chan bool // whether the job is held back; at most one value
}

// startParking begins to hold a claimed job back, and waits for no lock.
func (b *testBundle) startParking(job int64) *parking {
	b.t.Helper()
	tx, err := b.pool.Begin(b.ctx)
	require.NoError(b.t, err)
	b.t.Cleanup(func() { _ = tx.Rollback(b.ctx) })

	p := &parking{tx: tx, parked: make(chan bool, 1)}
	go func() {
		all, err := db.New(tx).LanePark(b.ctx, db.LaneParkParams{JobIds: []int64{job}, Kind: KindAutomated, ExecutorID: "p1"})
		if err == nil && len(all) == 1 {
			p.parked <- all[0]
		}
	}()
	return p
}

// Sessions that hold a backlog back, one beginning before the other has ended, do not overtake a
// resume: it waits for those that were there before it, and the later ones see that the pause
// is over.
func TestResumeIsNotOvertaken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.paused("held")

	const sessions = 4
	for range sessions {
		b.create(of("held"))
	}
	jobs, err := b.q.LaneClaim(b.ctx, db.LaneClaimParams{Lane: LaneAutomated, Kind: KindAutomated, Becomes: KindAutomated, Slots: sessions, ExecutorID: "p1"})
	require.NoError(t, err)
	require.Len(t, jobs, sessions)

	first := b.startParking(jobs[0].JobID)
	require.True(t, receive(t, first.parked))
	resumed := make(chan error, 1)
	go func() {
		_, err := b.Pauses.ResumeDefinition(b.ctx, "held", because)
		resumed <- err
	}()
	b.waiting(1)

	// None of these ends before the resume does.
	var later []*parking
	for _, job := range jobs[1:] {
		p := b.startParking(job.JobID)
		waitFor(t, "the session to hold its job back, or to wait", func() bool {
			return len(p.parked) > 0 || ask[int](b, "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") > len(later)+1
		})
		later = append(later, p)
	}
	require.NoError(t, first.tx.Commit(b.ctx))
	require.NoError(t, receive(t, resumed))

	for _, p := range later {
		require.False(t, receive(t, p.parked), "the pause is over")
		require.NoError(t, p.tx.Commit(b.ctx))
	}
	require.Equal(t, sessions, ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'available'"))
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM pause WHERE released"))
}

// A lock on the pauses, or on the jobs' way there, keeps no slot from the tasks that are not
// paused, and no lease from a worker.
func TestLockedPauseHoldsUpNoOtherTask(t *testing.T) {
	t.Parallel()
	const slots = 5
	for _, tc := range []struct {
		locked string
		state  string // of the paused jobs
	}{
		{"SELECT FROM pause FOR UPDATE", "pending"},
		{"LOCK TABLE pause_lock IN EXCLUSIVE MODE", "running"},
	} {
		t.Run(tc.locked, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			for _, executor := range []string{"noop", ExecutorWorker} {
				define(t, b, pausable("held-"+executor, executor))
				define(t, b, pausable("free-"+executor, executor))
				_, err := b.Pauses.PauseDefinition(b.ctx, "held-"+executor, because)
				require.NoError(t, err)
				for range slots {
					b.create(of("held-" + executor))
				}
			}
			held := b.lock(tc.locked)

			// No sweep makes new jobs of the claimed ones: the slots become free by themselves.
			p := b.production("p1")
			p.work(noop(does(`{}`, nil)), stalled, func(cfg *RunnerConfig) { cfg.Slots = map[string]int{LaneAutomated: slots} })
			stand := func(n int) {
				waitFor(t, fmt.Sprintf("%d paused jobs to be %s", n, tc.state), func() bool {
					return ask[int](b, "SELECT count(*) FROM river_job WHERE state::text = $1", tc.state) == n
				})
			}
			stand(slots)
			b.becomes(b.create(of("free-noop")).TaskID, Completed)

			free := b.create(of("free-worker"))
			var leases []Lease
			waitFor(t, "the worker to come past the paused tasks", func() bool {
				found, err := p.Leases.Acquire(b.ctx, LeaseRequest{Worker: "w", Most: slots + 1, Select: []Selection{{Lane: LaneAutomated}}})
				require.NoError(t, err)
				leases = append(leases, found...)
				return len(leases) == 1
			})
			require.Equal(t, free.TaskID, leases[0].TaskID)
			require.NoError(t, p.completeLease(leases[0]))
			stand(2 * slots)
			held.letGo()
		})
	}
}

// A pause that ends between a claim and the moment in which its job is held back holds nothing
// back: the job is available again, as it was.
func TestResumeBetweenClaimAndHold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	define(t, b, pausable("held", executorGo))
	_, err := b.Pauses.PauseDefinition(b.ctx, "held", because)
	require.NoError(t, err)
	task := b.create(of("held"))
	kind := someKind(executorGo, "invoice")
	rows, err := b.q.LaneClaim(b.ctx, db.LaneClaimParams{Lane: LaneAutomated, Kind: kind, Becomes: KindAutomated, Slots: 10, ExecutorID: "p1"})
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.True(t, rows[0].Paused)

	_, err = b.Pauses.ResumeDefinition(b.ctx, "held", because)
	require.NoError(t, err)
	parked, err := b.q.LanePark(b.ctx, db.LaneParkParams{JobIds: []int64{task.JobID}, Kind: kind, ExecutorID: "p1"})
	require.NoError(t, err)
	require.Equal(t, []bool{false}, parked)
	require.Equal(t, "available 0 "+kind, ask[string](b, "SELECT concat_ws(' ', state, attempt, kind) FROM river_job WHERE id = $1 AND attempted_at IS NULL AND NOT metadata ? 'paused'", task.JobID))
}

// A dequeue passes a backlog of paused tasks, once: what it has passed is held back.
func TestDequeuePassesPausedTasks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, id := range []string{"held", "free"} {
		define(t, b, pausable(id, ExecutorWorker))
	}
	_, err := b.Pauses.PauseDefinition(b.ctx, "held", because)
	require.NoError(t, err)
	for range 30 {
		b.create(of("held"))
	}
	free := b.create(of("free"))

	one := func(req *LeaseRequest) { req.Most = 1 }
	leases := b.dequeue("w", one)
	require.Len(t, leases, 1)
	require.Equal(t, free.TaskID, leases[0].TaskID)
	b.heldBack(30)
	require.Empty(t, b.dequeue("w", one))
	require.NoError(t, b.completeLease(leases[0]))

	got := make(chan []Lease, 1)
	go func() {
		found, err := b.Leases.Acquire(b.ctx, LeaseRequest{Worker: "w", Most: 100, Wait: patience, Select: []Selection{{Lane: LaneAutomated}}})
		if err == nil {
			got <- found
		}
	}()
	_, err = b.Pauses.ResumeDefinition(b.ctx, "held", because)
	require.NoError(t, err)
	require.NotEmpty(t, receive(t, got))
}
