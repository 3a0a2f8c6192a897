package jobs

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// brokenArgs are what an operator can make of a job's args that name no task.
var brokenArgs = []string{`{"task_id": "broken"}`, `{"task_id": "------------------------------------"}`, `{"task_id": 7}`, `{}`, `[]`, `"x"`, `null`}

func (b *testBundle) breakJob(task db.Task, args string) {
	b.t.Helper()
	require.EqualValues(b.t, 1, b.exec("UPDATE river_job SET args = $2::jsonb WHERE id = $1", task.JobID, args))
}

// A job that names no task stops nobody: its lane goes on, it is ended with a line in the
// log, and the task that waits for it gets another.
func TestAJobThatNamesNoTaskStopsNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var broken []db.Task
	for _, args := range brokenArgs {
		task := b.create(priority(Critical))
		b.breakJob(task, args)
		broken = append(broken, task)
	}
	good := b.create(priority(Low))
	b.work(noop(does("{}", nil)))
	b.becomes(good.TaskID, Completed)
	for _, task := range broken {
		done := b.becomes(task.TaskID, Completed)
		require.NotEqual(t, task.JobID, done.JobID)
		require.Equal(t, "cancelled", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", task.JobID))
	}
	// By the claim, or by the sweep, whichever came first.
	require.True(t, b.log.says("a job without a task was ended") || b.log.says("a job did not name its task, and was ended"))
}

// What names a task, and what is refused, is what a UUID's canonical text is.
func TestJobTaskTakesCanonicalUUIDsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	texts := []string{"", "-", strings.Repeat("-", 36), strings.Repeat("a", 36), strings.Repeat("a", 32), uuid.NewString() + "\n", strings.ToUpper(uuid.NewString()), "{" + uuid.NewString() + "}"}
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // it guards nothing
	for range 20_000 {
		text := []byte(uuid.NewString())
		for range random.IntN(4) {
			text[random.IntN(len(text))] = "0af-gAG\n _%"[random.IntN(11)]
		}
		texts = append(texts, string(text), string(text[:random.IntN(len(text))]))
	}
	require.Empty(t, ask[[]string](b, `
		SELECT coalesce(array_agg(s), '{}')
		FROM unnest($1::text[]) AS s
		WHERE (job_task(jsonb_build_object('task_id', s)) IS NOT NULL)
			<> (s ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' AND length(s) = 36)`, texts))
}

// Remote workers walk past it, and the task gets another job all the same.
func TestAJobThatNamesNoTaskStopsNoWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	broken := b.create(remote, priority(Critical))
	b.breakJob(broken, brokenArgs[0])
	good := b.create(remote, priority(Low))
	require.Equal(t, good.TaskID, b.dequeueOne("w").TaskID)

	b.work(nil)
	require.Equal(t, broken.TaskID, b.dequeueOne("w").TaskID)
	require.True(t, b.log.says("a job did not name its task, and was ended"))
	require.Equal(t, "cancelled", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", broken.JobID))
}

// Nor does it stop the sweep of what dead processes have claimed.
func TestAClaimedJobThatNamesNoTaskStopsNoSweep(t *testing.T) {
	t.Parallel()
	b := setup(t)
	broken, orphan := b.create(), b.create()
	b.claimedBy("gone", broken, time.Minute)
	b.breakJob(broken, brokenArgs[0])
	b.claimedBy("gone", orphan, time.Minute)
	b.work(noop(does("{}", nil)))
	b.becomes(orphan.TaskID, Completed)
	b.becomes(broken.TaskID, Completed)
}

// Nor the dead letters: neither their handler, nor the desk, nor the report.
func TestADeadLettersJobThatNamesNoTaskStopsNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dead := b.deadLetters(2)
	b.breakJob(dead[0], brokenArgs[0])
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM report.dead_letter"))
	groups, err := b.q.DeadLetterGroups(b.ctx, db.DeadLetterGroupsParams{Walk: 10, Page: 10, AfterN: 100, Since: time.Unix(0, 0)})
	require.NoError(t, err)
	require.Len(t, groups, 1)
	require.EqualValues(t, 1, groups[0].N)
	require.Equal(t, dead[1].TaskID, b.dequeue("handler", letters)[0].TaskID)

	b.work(nil)
	waitFor(t, "the broken one to have another job", func() bool { return b.get(dead[0].TaskID).JobID != dead[0].JobID })
	require.Equal(t, dead[0].TaskID, b.dequeue("handler", letters)[0].TaskID)
}

// job_task is put in its place by the planner: a call for each row of a claim would be paid
// for by every task.
func TestJobTaskIsInlined(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rows, err := b.pool.Query(b.ctx, "EXPLAIN (VERBOSE) SELECT job_task(args) FROM river_job")
	require.NoError(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.NotContains(t, fmt.Sprint(lines), "job_task")
}
