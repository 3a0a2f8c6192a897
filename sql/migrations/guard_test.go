package migrations_test

import (
	"slices"
	"testing"

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
			ended_at = CASE WHEN $2 IN ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMED_OUT') THEN now() END
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
