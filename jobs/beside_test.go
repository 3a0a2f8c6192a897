package jobs

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// beside makes a move and commits it only when what happens beside it, in another
// process, waits for its locks.
func (b *testBundle) beside(m *transition, other func()) {
	b.t.Helper()
	require.NoError(b.t, transitionItems{b.Tasks}.assignIDs(b.ctx, []*transition{m}))
	p, err := transitionItems{b.Tasks}.params([]*transition{m})
	require.NoError(b.t, err)
	tx, err := b.pool.Begin(b.ctx)
	require.NoError(b.t, err)
	defer func() { _ = tx.Rollback(b.ctx) }()
	rows, err := b.q.WithTx(tx).TaskMove(b.ctx, p)
	require.NoError(b.t, err)
	require.True(b.t, rows[0].Ok)
	done := make(chan struct{})
	go func() { defer close(done); other() }()
	waitFor(b.t, "the other to wait", func() bool {
		return ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") > 0
	})
	require.NoError(b.t, tx.Commit(b.ctx))
	receive(b.t, done)
}

// What was committed while a cancel waited must end with the task all the same.
func TestCancelBesideARetryEndsItsJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	task := b.create(remote, policy(RetryPolicy{MaxRetries: 3, RetryInterval: 1}))
	lease := b.dequeueOne("w")
	w, err := b.Leases.openCall(b.ctx, "", lease.Token)
	require.NoError(t, err)
	b.beside(failTransition(w.ref(), &Failure{Code: "X", Message: "x"}, time.Now()), func() {
		_, err := other.Cancel(other.ctx, task.TaskID, Actor{Name: "me"})
		require.NoError(t, err)
	})
	require.Equal(t, "created started retry canceled", b.story(task.TaskID))
	require.Equal(t, "cancelled", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", b.get(task.TaskID).JobID))
}

func TestCancelBesideAStartEndsItsLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	task := b.create(remote)
	rows, err := b.q.WorkerClaim(b.ctx, db.WorkerClaimParams{Lane: LaneAutomated, Places: []string{LaneAutomated}, DefinitionIds: []string{}, Most: 1, Walk: 1, Spare: 1, ExecutorID: "p1"})
	require.NoError(t, err)
	m, err := b.Leases.leaseTransition(b.ctx, rows[0], LeaseRequest{ID: "r", Worker: "w"}, Selection{})
	require.NoError(t, err)
	b.beside(m, func() {
		_, err := other.Cancel(other.ctx, task.TaskID, Actor{Name: "me"})
		require.NoError(t, err)
	})
	require.Equal(t, "created started canceled", b.story(task.TaskID))
	require.Zero(t, ask[int](b, "SELECT count(*) FROM lease"))
}
