package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// exec is a statement of the engine's, outside of any move.
func (b *testBundle) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	done, err := b.pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
	require.EqualValues(t, 1, done.RowsAffected(), sql)
}

// force is exec past the triggers, for what no move comes to.
func (b *testBundle) force(t *testing.T, sql string, args ...any) {
	t.Helper()
	require.NoError(t, pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "SET LOCAL session_replication_role = replica")
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), sql, args...)
		return err
	}))
}

// why asks why a task is not running, and demands what is always so.
func (b *testBundle) why(t *testing.T, path string, blockedBy any, detail string) object {
	t.Helper()
	w := b.ask(t, ui, "GET", path+"/why", nil).is(t, 200)
	require.Len(t, w, 6)
	require.Equal(t, path, tasksPath+"/"+w["taskId"].(string))
	require.Equal(t, b.ask(t, ui, "GET", path, nil).is(t, 200)["status"], w["state"])
	require.Equal(t, blockedBy, w["blockedBy"], w["detail"])
	require.Regexp(t, detail, w["detail"])
	return w
}

// attend makes a process live that takes jobs, and takes none.
func (b *testBundle) attend(t *testing.T) {
	t.Helper()
	b.exec(t, "INSERT INTO executor (executor_id) VALUES ('p1')")
}

func TestWhyWaiting(t *testing.T) {
	t.Parallel()

	t.Run("nobody is there", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		path, task := b.create(t, noop())
		w := b.why(t, path, "NO_WORKER", "^no process that claims jobs was seen within 30s; the task has waited since 20")
		require.EqualValues(t, 0, w["position"])
		require.Equal(t, task["createdAt"], w["since"])
		b.exec(t, "INSERT INTO executor (executor_id, seen_at) VALUES ('dead', now() - interval '31 s')")
		b.why(t, path, "NO_WORKER", "")
		b.attend(t)
		w = b.why(t, path, nil, "^next in line in task-execution-automated$")
		require.Equal(t, task["createdAt"], w["since"])
	})

	t.Run("no remote worker asks for it", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.attend(t)
		path, task := b.create(t, noop(object{"executionConfig": object{"executor": "worker"}}))
		definition := task["taskDefinitionId"].(string)
		w := b.why(t, path, "NO_WORKER", "^no remote worker has asked for "+definition+" within an hour; the task has waited since 20")
		require.Equal(t, task["createdAt"], w["since"])

		// Others ask, for other things, other queues, other tenants.
		b.exec(t, "INSERT INTO worker (tenant_id, worker_id, queue, definition_ids) VALUES ('acme', 'w-1', 'task-execution-automated', '{}')")
		b.exec(t, "INSERT INTO worker (tenant_id, worker_id, queue, definition_ids) VALUES ('', 'w-2', 'task-execution-automated', '{other}')")
		b.exec(t, "INSERT INTO worker (tenant_id, worker_id, queue, definition_ids) VALUES ('', 'w-3', 'task-execution-integration', '{}')")
		b.why(t, path, "NO_WORKER", "has asked for "+definition)

		b.exec(t, "INSERT INTO worker (tenant_id, worker_id, queue, definition_ids, seen_at) VALUES ('', 'w-4', 'task-execution-automated', ARRAY['x', $1], '2100-01-01T00:00:00Z')", definition)
		b.why(t, path, nil, "^next in line in task-execution-automated, for a remote worker, of which at least one asks for the definition$")
		last, _ := b.create(t, noop(object{"executionConfig": object{"executor": "worker"}}))
		require.EqualValues(t, 1, b.why(t, last, "AHEAD_IN_QUEUE", "^1 job of task-execution-automated is ahead of it$")["position"])

		// It went away.
		b.exec(t, "UPDATE worker SET seen_at = now() - interval '31 s' WHERE worker_id = 'w-4'")
		b.why(t, path, "NO_WORKER", "^no remote worker asks for "+definition+": the last one asked at 20")
	})

	t.Run("no process can run it", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.exec(t, "INSERT INTO executor (executor_id, kinds) VALUES ('p1', '{task.automated,task.go:mail}')")
		path, task := b.create(t, noop(object{"executionConfig": object{"executor": "go", "handler": "invoice"}}))
		w := b.why(t, path, "NO_HANDLER", `^no process that was seen within 30s has the Go handler 'invoice'; the task has waited since 20`)
		require.Equal(t, task["createdAt"], w["since"])
		b.exec(t, "UPDATE executor SET kinds = '{task.go:invoice}'")
		b.why(t, path, nil, "^next in line")

		path, _ = b.create(t, noop())
		b.why(t, path, "NO_HANDLER", "has the executor noop; the task has waited since 20")
		b.exec(t, "UPDATE executor SET kinds = NULL") // a program from before the column
		b.why(t, path, nil, "^next in line")
	})

	t.Run("the lane is paused", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.attend(t)
		path, _ := b.create(t, noop())
		b.exec(t, "UPDATE river_queue SET paused_at = '2100-01-02T03:04:05.6Z' WHERE name = $1", jobs.LaneAutomated)
		w := b.why(t, path, "PAUSED", `^task-execution-automated has been paused since 2100-01-02T03:04:05\.6Z by role:[a-z_]+$`)
		require.Equal(t, "2100-01-02T03:04:05.6Z", w["since"])
		require.EqualValues(t, 0, w["position"])

		b.exec(t, "UPDATE river_queue SET paused_at = '2000-01-01T00:00:00Z' WHERE name = $1", jobs.LaneAutomated)
		w = b.why(t, path, "PAUSED", "since 2000-01-01T00:00:00Z by role:[a-z_]+$")
		require.Greater(t, w["since"], "2020", "it came when the lane was paused already")

		path, _ = b.create(t, manual())
		b.why(t, path, nil, "^next in line in task-execution-manual$")
	})

	t.Run("its time has not come", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		path, task := b.create(t, noop())
		for _, state := range []string{"scheduled", "retryable", "available"} {
			b.exec(t, "UPDATE river_job SET state = $1::river_job_state, scheduled_at = '2100-01-01T00:00:00Z'", state)
			w := b.why(t, path, "WAITING_RETRY", "^attempt 1 is due at 2100-01-01T00:00:00Z$")
			require.Nil(t, w["position"])
			require.Equal(t, task["createdAt"], w["since"])
		}
		b.exec(t, "UPDATE river_job SET state = 'scheduled', scheduled_at = now() - interval '1 s'")
		b.why(t, path, "WAITING_RETRY", "^attempt 1 is due at 20")
	})

	t.Run("its job cannot be taken", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		path, _ := b.create(t, noop())
		b.exec(t, "UPDATE river_job SET state = 'running', attempted_at = now(), attempted_by = ARRAY['p1']")
		w := b.why(t, path, nil, "^p1 claimed the job at 20.* and is starting the attempt$")
		require.NotNil(t, w["since"])
		for _, state := range []string{"cancelled", "completed", "discarded"} {
			b.exec(t, "UPDATE river_job SET state = $1::river_job_state, finalized_at = now()", state)
			w = b.why(t, path, nil, `^job \d+ is `+state+", so no process can claim it$")
			require.Nil(t, w["position"])
		}
		b.exec(t, "DELETE FROM river_job")
		w = b.why(t, path, nil, `^job \d+ is not in the queue any more, so no process can claim it$`)
		require.Nil(t, w["since"])
	})
}

