package jobs

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// A process that dies between a resume and the release of its jobs leaves these to the others.
func TestResumeOfAKilledProcessIsReleasedByAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.paused("held")
	w := b.work(noop(does(`{}`, nil)))
	var tasks []db.Task
	for range 1200 { // more than a page
		tasks = append(tasks, b.create(of("held")))
	}
	b.heldBack(len(tasks))
	w.stop()

	_, err := b.q.PauseEnd(b.ctx, db.PauseEndParams{Scope: "definition", Name: "held", Actor: "ops"})
	require.NoError(t, err)
	requireBooks(t, b.pool)
	require.Equal(t, len(tasks), ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'pending'"))

	other := join(t, b.pool, "p2")
	other.work(noop(does(`{}`, nil)))
	for _, task := range tasks {
		b.becomes(task.TaskID, Completed)
	}
	waitFor(t, "the pause to be released", func() bool { return ask[int](b, "SELECT count(*) FROM pause WHERE released") == 1 })
}

// A job that somebody has locked is not forgotten by the release that passes it by.
func TestLockedJobIsReleasedLater(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.paused("held")
	task := b.create(of("held"))
	w := b.work(noop(does(`{}`, nil)))
	b.heldBack(1)
	w.stop()

	require.NoError(t, pgx.BeginFunc(b.ctx, b.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(b.ctx, "SELECT FROM river_job WHERE id = $1 FOR UPDATE", task.JobID)
		require.NoError(t, err)
		_, err = b.Pauses.ResumeDefinition(b.ctx, "held", because)
		return err
	}))
	require.Equal(t, []any{1, 0}, []any{
		ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'pending'"), ask[int](b, "SELECT count(*) FROM pause WHERE released"),
	})
	waitFor(t, "the job to be looked at again", func() bool {
		require.NoError(t, b.Pauses.release(b.ctx, time.Hour))
		return ask[int](b, "SELECT count(*) FROM pause WHERE released") == 1
	})
	require.Zero(t, ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'pending'"))
}

// All processes make one walk over the jobs that are held back. Each goes on where the last one
// was, and leaves a page to the process that makes it.
func TestReleaseIsOneWalkOfAllProcesses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.paused("held")
	w := b.work(noop(does(`{}`, nil)))
	const tasks, page = 1200, 1000
	for range tasks {
		b.create(of("held"))
	}
	b.heldBack(tasks)
	w.stop()
	_, err := b.q.PauseEnd(b.ctx, db.PauseEndParams{Scope: "definition", Name: "held", Actor: "ops"})
	require.NoError(t, err)

	stand := func(pending int, released bool) {
		t.Helper()
		require.Equal(t, []any{pending, released}, []any{
			ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'pending'"), ask[bool](b, "SELECT released FROM pause"),
		})
	}
	turn := func() int { return ask[int](b, "SELECT turn FROM pause_walk") }

	// One process makes a page, and dies.
	begun := turn()
	require.NoError(t, b.q.PauseWalkBegin(b.ctx))
	require.NoError(t, b.q.PauseWalkBegin(b.ctx), "one is under way")
	first, err := b.q.PauseRelease(b.ctx, 3600)
	require.NoError(t, err)
	require.Equal(t, []bool{true, false}, []bool{first.Releases, first.Ended})
	stand(tasks-page, false)

	other := join(t, b.pool, "p2")
	walks := b.lock("SELECT FROM pause_walk FOR UPDATE") // as if a third one made a page
	require.NoError(t, other.Pauses.release(b.ctx, 0))
	stand(tasks-page, false)
	walks.letGo()

	require.NoError(t, other.Pauses.release(b.ctx, time.Hour))
	stand(0, true)
	require.Equal(t, begun+4, turn(), "the walk has begun once, and made two pages and its end")

	require.NoError(t, other.Pauses.release(b.ctx, time.Hour))
	require.Equal(t, begun+4, turn(), "nothing is left to do")
	require.NoError(t, other.Pauses.release(b.ctx, 0))
	require.Equal(t, begun+5, turn(), "a page that looks for jobs of deleted pauses")
}

// A pause that is resumed while a walk is under way is released by the next walk: the walk may
// have passed its jobs.
func TestPauseIsReleasedByAWalkThatBeganAfterItsResume(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, id := range []string{"a", "b"} {
		define(t, b, pausable(id, "noop"))
		_, err := b.Pauses.PauseDefinition(b.ctx, id, because)
		require.NoError(t, err)
	}
	w := b.work(noop(does(`{}`, nil)))
	b.create(of("b"))
	b.create(of("a"))
	b.heldBack(2)
	w.stop()

	resume := func(id string) {
		_, err := b.q.PauseEnd(b.ctx, db.PauseEndParams{Scope: "definition", Name: id, Actor: "ops"})
		require.NoError(t, err)
	}
	resume("a")
	require.NoError(t, b.q.PauseWalkBegin(b.ctx))
	_, err := b.q.PauseRelease(b.ctx, 3600) // passes the job of b
	require.NoError(t, err)
	resume("b")
	page, err := b.q.PauseRelease(b.ctx, 3600)
	require.NoError(t, err)
	require.True(t, page.Ended)
	require.Equal(t, "a", ask[string](b, "SELECT string_agg(name, ' ') FROM pause WHERE released"))
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'pending'"))

	require.NoError(t, b.Pauses.release(b.ctx, time.Hour))
	require.Equal(t, []any{0, 2}, []any{
		ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'pending'"), ask[int](b, "SELECT count(*) FROM pause WHERE released"),
	})
}

// A pause that somebody has deleted holds nothing back.
func TestDeletedPauseHoldsNothingBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.paused("held")
	b.work(noop(does(`{}`, nil)))
	task := b.create(of("held"))
	b.heldBack(1)
	require.EqualValues(t, 1, b.exec("DELETE FROM pause"))
	b.becomes(task.TaskID, Completed)
}

// A resumed task is released by itself: jobs that other pauses hold back are not walked over.
func TestResumedTaskIsReleasedAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.paused("held")
	define(t, b, pausable("one", "noop"))
	others := b.create(of("held"))
	task := b.create(of("one"))
	_, err := b.Pauses.PauseTask(b.ctx, task.TaskID, because)
	require.NoError(t, err)
	w := b.work(noop(does(`{}`, nil)))
	b.heldBack(2)
	w.stop()

	_, err = b.Pauses.ResumeTask(b.ctx, task.TaskID, because)
	require.NoError(t, err)
	const stateOf = "SELECT state::text FROM river_job WHERE id = $1"
	require.Equal(t, "available", ask[string](b, stateOf, task.JobID))
	require.Equal(t, "pending", ask[string](b, stateOf, others.JobID))
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM pause WHERE released"))
}
