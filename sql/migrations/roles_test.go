package migrations_test

import (
	"context"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/sql/migrations"
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
		"UPDATE goose_db_version SET is_applied = false",
		"INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, true)",
		"DELETE FROM river_migration",
		"DELETE FROM task",
		"DELETE FROM task_request",
		"DELETE FROM secret",
		"UPDATE secret SET key = 'a key of somebody else, of 32 bytes'",
		"UPDATE task SET tenant_id = 'b'",
		"UPDATE task SET created_at = now()",
		"UPDATE task_attempt SET started_at = now()",
		"UPDATE task_request SET task_id = gen_random_uuid()",
		"UPDATE redrive_operation SET tenant_id = 'b'",
		"INSERT INTO task (task_id, status) VALUES (gen_random_uuid(), 'COMPLETED')",
		"INSERT INTO job_signal (job_id, task_id, what, by_role) VALUES (1, gen_random_uuid(), 'deleted', 'postgres')",
		"SELECT setval('task_event_id_seq', 1)",
	} {
		_, err := app.Exec(t.Context(), sql)
		requireCode(t, forbidden, err, sql)
	}
	for _, sql := range []string{
		"SELECT count(*) FROM task", "SELECT nextval('task_event_id_seq')",
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
	for what, sql := range map[string]string{
		"tables":    "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN aclexplode(c.relacl) a WHERE n.nspname IN ('public', 'report') AND a.grantee = 0",
		"schemas":   "SELECT n.nspname::text FROM pg_namespace n CROSS JOIN aclexplode(n.nspacl) a WHERE n.nspname IN ('public', 'report') AND a.grantee = 0",
		"functions": "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace CROSS JOIN aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE n.nspname IN ('public', 'report') AND a.grantee = 0",
	} {
		require.Empty(t, list[string](t, b.pool, sql), what)
	}
}

// Whoever may connect makes no temporary table and no large object, which would fill the
// disk of everybody.
func TestNobodyFillsTheDisk(t *testing.T) {
	t.Parallel()
	dsn := empty(t)
	require.NoError(t, migrations.Up(t.Context(), dsn))
	pool := open(t, dsn)
	require.Empty(t, list[string](t, pool, `
		SELECT a.privilege_type
		FROM pg_database d
		CROSS JOIN aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
		WHERE d.datname = current_database() AND a.grantee = 0`))
	for _, role := range []string{"tes_app", "tes_report"} {
		require.Equal(t, []bool{true}, list[bool](t, pool, "SELECT has_database_privilege($1, current_database(), 'CONNECT')", role))
		conn, err := pgx.Connect(t.Context(), dsn)
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "SET default_transaction_read_only = off; SET ROLE "+role)
		require.NoError(t, err)
		for _, sql := range []string{
			"CREATE TEMP TABLE more (id int)", "SELECT lo_from_bytea(0, 'x')", "SELECT lo_create(0)", "SELECT lo_creat(-1)",
			"CREATE TABLE public.more (id int)", "CREATE SCHEMA more", "COPY (SELECT 1) TO '/tmp/more'",
		} {
			_, err = conn.Exec(t.Context(), sql)
			requireCode(t, forbidden, err, role, " ", sql)
		}
		require.NoError(t, conn.Close(t.Context()))
	}
}

// Whoever holds the migrators' advisory lock delays a migration, and no process that
// starts.
func TestAnAdvisoryLockStopsNobodyWhoStarts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.as("tes_report").Exec(t.Context(), "SELECT pg_advisory_lock(4097083626)") // goose's
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	steps, err := migrations.Status(ctx, dbtest.URL(b.pool))
	require.NoError(t, err)
	require.NotEmpty(t, steps)
}

var update = flag.Bool("update", false, "write testdata/rights.txt anew")

// TestRightsAreTheList: what each role may do stands in testdata/rights.txt, where a
// change is seen by whoever reviews it. Write it with -update.
func TestRightsAreTheList(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lines := list[string](t, b.pool, `
		WITH role AS (SELECT oid, rolname FROM pg_roles WHERE rolname IN ('tes_app', 'tes_read', 'tes_report')),
		class AS (
			SELECT c.oid, c.relacl, n.nspname || '.' || c.relname AS name
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname IN ('public', 'report') AND c.relkind IN ('r', 'v', 'S', 'p', 'm', 'f')
		),
		line AS (
			SELECT role.rolname, class.name, string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type) AS may, '' AS columns
			FROM class CROSS JOIN aclexplode(class.relacl) a JOIN role ON role.oid = a.grantee
			GROUP BY 1, 2
			UNION ALL
			SELECT role.rolname, class.name, a.privilege_type, ' (' || string_agg(t.attname, ', ' ORDER BY t.attname) || ')'
			FROM class JOIN pg_attribute t ON t.attrelid = class.oid CROSS JOIN aclexplode(t.attacl) a JOIN role ON role.oid = a.grantee
			GROUP BY 1, 2, 3
			UNION ALL
			SELECT role.rolname, n.nspname || '.' || p.proname, a.privilege_type, ''
			FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace CROSS JOIN aclexplode(p.proacl) a JOIN role ON role.oid = a.grantee
			WHERE n.nspname IN ('public', 'report')
			UNION ALL
			SELECT role.rolname, n.nspname, a.privilege_type, ''
			FROM pg_namespace n CROSS JOIN aclexplode(n.nspacl) a JOIN role ON role.oid = a.grantee
			WHERE n.nspname IN ('public', 'report')
		)
		SELECT format('%s: %s %s%s', rolname, name, may, columns) FROM line
		ORDER BY rolname COLLATE "C", name COLLATE "C", may COLLATE "C"`)
	got := strings.Join(lines, "\n") + "\n"
	const file = "testdata/rights.txt"
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "a right has changed. A new table is granted to tes_app in grants.sql, by what the engine's statements "+
		"write to it; if this is meant: go test ./sql/migrations -run Rights -update, and read the difference")
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