// What is said to be ahead is what is taken first: positions are held against the
// claim itself.
func TestWhyPositionIsTheOrderOfClaims(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.attend(t)
	ctx, q := t.Context(), db.New(b.pool)
	paths := map[int]string{}
	for i, priority := range []string{"LOW", "HIGH", "CRITICAL", "MEDIUM", "HIGH", "LOW", "CRITICAL", "HIGH"} {
		paths[i], _ = b.create(t, noop(object{"priority": priority}))
	}
	// Neither another kind nor what is not due is ahead.
	b.create(t, noop(object{"priority": "CRITICAL", "executionConfig": object{"executor": "worker"}}))
	b.create(t, manual(object{"priority": "CRITICAL"}))
	_, later := b.create(t, noop(object{"priority": "CRITICAL"}))
	b.exec(t, "UPDATE river_job SET scheduled_at = '2100-01-01T00:00:00Z' WHERE id = (SELECT job_id FROM task WHERE task_id = $1)", later["taskId"])
	// One that waited long has climbed, and a job's time goes before its id.
	b.exec(t, "UPDATE river_job SET priority = 1 WHERE id = (SELECT job_id FROM task WHERE task_id = $1)", taskID(t, paths[5]))
	b.exec(t, "UPDATE river_job SET scheduled_at = scheduled_at - interval '1 h' WHERE id = (SELECT job_id FROM task WHERE task_id = $1)", taskID(t, paths[7]))

	for left := len(paths); left > 0; left-- {
		first, seen := "", map[any]bool{}
		for _, path := range paths {
			w := b.ask(t, ui, "GET", path+"/why", nil).is(t, 200)
			seen[w["position"]] = true
			switch w["position"] {
			case 0.0:
				first = path
				require.Nil(t, w["blockedBy"])
			case 1.0:
				require.Equal(t, "AHEAD_IN_QUEUE", w["blockedBy"])
				require.Equal(t, "1 job of task-execution-automated is ahead of it", w["detail"])
			default:
				require.Equal(t, "AHEAD_IN_QUEUE", w["blockedBy"])
				require.Equal(t, fmt.Sprintf("%v jobs of task-execution-automated are ahead of it", w["position"]), w["detail"])
			}
		}
		require.Len(t, seen, left, "each has a place of its own")
		rows, err := q.LaneClaim(ctx, db.LaneClaimParams{Lane: jobs.LaneAutomated, Kind: jobs.KindAutomated, Becomes: jobs.KindAutomated, Slots: 1, ExecutorID: "p1"})
		require.NoError(t, err)
		require.Len(t, rows, 1)
		require.Equal(t, first, tasksPath+"/"+rows[0].TaskID.String())
		for i, path := range paths {
			if path == first {
				delete(paths, i)
			}
		}
	}
	rows, err := q.LaneClaim(ctx, db.LaneClaimParams{Lane: jobs.LaneAutomated, Kind: jobs.KindAutomated, Becomes: jobs.KindAutomated, Slots: 1, ExecutorID: "p1"})
	require.NoError(t, err)
	require.Empty(t, rows)
}

