package jobs

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

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
	_, err = b.Reassign(b.ctx, person.TaskID, Ask{By: "ui"}, Reassignment{AssigneeID: "bob"})
	require.NoError(t, err)
	_, err = b.Claim(b.ctx, person.TaskID, Ask{By: "ui"}, Person{ID: "bob"})
	require.NoError(t, err)
	_, err = b.Cancel(b.ctx, person.TaskID, Ask{By: "ui", Reason: "x"})
	require.NoError(t, err)

	one, other := b.dead("one"), b.dead("two")
	b.redrive(Redrive{Filter: &DeadLetterFilter{}})
	b.until(one.TaskID, "tried again", func(task db.Task) bool { return task.Attempt == 2 && task.Status == db.TaskStatusFAILED })
	b.until(other.TaskID, "tried again", func(task db.Task) bool { return task.Attempt == 2 && task.Status == db.TaskStatusFAILED })
	for range 2 {
		_, err = b.Discard(b.ctx, one.TaskID, Ask{By: "eh", Reason: "x"})
		require.NoError(t, err)
	}
	for _, enabled := range []bool{true, false} {
		_, err = b.SetMaintenance(b.ctx, Maintenance{EventID: "e", At: time.Now(), Enabled: enabled, Lanes: Lanes, By: "o"})
		require.NoError(t, err)
	}
	leased := b.create(remote)
	leases, err := b.Lease(b.ctx, LeaseRequest{Worker: "w", ID: "r", Most: 1, Select: []Selection{{Lane: LaneAutomated}}})
	require.NoError(t, err)
	require.Len(t, leases, 1)
	require.Equal(t, leased.TaskID, leases[0].TaskID)
	w.stop()
	b.Drain(context.Background())
	require.NotContains(t, b.log.String(), "permission denied")
	requireBooks(t, owner)
}
