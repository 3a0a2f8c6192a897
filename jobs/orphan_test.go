package jobs

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// claimedBy makes the task's job one that a process has claimed and not begun.
func (b *testBundle) claimedBy(process string, task db.Task, ago time.Duration) {
	b.t.Helper()
	require.EqualValues(b.t, 1, b.exec(
		"UPDATE river_job SET state = 'running', attempt = 1, attempted_by = ARRAY[$2], attempted_at = now() - $3::interval WHERE id = $1",
		task.JobID, process, ago))
}

// sweptOnce waits until a sweep has begun from now on, and with it that the one before
// is over.
func (b *testBundle) sweptOnce() {
	b.t.Helper()
	kept := func() time.Time { return ask[time.Time](b, "SELECT max(updated_at) FROM river_queue") }
	before := kept()
	waitFor(b.t, "a sweep", func() bool { return kept().After(before) })
}

func hasty(cfg *RunnerConfig) { cfg.Silence = 2 * time.Second }

func TestClaimOfADeadProcessIsFreedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	never, silent := b.create(), b.create()
	b.claimedBy("never heard of", never, time.Minute)
	b.exec("INSERT INTO executor (executor_id, seen_at) VALUES ('silent', now() - interval '1 minute')")
	b.claimedBy("silent", silent, time.Minute)
	b.work(noop(does(`{}`, nil)))
	for _, task := range []db.Task{never, silent} {
		done := b.becomes(task.TaskID, Completed)
		require.NotEqual(t, task.JobID, done.JobID, "the old token is void")
		require.EqualValues(t, 1, done.Attempt)
		require.Equal(t, "created started completed", b.story(task.TaskID))
		require.Equal(t, "cancelled", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", task.JobID))
		require.Equal(t, ask[string](b, "SELECT tags::text FROM river_job WHERE id = $1", task.JobID),
			ask[string](b, "SELECT tags::text FROM river_job WHERE id = $1", done.JobID))
	}
}

// Which claims the sweep leaves alone is known when it has taken another one.
func TestSweepLeavesTheLivingAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	taken, finish := make(chan struct{}), make(chan struct{})
	b.work(map[string]Registration{
		"noop": {Executor: does(`{}`, nil)},
		"manual": {Assigns: true, Executor: ExecutorFunc(func(context.Context, Job) (Result, error) {
			close(taken)
			<-finish
			return Result{Assign: &Assignment{AssigneeID: "ann"}}, nil
		})},
	})
	mine := b.create(manual) // no start is written of it, so only we know that it runs
	receive(t, taken)
	b.sweptOnce() // a sweep that was on its way may not know of it
	b.claimedBy("p1", mine, time.Hour)
	b.exec("INSERT INTO executor (executor_id, seen_at) VALUES ('alive', now() + interval '1 minute')")
	theirs, fresh := b.create(remote), b.create(remote)
	b.claimedBy("alive", theirs, time.Hour)
	b.claimedBy("dead", fresh, -time.Minute) // it stays fresh, however slow the test is

	// Paused meanwhile, or the live process may be the first to take it.
	b.exec("UPDATE river_queue SET paused_at = now() WHERE name = 'task-execution-automated'")
	orphan := b.create()
	b.claimedBy("dead", orphan, time.Hour)
	b.exec("UPDATE river_queue SET paused_at = NULL WHERE name = 'task-execution-automated'")
	b.becomes(orphan.TaskID, Completed)
	for _, task := range []db.Task{mine, theirs, fresh} {
		require.Equal(t, task.JobID, b.get(task.TaskID).JobID)
	}
	close(finish)
	b.becomes(mine.TaskID, Assigned)
}

// The answer to a claim was lost: it was committed, in our name, and we run nothing
// of it.
func TestOwnClaimThatIsNotInFlightIsFreedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create()
	b.claimedBy("p1", task, time.Hour)
	b.work(noop(does(`{}`, nil)), hasty)
	b.becomes(task.TaskID, Completed)
}

func TestStaleTokensAreEnded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create()
	const again = `INSERT INTO river_job (state, max_attempts, priority, args, kind, queue, tags)
		SELECT 'available', 1, priority, $2, kind, queue, tags FROM river_job WHERE id = $1 RETURNING id`
	args := `{"task_id": "` + task.TaskID.String() + `", "attempt": 1}`
	twin := ask[int64](b, again, task.JobID, args)
	ghost := ask[int64](b, again, task.JobID, `{"task_id": "00000000-0000-0000-0000-000000000001", "attempt": 1}`)
	b.work(noop(does(`{}`, nil)))
	b.becomes(task.TaskID, Completed)
	for _, id := range []int64{twin, ghost} {
		waitFor(t, "the stale token to be ended", func() bool {
			return ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", id) == "cancelled"
		})
	}
	require.Equal(t, "created started completed", b.story(task.TaskID))
}

func TestQueuesAreKeptAlive(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec("DELETE FROM river_queue WHERE name = $1", LaneRetry)
	b.exec("UPDATE river_queue SET updated_at = now() - interval '23 hours', paused_at = now() WHERE name = $1", LaneManual)
	b.work(nil)
	waitFor(t, "the queues to be touched", func() bool {
		return ask[int](b, "SELECT count(*) FROM river_queue WHERE updated_at > now() - interval '1 hour' AND name LIKE 'task-%'") == 5
	})
	require.NotNil(t, ask[*time.Time](b, "SELECT paused_at FROM river_queue WHERE name = $1", LaneManual), "its pause is kept")
}
