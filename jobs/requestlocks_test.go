package jobs

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

func parked(req *LeaseRequest) { req.ID, req.Most, req.Wait = "r", 1, patience }

// Two calls of one request at two processes, and two tasks: the second call has seen no
// lease, and claims, while the first one's commit is under way. Both are answered with the
// same lease, and what the second claimed is free again.
func TestTwoProcessesTakeForARequestOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	task := b.create(remote)
	holder := b.hold(task)
	answers := make(chan []Lease, 2)
	go func() { answers <- b.dequeue("w", parked) }()
	b.waiting(1) // it begins the task
	second := b.create(remote)
	go func() { answers <- other.dequeue("w", parked) }()
	waitFor(t, "the second to have claimed", func() bool {
		return ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", second.JobID) == "running"
	})
	b.waiting(2)
	holder.letGo()
	one, two := receive(t, answers), receive(t, answers)
	require.Len(t, one, 1)
	require.Len(t, two, 1)
	require.Equal(t, task.TaskID, one[0].TaskID)
	require.Equal(t, one[0].Token, two[0].Token)
	require.Equal(t, second.TaskID, b.dequeueOne("w-2").TaskID, "it is free")
	require.Zero(t, ask[int](b, "SELECT count(*) FROM dequeue_turn"))
}

// A call that another has overtaken between its claim and its commit begins nothing.
func TestACallThatIsOvertakenTakesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	first := b.create(remote)
	slow := LeaseRequest{Worker: "w", Most: 1, Select: []Selection{{Lane: LaneAutomated}}, ID: "r", shared: true}
	rows, err := b.q.WorkerClaim(b.ctx, db.WorkerClaimParams{Lane: LaneAutomated, Places: []string{LaneAutomated}, DefinitionIds: []string{}, Most: 1, Walk: 1, Spare: 1, ExecutorID: "p1"})
	require.NoError(t, err)
	require.Len(t, rows, 1)
	m, err := b.Leases.leaseTransition(b.ctx, rows[0], slow, slow.Select[0])
	require.NoError(t, err)
	given, err := b.Leases.takeTurn(b.ctx, &slow)
	require.NoError(t, err)
	require.Empty(t, given)

	second := b.create(remote)
	found := other.dequeue("w", parked)
	require.Len(t, found, 1)
	require.Equal(t, second.TaskID, found[0].TaskID)

	given, err = b.Leases.start(b.ctx, &slow, []*transition{m})
	require.NoError(t, err)
	require.Empty(t, given)
	require.Equal(t, "created", b.story(first.TaskID))
	require.Equal(t, found[0].Token, b.dequeue("w", parked)[0].Token, "its next look finds the other's")
	require.Equal(t, first.TaskID, b.dequeueOne("w-2").TaskID, "it is free")
}

// What a killed process leaves of its turns is forgotten.
func TestTurnsOfTheDeadAreForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec("INSERT INTO dequeue_turn (tenant_id, owner, request_id, turn, at) VALUES ('', 'w', 'old', 1, now() - interval '1 hour'), ('', 'w', 'new', 1, now())")
	b.work(nil)
	waitFor(t, "the old one to go", func() bool { return ask[int](b, "SELECT count(*) FROM dequeue_turn") == 1 })
	require.Equal(t, "new", ask[string](b, "SELECT request_id FROM dequeue_turn"))
}
