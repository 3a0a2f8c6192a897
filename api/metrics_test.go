package api_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

func TestTaskMetrics(t *testing.T) {
	t.Parallel()
	b := setup(t)
	read := func() object { return b.ask(t, monitoring, "GET", tasksPath+"/metrics", nil).is(t, 200) }
	at := func(m object, path ...string) any {
		var v any = m
		for _, name := range path {
			v = v.(object)[name]
		}
		return v
	}
	lane := func(m object, name string) object {
		for _, l := range m["lanes"].([]any) {
			if l.(object)["name"] == name {
				return l.(object)
			}
		}
		t.Fatalf("there is no lane %s", name)
		return nil
	}

	m := read()
	require.Len(t, m["lanes"], 5)
	require.Len(t, at(m, "throughput", "hours"), 24)
	require.Equal(t, object{"waiting": 0.0, "oldestMs": 0.0, "givenUp": 0.0}, m["callbacks"])
	for _, l := range m["lanes"].([]any) {
		require.Zero(t, l.(object)["depth"])
	}

	put := func(path, status string) {
		b.ask(t, orchestrator, "PUT", path+"/status", object{"status": status}).is(t, 200)
	}
	b.create(t, noop())
	b.create(t, noop())
	cancelled, _ := b.create(t, noop())
	b.ask(t, orchestrator, "POST", cancelled+"/cancel", nil).is(t, 200)
	running, _ := b.create(t, noop())
	put(running, "RUNNING")
	done, _ := b.create(t, noop(object{"callbackUrl": "https://example.org/"}))
	put(done, "RUNNING")
	put(done, "COMPLETED")
	failed, _ := b.create(t, noop())
	put(failed, "RUNNING")
	put(failed, "FAILED")
	late, _ := b.create(t, noop())
	put(late, "RUNNING")
	put(late, "TIMED_OUT")
	back, _ := b.create(t, noop())
	put(back, "RUNNING")
	put(back, "PENDING")
	b.create(t, manual())
	assigned, _ := b.create(t, manual())
	b.ask(t, ui, "POST", assigned+"/reassign", object{"assigneeId": "jane"}).is(t, 200)
	b.askWith(t, b.tenant(t, orchestrator, "other"), "POST", tasksPath, noop()).is(t, 201)

	require.NoError(t, db.New(b.pool).TallyFold(t.Context()))
	b.create(t, noop()) // not folded yet
	m = read()
	require.Equal(t, object{"PENDING": 6.0, "ASSIGNED": 1.0, "RUNNING": 1.0, "COMPLETED": 1.0, "FAILED": 1.0, "CANCELLED": 1.0, "TIMED_OUT": 1.0}, at(m, "tasks", "byStatus"))
	require.Equal(t, object{"PENDING": 1.0, "ASSIGNED": 1.0, "RUNNING": 0.0, "COMPLETED": 0.0, "FAILED": 0.0, "CANCELLED": 0.0, "TIMED_OUT": 0.0}, at(m, "tasks", "byType", "MANUAL"))
	require.EqualValues(t, 5, lane(m, "task-execution-automated")["depth"])
	require.EqualValues(t, 1, lane(m, "task-execution-manual")["depth"])
	require.EqualValues(t, 0, lane(m, "task-execution-retry")["depth"])
	require.EqualValues(t, 2, lane(m, "task-execution-deadletter")["depth"])
	require.GreaterOrEqual(t, lane(m, "task-execution-automated")["oldestMs"], 0.0)
	require.Equal(t, object{"started": 5.0, "completed": 1.0, "failed": 1.0, "timedOut": 1.0, "retries": 0.0, "released": 1.0}, m["attempts"])
	require.Positive(t, at(m, "outbox", "events"))
	require.EqualValues(t, 1, at(m, "callbacks", "waiting"))
	require.Positive(t, at(m, "callbacks", "oldestMs"))
	_, err := b.pool.Exec(t.Context(), "INSERT INTO callback_given_up (task_id, seq, tries, host, problem) SELECT task_id, 1, 1, 'h', 'p' FROM task LIMIT 2")
	require.NoError(t, err)
	require.EqualValues(t, 2, at(read(), "callbacks", "givenUp"))
	require.EqualValues(t, 11, at(m, "throughput", "lastHour", "created"))
	require.EqualValues(t, 1, at(m, "throughput", "lastHour", "completed"))
	require.EqualValues(t, 2, at(m, "throughput", "lastHour", "failed"))
	require.GreaterOrEqual(t, at(m, "executionTime", "averageMs", "AUTOMATED"), 0.0)
}
