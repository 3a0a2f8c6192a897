package migrations_test

import (
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
)

// The state machine is written twice, in Go to explain and in SQL to enforce.
func TestMovesInSQLAreTheMovesInGo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var inGo []string
	for _, was := range jobs.Statuses {
		for _, now := range jobs.Legal(was) {
			inGo = append(inGo, string(was)+" "+string(now))
		}
	}
	require.ElementsMatch(t, inGo, list[string](t, b.pool, "SELECT was || ' ' || now FROM task_move"))
	require.Equal(t, statusNames(), list[string](t, b.pool, "SELECT unnest(enum_range(NULL::task_status))::text"))
	require.Zero(t, list[int](t, b.pool, "SELECT count(*) FROM task_move WHERE told_by = ''")[0])
}

func statusNames() (names []string) {
	for _, s := range jobs.Statuses {
		names = append(names, string(s))
	}
	return names
}

// The guard's function against the rows, for all pairs: no step keeps the status, one
// step is a legal move, two are a start and a success in one commit.
func TestGuardKnowsEveryPair(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, was := range jobs.Statuses {
		for _, now := range jobs.Statuses {
			for steps := range 4 {
				want := false
				switch steps {
				case 0:
					want = was == now
				case 1:
					want = slices.Contains(jobs.Legal(was), now)
				case 2:
					want = was == jobs.Pending && now == jobs.Completed
				}
				got := list[bool](t, b.pool, "SELECT task_move_legal($1::text::task_status, $2::text::task_status, $3)", string(was), string(now), steps)
				require.Equal(t, want, got[0], "%s to %s in %d steps", was, now, steps)
			}
		}
	}
}

func TestTasksAreNotChangedByHand(t *testing.T) {
	t.Parallel()
	b := setup(t)
	psql := b.as("")
	for _, status := range statusNames() {
		id := b.task(status)
		for _, sql := range []string{
			"UPDATE task SET status = 'CANCELLED', version = version + 1 WHERE task_id = $1",
			"UPDATE task SET output = '{}' WHERE task_id = $1",
			"UPDATE task SET priority = 1 WHERE task_id = $1",
			"DELETE FROM task WHERE task_id = $1",
		} {
			_, err := psql.Exec(t.Context(), sql, id)
			refused := requireCode(t, "23001", err, status, " ", sql)
			require.Equal(t, "task "+id.String()+" is not changed by hand: its row, its job and its event belong to one move", refused.Message)
			require.Contains(t, refused.Hint, "POST /api/internal/tasks/{taskId}/cancel")
		}
	}
	require.Equal(t, 7, list[int](t, b.pool, "SELECT count(*) FROM task")[0])
}

// The engine itself may do what is legal, and is told what would be.
func TestGuardHoldsTheEngineToTheMoves(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const move = `
		UPDATE task
		SET status = $2::text::task_status, version = version + $3,
			ended_at = CASE WHEN $2 IN ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMED_OUT') THEN coalesce(ended_at, now()) END
		WHERE task_id = $1`
	for _, was := range jobs.Statuses {
		for _, now := range jobs.Statuses {
			for steps := range 3 {
				id := b.task(string(was))
				_, err := b.pool.Exec(t.Context(), move, id, string(now), steps)
				legal := steps == 0 && was == now || steps == 1 && slices.Contains(jobs.Legal(was), now) ||
					steps == 2 && was == jobs.Pending && now == jobs.Completed
				if legal {
					require.NoError(t, err)
					continue
				}
				refused := requireCode(t, "23001", err, was, " to ", now)
				require.Contains(t, refused.Detail, "From "+string(was)+" it may go to ")
			}
		}
	}
	_, err := b.pool.Exec(t.Context(), "DELETE FROM task")
	require.NoError(t, err, "retention is the engine's")
}

