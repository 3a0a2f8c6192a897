package jobs

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// TestServiceMayMakeEachStatement asks for the plan of every statement of the engine as
// tes_app, for which it must hold the same rights as to run it.
func TestServiceMayMakeEachStatement(t *testing.T) {
	t.Parallel()
	pool := dbtest.Get(t)
	conn, err := pgx.Connect(t.Context(), dbtest.URL(pool))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "SET plan_cache_mode = force_generic_plan; SET ROLE tes_app")
	require.NoError(t, err)
	plans := explain(t, conn, func(name string) bool { return name != "TaskListForUser" }) // read as a tenant alone
	require.Greater(t, len(plans), 80)
}

// TestLivesAsTheService: the role tes_app, which can add to what has happened and not
// change it, has all that the engine needs.
func TestLivesAsTheService(t *testing.T) {
	t.Parallel()
	owner := dbtest.Get(t)
	address, err := url.Parse(dbtest.URL(owner))
	require.NoError(t, err)
	query := address.Query()
	query.Set("role", "tes_app")
	address.RawQuery = query.Encode()
	pool, err := pgpool.Open(t.Context(), address.String(), pgpool.Config{Name: "service", MaxConns: 8, Engine: true})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	b := join(t, pool, "p1")
	require.Equal(t, "tes_app", ask[string](b, "SELECT current_user::text"))

	w := b.work(map[string]Registration{
		"noop":   obedient["noop"],
		"manual": assigning("ann")["manual"],
	})
	define(t, b)
	define(t, b, func(d *Definition) { d.Description = "the next revision" })
	b.becomes(b.create(input(`{}`)).TaskID, Completed)
	retried := b.create(input(`{"fail": "x"}`), policy(RetryPolicy{MaxRetries: 1}))
	b.becomes(retried.TaskID, Failed)

	person := b.becomes(b.create(manual).TaskID, Assigned)
	_, err = b.Worklist.Reassign(b.ctx, person.TaskID, Actor{Name: "ui"}, Reassignment{AssigneeID: "bob"})
	require.NoError(t, err)
	_, err = b.Worklist.Claim(b.ctx, person.TaskID, Actor{Name: "ui"}, Person{ID: "bob"})
	require.NoError(t, err)
	_, err = b.Cancel(b.ctx, person.TaskID, Actor{Name: "ui", Reason: "x"})
	require.NoError(t, err)

	one, other := b.dead("one"), b.dead("two")
	b.redrive(Redrive{Filter: &DeadLetterFilter{}})
	b.until(one.TaskID, "tried again", func(task db.Task) bool { return task.Attempt == 2 && task.Status == db.TaskStatusFAILED })
	b.until(other.TaskID, "tried again", func(task db.Task) bool { return task.Attempt == 2 && task.Status == db.TaskStatusFAILED })
	for range 2 {
		_, err = b.DeadLetters.Discard(b.ctx, one.TaskID, Actor{Name: "eh", Reason: "x"})
		require.NoError(t, err)
	}
	for _, enabled := range []bool{true, false} {
		_, err = b.Operators.SetMaintenance(b.ctx, Maintenance{EventID: "e", At: time.Now(), Enabled: enabled, Lanes: Lanes, By: "o"})
		require.NoError(t, err)
	}
	leased := b.create(remote)
	leases, err := b.Leases.Acquire(b.ctx, LeaseRequest{Worker: "w", ID: "r", Most: 1, Select: []Selection{{Lane: LaneAutomated}}})
	require.NoError(t, err)
	require.Len(t, leases, 1)
	require.Equal(t, leased.TaskID, leases[0].TaskID)

	// River's client leads, works notices, and does what River UI asks of it.
	own, err := pgpool.Open(t.Context(), address.String(), pgpool.Config{Name: "river", MaxConns: 4})
	require.NoError(t, err)
	t.Cleanup(own.Close)
	client, err := NewRiver(own, "p1", b.cfg.Logger, NewNotices(b.Tasks, nil))
	require.NoError(t, err)
	require.NoError(t, client.Start(t.Context()))
	waitFor(t, "the notices to be worked", func() bool {
		return ask[int](b, "SELECT count(*) FROM river_job WHERE queue = 'task-notices' AND state IN ('available', 'running')") == 0 &&
			ask[int](b, "SELECT count(*) FROM river_leader") == 1
	})
	require.NoError(t, client.QueuePause(t.Context(), LaneManual, nil))
	require.NoError(t, client.QueueResume(t.Context(), LaneManual, nil))
	held := b.create(remote)
	_, err = client.JobCancel(t.Context(), held.JobID)
	require.NoError(t, err)
	b.becomes(held.TaskID, Cancelled)
	_, err = client.JobDelete(t.Context(), held.JobID)
	require.NoError(t, err)
	_, err = client.JobList(t.Context(), river.NewJobListParams().States(rivertype.JobStateAvailable))
	require.NoError(t, err)
	require.NoError(t, client.Stop(context.Background()))

	w.stop()
	b.Drain(context.Background())
	require.NotContains(t, b.log.String(), "permission denied")
	require.NotContains(t, b.log.String(), "23001")
	requireBooks(t, owner)
}
