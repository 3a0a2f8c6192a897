package migrations_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// What sqlc believes of River's tables is held against the real ones: a river.sql in
// a schema of its own, column by column.
func TestRiverSQLAgreesWithRiver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	text, err := os.ReadFile("../river.sql")
	require.NoError(t, err)

	conn := b.as("")
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(t.Context()) //nolint:errcheck // nothing of it is to stay
	_, err = tx.Exec(t.Context(), "CREATE SCHEMA believed; SET LOCAL search_path = believed")
	require.NoError(t, err)
	_, err = tx.Conn().PgConn().Exec(t.Context(), string(text)).ReadAll()
	require.NoError(t, err)

	differences := list[string](t, tx, `
		SELECT format('%s.%s is declared %s, is %s', b.relname, b.attname, b.type, r.type)
		FROM (
			SELECT c.relname, a.attname, regexp_replace(format_type(a.atttypid, a.atttypmod), '^(believed|public)\.', '') AS type, a.attnotnull
			FROM pg_attribute a
			JOIN pg_class c ON c.oid = a.attrelid
			WHERE c.relnamespace = 'believed'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
		) b
		LEFT JOIN (
			SELECT c.relname, a.attname, regexp_replace(format_type(a.atttypid, a.atttypmod), '^(believed|public)\.', '') AS type, a.attnotnull
			FROM pg_attribute a
			JOIN pg_class c ON c.oid = a.attrelid
			WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
		) r USING (relname, attname)
		WHERE (b.type, b.attnotnull) IS DISTINCT FROM (r.type, r.attnotnull)`)
	require.Empty(t, differences)

	states := "SELECT array_agg(e.enumlabel::text ORDER BY e.enumlabel::text) FROM pg_enum e WHERE e.enumtypid = '%s.river_job_state'::regtype"
	require.Equal(t, list[[]string](t, tx, strings.ReplaceAll(states, "%s", "public")), list[[]string](t, tx, strings.ReplaceAll(states, "%s", "believed")))
	require.Equal(t, []string{"S"}, list[string](t, tx, "SELECT relkind::text FROM pg_class WHERE relname = 'river_job_id_seq' AND relnamespace = 'public'::regnamespace"))
}

func TestCheckRiver(t *testing.T) {
	t.Parallel()
	dsn := empty(t)
	require.NoError(t, migrations.Up(t.Context(), dsn))
	pool := open(t, dsn)
	require.NoError(t, migrations.CheckRiver(t.Context(), pool))

	_, err := pool.Exec(t.Context(), "DELETE FROM river_migration WHERE version = (SELECT max(version) FROM river_migration)")
	require.NoError(t, err)
	err = migrations.CheckRiver(t.Context(), pool)
	require.ErrorContains(t, err, "tes migrate up", "it says what to do")
}

// River's own reindexer and our statistics know these by name.
func TestIndexesOfRiver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	have := list[string](t, b.pool, "SELECT indexname::text FROM pg_indexes WHERE tablename = 'river_job'")
	for _, name := range []string{"river_job_pkey", "river_job_prioritized_fetching_index", "river_job_schedule_index", "river_job_state_and_finalized_at_index"} {
		require.Contains(t, have, name)
	}
	gin := regexp.MustCompile(`args|metadata|kind`)
	for _, name := range have {
		require.NotRegexp(t, gin, name, "paid for at every move, and read by nobody")
	}
	require.ElementsMatch(t, []string{
		"task-execution-automated", "task-execution-integration", "task-execution-manual", "task-execution-retry", "task-execution-deadletter",
	}, list[string](t, b.pool, "SELECT name FROM river_queue"))
}
