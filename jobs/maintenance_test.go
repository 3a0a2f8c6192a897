package jobs

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func (b *testBundle) maintain(enabled bool, lanes ...string) {
	b.t.Helper()
	changed, err := b.Operators.SetMaintenance(b.ctx, Maintenance{EventID: uuid.NewString(), At: time.Now(), Enabled: enabled, Lanes: lanes, By: "ops"})
	require.NoError(b.t, err)
	require.Equal(b.t, len(lanes), changed)
}

// Lanes in maintenance give nothing out in any process, one that starts later too,
// and a resume in River changes nothing of it. Its end wakes them all, without the
// poll.
func TestMaintenanceRestsLanesInEveryProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	seldom := func(cfg *RunnerConfig) { cfg.Poll = time.Hour }
	executors := noop(does(`{}`, nil))
	executors["manual"] = assigning("ann")["manual"]
	b.work(executors, seldom)
	b.becomes(b.create().TaskID, Completed)
	b.maintain(true, LaneAutomated)
	task := b.create()
	join(t, b.pool, "p2").work(noop(does(`{}`, nil))) // it looks often, and from the beginning
	b.resumeLane(LaneAutomated)
	waiting := b.create()
	other := b.create(func(r *Request) { r.TaskType, r.Config.Executor = Manual, "manual" })
	require.Zero(t, ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'running' AND queue = $1", LaneAutomated))
	require.Equal(t, "created", b.story(task.TaskID))
	b.becomes(other.TaskID, Assigned) // its lane goes on

	b.maintain(false, LaneAutomated)
	b.becomes(task.TaskID, Completed)
	b.becomes(waiting.TaskID, Completed)
	require.Equal(t, 2, ask[int](b, "SELECT count(*) FROM maintenance_change WHERE actor = 'ops'"))
}

// Who listens is woken by the end of maintenance, and need not poll.
func TestMaintenanceEndsWithAWord(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.maintain(true, LaneAutomated)
	r := b.work(noop(does(`{}`, nil)), func(cfg *RunnerConfig) { cfg.Poll = time.Hour })
	task := b.create()
	waitFor(t, "its lane to have looked in vain", func() bool { return len(r.claimers[0].woken) == 0 })
	b.listens()
	b.maintain(false, LaneAutomated)
	b.becomes(task.TaskID, Completed)
}

// Whatever is said in whatever order, what was said last holds, for each lane.
func TestMaintenanceIsWhatWasSaidLast(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rapid.Check(t, func(r *rapid.T) {
		b.exec("DELETE FROM maintenance")
		b.exec("DELETE FROM maintenance_change")
		base := time.Now().UTC().Truncate(time.Microsecond)
		said := rapid.Permutation([]int{0, 1, 2, 3, 4, 5}).Draw(r, "order")
		type word struct {
			at    int
			on    bool
			until *time.Time
		}
		last := map[string]word{}
		for _, at := range said {
			w := word{at: at, on: rapid.Bool().Draw(r, "on")}
			if w.on && rapid.Bool().Draw(r, "with an end") {
				until := base.Add(time.Duration(rapid.IntRange(-60, 60).Draw(r, "minutes")) * time.Minute).Add(30 * time.Second)
				w.until = &until
			}
			lanes := rapid.SliceOfNDistinct(rapid.SampledFrom(Lanes), 1, 5, rapid.ID[string]).Draw(r, "lanes")
			newer := 0
			for _, lane := range lanes {
				if before, heard := last[lane]; !heard || before.at <= at {
					last[lane] = w
					newer++
				}
			}
			changed, err := b.Operators.SetMaintenance(b.ctx, Maintenance{
				EventID: uuid.NewString(), At: base.Add(time.Duration(at-10) * time.Second), Enabled: w.on, Lanes: lanes, Until: w.until,
			})
			require.NoError(t, err)
			require.Equal(t, newer, changed)
		}
		rows, err := b.q.MaintenanceInForce(b.ctx)
		require.NoError(t, err)
		inForce := map[string]bool{}
		for _, row := range rows {
			inForce[string(row.Lane)] = true
		}
		for lane, w := range last {
			require.Equal(t, w.on && (w.until == nil || w.until.After(base)), inForce[lane], "%s: %+v", lane, w)
			delete(inForce, lane)
		}
		require.Empty(t, inForce)
	})
}