func TestWhyCountsOnlySoFar(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.attend(t)
	_, err := b.pool.Exec(t.Context(), `INSERT INTO river_job (state, attempt, max_attempts, scheduled_at, priority, args, kind, metadata, queue, tags)
		SELECT 'available', 0, 1, now() - interval '1 h', 1, '{}', $1, '{}', $2, '{}' FROM generate_series(1, 10010)`, jobs.KindAutomated, jobs.LaneAutomated)
	require.NoError(t, err)
	path, _ := b.create(t, noop())
	w := b.why(t, path, "AHEAD_IN_QUEUE", "^at least 10000 jobs of task-execution-automated are ahead of it$")
	require.EqualValues(t, 10_000, w["position"])
}

func TestWhyRunningAssignedEnded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	put := func(t *testing.T, path, status string, more ...object) object {
		t.Helper()
		return b.ask(t, orchestrator, "PUT", path+"/status", merge(object{"status": status}, more...)).is(t, 200)
	}

	t.Run("it runs", func(t *testing.T) {
		t.Parallel()
		path, _ := b.create(t, noop())
		started := put(t, path, "RUNNING")["startedAt"]
		id := taskID(t, path)
		b.exec(t, "UPDATE lease SET owner = 'p7', kind = 'process', expires_at = '2100-01-01T00:00:00Z' WHERE task_id = $1", id)
		w := b.why(t, path, nil, "^p7 has run attempt 1 since "+started.(string)+"; the lease lasts until 2100-01-01T00:00:00Z$")
		require.Equal(t, started, w["since"])
		require.Nil(t, w["position"])
		b.exec(t, "UPDATE lease SET expires_at = now() - interval '1 s' WHERE task_id = $1", id)
		b.why(t, path, nil, "the lease of p7 expired at 20.*, so the attempt is about to be ended$")
		b.exec(t, "DELETE FROM lease WHERE task_id = $1", id)
		b.why(t, path, nil, "^attempt 1 has run since "+started.(string)+"$")
	})

	t.Run("another system has it", func(t *testing.T) {
		t.Parallel()
		path, _ := b.create(t, noop())
		started := put(t, path, "RUNNING")["startedAt"]
		b.exec(t, "UPDATE lease SET kind = 'response', expires_at = '2100-01-01T00:00:00Z' WHERE task_id = $1", taskID(t, path))
		w := b.why(t, path, "RESPONSE", "its response is awaited until 2100-01-01T00:00:00Z$")
		require.Equal(t, started, w["since"])
	})

	t.Run("a person has it", func(t *testing.T) {
		t.Parallel()
		path, _ := b.create(t, manual())
		task := b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane", "dueDate": "2031-01-01T00:00:00Z"}).is(t, 200)
		w := b.why(t, path, "ASSIGNEE", "^waiting for jane since "+task["assignedAt"].(string)+", due 2031-01-01T00:00:00Z$")
		require.Equal(t, task["assignedAt"], w["since"])
		b.ask(t, ui, "POST", path+"/reassign", object{"groupId": "all"}).is(t, 200)
		b.why(t, path, "ASSIGNEE", "^waiting for a member of the group all since ")
		b.exec(t, `UPDATE task SET group_id = NULL, candidates = '{"roles": ["r"]}', version = version + 1 WHERE task_id = $1`, taskID(t, path))
		b.why(t, path, "ASSIGNEE", "^waiting for one of its candidates since ")
	})

	t.Run("it has ended", func(t *testing.T) {
		t.Parallel()
		path, _ := b.create(t, noop())
		ended := b.ask(t, orchestrator, "POST", path+"/cancel", nil).is(t, 200)["endedAt"]
		w := b.why(t, path, nil, "^CANCELLED since "+ended.(string)+"$")
		require.Equal(t, ended, w["since"])

		path, _ = b.create(t, noop())
		put(t, path, "RUNNING")
		put(t, path, "FAILED", object{"error": object{"code": "BROKEN", "message": "it broke"}})
		b.why(t, path, nil, "^FAILED since 20.*, with BROKEN$")
		at := b.ask(t, errorHandler, "POST", "/api/internal/dead-letters/"+strings.TrimPrefix(path, tasksPath+"/")+"/discard", object{"reason": "too old"}).is(t, 200)["at"]
		b.why(t, path, nil, "^FAILED since 20.*, with BROKEN; error-handler discarded the dead letter at "+at.(string)+": too old$")

		path, _ = b.create(t, noop())
		put(t, path, "RUNNING")
		put(t, path, "COMPLETED")
		b.why(t, path, nil, "^COMPLETED since [^,]*$")
	})
}

func taskID(t *testing.T, path string) uuid.UUID {
	t.Helper()
	id, err := uuid.Parse(path[len(tasksPath)+1:])
	require.NoError(t, err)
	return id
}
