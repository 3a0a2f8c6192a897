package migrations_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

const forbidden = "42501"

func TestServiceChangesRowsAndNotTables(t *testing.T) {
	t.Parallel()
	b := setup(t)
	app := b.as("tes_app")
	for _, sql := range []string{
		"CREATE TABLE more (id int)",
		"ALTER TABLE task ADD COLUMN more int",
		"ALTER TABLE task DISABLE TRIGGER task_guard_update",
		"DROP TABLE task",
		"DROP VIEW report.task",
		"TRUNCATE task",
		"TRUNCATE task_event",
		"UPDATE task_event SET actor = 'nobody'",
		"DELETE FROM task_event",
		"UPDATE task_definition SET revision = 7",
		"DELETE FROM task_definition",
		"UPDATE maintenance_change SET actor = 'nobody'",
		"DELETE FROM maintenance_change",
		"UPDATE dead_letter_discard SET actor = 'nobody'",
		"DELETE FROM dead_letter_discard",
		"INSERT INTO task_move (was, now, told_by) VALUES ('FAILED', 'COMPLETED', 'nobody')",
		"UPDATE task_move SET now = 'COMPLETED'",
		"DELETE FROM task_move",
		"CREATE INDEX more ON task (version)",
		"CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
		"CREATE OR REPLACE FUNCTION task_guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
		"CREATE SCHEMA more",
	} {
		_, err := app.Exec(t.Context(), sql)
		requireCode(t, forbidden, err, sql)
	}
	for _, sql := range []string{
		"SELECT count(*) FROM task", "SELECT count(*) FROM report.task", "SELECT nextval('task_event_id_seq')",
		"SELECT nextval('river_job_id_seq')", "INSERT INTO outbox (lo, hi) VALUES (1, 2)", "DELETE FROM outbox",
		"SELECT count(*) FROM river_job", "UPDATE river_queue SET updated_at = now()",
	} {
		_, err := app.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
}

func TestReportersReadTheViewsAndNothingElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	reporter := b.as("tes_report")
	views := list[string](t, b.pool, "SELECT viewname::text FROM pg_views WHERE schemaname = 'report'")
	require.NotEmpty(t, views)
	for _, view := range views {
		_, err := reporter.Exec(t.Context(), "SELECT * FROM report."+view)
		require.NoError(t, err, view)
		for _, sql := range []string{"DELETE FROM report.", "INSERT INTO report."} {
			sql += view
			if sql[0] == 'I' {
				sql += " DEFAULT VALUES"
			}
			_, err = reporter.Exec(t.Context(), sql)
			require.Error(t, err, sql)
		}
	}
	tables := list[string](t, b.pool, "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
	require.Greater(t, len(tables), 15)
	for _, table := range tables {
		_, err := reporter.Exec(t.Context(), "SELECT FROM public."+table)
		requireCode(t, forbidden, err, table)
	}
	for _, sql := range []string{"CREATE TABLE report.more (id int)", "CREATE TABLE public.more (id int)", "SELECT nextval('public.task_event_id_seq')"} {
		_, err := reporter.Exec(t.Context(), sql)
		requireCode(t, forbidden, err, sql)
	}
}

// A report that runs for ever holds back vacuum for everybody.
func TestReportersSessionsAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	settings := list[string](t, b.pool, "SELECT unnest(rolconfig) FROM pg_roles WHERE rolname = 'tes_report'")
	require.Contains(t, settings, "statement_timeout=30s")
	require.Contains(t, settings, "default_transaction_read_only=on")
}

func TestEverybodyElseSeesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.Empty(t, list[string](t, b.pool, `
		SELECT n.nspname || '.' || c.relname
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname IN ('public', 'report')
			AND EXISTS (SELECT FROM aclexplode(c.relacl) a WHERE a.grantee = 0)`))
	require.Empty(t, list[string](t, b.pool, `
		SELECT n.nspname::text
		FROM pg_namespace n
		WHERE n.nspname IN ('public', 'report')
			AND EXISTS (SELECT FROM aclexplode(n.nspacl) a WHERE a.grantee = 0)`))
}

func TestEverythingIsTheOwners(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.Empty(t, list[string](t, b.pool, `
		SELECT n.nspname || '.' || c.relname
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname IN ('public', 'report') AND c.relkind IN ('r', 'v', 'S') AND c.relowner <> 'tes_owner'::regrole`))
}