// What a task was created with does not change, and of one that has ended nothing but
// the job; neither for the engine nor for a superuser.
func TestGuardKeepsWhatIsSettled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	columns := list[string](t, b.pool, `
		SELECT attname::text
		FROM pg_attribute
		WHERE attrelid = 'task'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
		ORDER BY attname`)
	changing := []string{ // by moves; every other column is what the task was created with
		"assigned_at", "assignee_id", "assignee_name", "attempt", "candidates", "crashes", "due_at", "ended_at", "error", "failures", "group_id",
		"input", "lane", "next_retry_at", "output", "started_at",
	}
	moves := []string{"status", "version"} // guarded together: see TestGuardHoldsTheEngineToTheMoves
	free := []string{"job_id", "deadline_id"}
	others := map[string]string{
		"text": "'x'", "uuid": "gen_random_uuid()", "timestamptz": "now() - interval '1 day'", "jsonb": `'{"x": 1}'`,
		"task_type": "'INTEGRATION'", "task_lane": "'task-execution-retry'", "int4": "2", "int2": "2", "int8": "2", "bool": "true",
	}
	for _, column := range columns {
		kind := list[string](t, b.pool, "SELECT t.typname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = 'task'::regclass AND a.attname = $1", column)[0]
		for _, status := range []string{"RUNNING", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"} {
			if slices.Contains(moves, column) || status == "RUNNING" && column == "ended_at" {
				continue
			}
			id := b.task(status)
			_, err := b.pool.Exec(t.Context(), "UPDATE task SET "+column+" = "+others[kind]+" WHERE task_id = $1", id)
			switch {
			case !slices.Contains(changing, column) && !slices.Contains(free, column):
				require.Contains(t, requireCode(t, "23001", err, column, " of ", status).Message, "what it was created with does not change")
			case status == "RUNNING" || slices.Contains(free, column):
				require.NoError(t, err, "%s of %s", column, status)
			default:
				require.Contains(t, requireCode(t, "23001", err, column, " of ", status).Message, "how it ended does not change")
			}
		}
	}
	id := b.task("FAILED")
	_, err := b.pool.Exec(t.Context(), `UPDATE task SET status = 'PENDING', version = version + 1, ended_at = NULL, input = '{"n": 2}' WHERE task_id = $1`, id)
	require.NoError(t, err, "a redrive may change the input")
}

// A release takes an attempt back; one that has ended is kept.
func TestAttemptsThatEndedAreKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.pool.Exec(t.Context(), `
		INSERT INTO task_attempt (task_id, attempt, job_id, started_at, executor_id, ended_at, outcome)
		SELECT gen_random_uuid(), n, n, now(), 'p', CASE n WHEN 2 THEN now() END, CASE n WHEN 2 THEN 'FAILED'::attempt_outcome END
		FROM generate_series(1, 2) n`)
	require.NoError(t, err)
	_, err = b.pool.Exec(t.Context(), "DELETE FROM task_attempt WHERE outcome IS NOT NULL")
	requireCode(t, "23001", err)
	_, err = b.as("").Exec(t.Context(), "DELETE FROM task_attempt WHERE outcome IS NULL")
	requireCode(t, "23001", err, "by hand")
	_, err = b.pool.Exec(t.Context(), "DELETE FROM task_attempt WHERE outcome IS NULL")
	require.NoError(t, err)
}

// The service cannot write an event that no move has made.
func TestForgedEventsAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	app := b.as("tes_app")
	_, err := app.Exec(t.Context(), "SET tes.actor = 'engine'")
	require.NoError(t, err)
	pending, done, cancelled := b.task("PENDING"), b.task("COMPLETED"), b.task("CANCELLED")
	const event = `
		INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
		VALUES (nextval('task_event_id_seq'), $1, now(), $2, 1, $3::text::task_event_type, 'RUNNING', $4::text::task_status, 'forger')`
	for why, forged := range map[string][]any{
		"a move that was not made":              {pending, 2, "completed", "COMPLETED"},
		"of its version, and not its status":    {pending, 1, "completed", "COMPLETED"},
		"before the first":                      {pending, 0, "started", "RUNNING"},
		"after the end":                         {done, 2, "retry", "PENDING"},
		"no start beside an end":                {done, 0, "completed", "COMPLETED"},
		"a start beside an end without success": {cancelled, 0, "started", "RUNNING"},
		"a task that is not there":              {uuid.New(), 1, "created", "PENDING"},
	} {
		_, err := app.Exec(t.Context(), event, forged...)
		require.Contains(t, requireCode(t, "23001", err, why).Message, "belongs to no move", why)
	}
	require.Zero(t, list[int](t, b.pool, "SELECT count(*) FROM task_event")[0])

	// One statement that moves and tells is what the engine makes.
	_, err = app.Exec(t.Context(), `
		WITH moved AS (
			UPDATE task SET status = 'ASSIGNED', version = version + 1 WHERE task_id = $1 RETURNING task_id, version, status
		)
		INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
		SELECT nextval('task_event_id_seq'), task_id, now(), version, 1, 'assigned', 'PENDING', status, 'p' FROM moved`, pending)
	require.NoError(t, err)
	_, err = app.Exec(t.Context(), event, pending, 2, "assigned", "ASSIGNED")
	requireCode(t, "23505", err, "it was told")
}
