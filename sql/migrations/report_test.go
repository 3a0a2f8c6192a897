package migrations_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/outbox"
)

// DBAs find their way by \d+: a view or a column without a word is a riddle.
func TestReportsAreExplained(t *testing.T) {
	t.Parallel()
	b := setup(t)
	silent := list[string](t, b.pool, `
		SELECT c.relname || '.' || coalesce(a.attname, '')
		FROM pg_class c
		LEFT JOIN LATERAL (
			SELECT NULL AS attname, 0 AS attnum
			UNION ALL
			SELECT attname, attnum FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0
		) a ON true
		WHERE c.relnamespace = 'report'::regnamespace AND c.relkind = 'v'
			AND coalesce(CASE WHEN a.attnum = 0 THEN obj_description(c.oid) ELSE col_description(c.oid, a.attnum) END, '') = ''`)
	require.Empty(t, silent)
	require.NotEmpty(t, list[string](t, b.pool, "SELECT obj_description('report'::regnamespace)")[0])
}

func TestReportsHoldNoPayloads(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.Empty(t, list[string](t, b.pool, `
		SELECT table_name || '.' || column_name
		FROM information_schema.columns
		WHERE table_schema = 'report' AND (data_type LIKE 'json%' OR column_name IN ('input', 'output', 'context', 'config', 'payload'))`))
}

func TestEventIDInSQLIsEventIDInGo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rapid.Check(t, func(r *rapid.T) {
		task := uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(r, "task"))
		seq := rapid.Int32Min(1).Draw(r, "seq")
		want := outbox.EventID(task, seq)
		require.Equal(r, want, list[uuid.UUID](t, b.pool, "SELECT report.event_id($1, $2)", task, seq)[0])
		require.Equal(r, uuid.Version(8), want.Version())
		require.Equal(r, uuid.RFC4122, want.Variant())
	})
}

// One task's life, as a DBA reads it.
func TestReportsTellOfATask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.task("COMPLETED")
	for _, sql := range []string{
		"INSERT INTO task_attempt (task_id, attempt, outcome, job_id, started_at, ended_at, executor_id, error) VALUES ($1, 1, 'FAILED', 1, now(), now() + interval '2 s', 'p1', '{\"code\": \"E\"}')",
		"INSERT INTO task_event (id, task_id, at, seq, attempt, type, now, actor) VALUES (10, $1, now(), 1, 0, 'created', 'PENDING', 'o')",
		"INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor) VALUES (11, $1, now(), 2, 1, 'assigned', 'PENDING', 'ASSIGNED', 'p1')",
	} {
		_, err := b.pool.Exec(t.Context(), sql, id)
		require.NoError(t, err)
	}
	_, err := b.pool.Exec(t.Context(), "INSERT INTO outbox (lo, hi) VALUES (11, 12)")
	require.NoError(t, err)
	require.Equal(t, []string{"MEDIUM COMPLETED"}, list[string](t, b.pool, "SELECT priority || ' ' || status FROM report.task WHERE task_id = $1", id))
	require.Equal(t, []string{"p1 FAILED E 2.000000"}, list[string](t, b.pool, "SELECT concat_ws(' ', executor_id, outcome, error_code, run_seconds) FROM report.attempt WHERE task_id = $1", id))
	events := list[string](t, b.pool, "SELECT concat_ws(' ', subject, surely_published, event_id) FROM report.event WHERE task_id = $1 ORDER BY seq", id)
	require.Equal(t, []string{
		"task.created t " + outbox.EventID(id, 1).String(), "task.manual.assigned f " + outbox.EventID(id, 2).String(),
	}, events)
	require.Len(t, list[string](t, b.pool, "SELECT lane FROM report.queue"), 5, "empty lanes too")
	for _, lane := range list[string](t, b.pool, "SELECT lane FROM report.queue") {
		require.True(t, strings.HasPrefix(lane, "task-execution-"))
	}
}
