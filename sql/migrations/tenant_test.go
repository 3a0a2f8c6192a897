package migrations_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// filled makes a row of one tenant's in each table that has policies: @task is a task of
// the tenant's, @op an operation, @n a number that nobody else has.
var filled = map[string]string{
	"task": `INSERT INTO task (task_id, job_id, created_at, type, lane, revision, priority, tenant_id, workflow_id, definition_id, executor, correlation_id, input, status, group_id)
		VALUES (@task, @n, now(), 'MANUAL', 'task-execution-manual', 0, 3, @tenant, 'wf', 'd', 'manual', 'c', '{}', 'ASSIGNED', 'g')`,
	"task_request":        `INSERT INTO task_request (tenant_id, request_key, task_id, created_at, body_hash) VALUES (@tenant, 'k', @task, now(), '')`,
	"task_attempt":        `INSERT INTO task_attempt (task_id, attempt, job_id, started_at, executor_id) VALUES (@task, 1, @n, now(), 'p')`,
	"task_event":          `INSERT INTO task_event (id, task_id, at, seq, attempt, type, now, actor) VALUES (@n, @task, now(), 1, 0, 'created', 'PENDING', 'p')`,
	"task_checkpoint":     `INSERT INTO task_checkpoint (task_id, attempt, progress) VALUES (@task, 1, '{"n": 1}')`,
	"lease":               `INSERT INTO lease (task_id, job_id, attempt, kind, visibility_ms, expires_at, owner) VALUES (@task, @n, 1, 'process', 1, now(), 'p')`,
	"callback":            `INSERT INTO callback (task_id, told, upto, since, host) VALUES (@task, 0, 1, now(), 'h')`,
	"callback_given_up":   `INSERT INTO callback_given_up (task_id, seq, tries, host, problem) VALUES (@task, 1, 1, 'h', 'p')`,
	"notice":              `INSERT INTO notice (notice_id, task_id, deadline_id, percent, what, user_id) VALUES (@n, @task, 1, 0, 'assigned', 'u')`,
	"dead_letter_discard": `INSERT INTO dead_letter_discard (task_id, job_id, actor, reason) VALUES (@task, @n, 'a', 'r')`,
	"outbox_parked":       `INSERT INTO outbox_parked (event_id, task_id, reason) VALUES (@n, @task, 'r')`,
	"job_signal":          `INSERT INTO job_signal (job_id, task_id, what) VALUES (@n, @task, 'deleted')`,
	"redrive_operation": `INSERT INTO redrive_operation (operation_id, tenant_id, actor, reason, state, rate, canary_count, canary_ratio, matched, selection)
		VALUES (@op, @tenant, 'a', 'r', 'DONE', 1, 0, 0, 1, '{}')`,
	"task_definition": `INSERT INTO task_definition (tenant_id, definition_id, revision, type, timeout_ms, version, name, description, created_by, execution_config)
		VALUES (@tenant, 'd', 1, 'MANUAL', 1, '1.0.0', 'd', '', 'a', '{}')`,
	"worker":       `INSERT INTO worker (tenant_id, worker_id, queue, definition_ids) VALUES (@tenant, 'w', 'q', '{}')`,
	"call_answer":  `INSERT INTO call_answer (tenant_id, caller, operation, call_key, turn, until, body_hash) VALUES (@tenant, 'c', 'o', 'k', 1, now(), '')`,
	"pause":        `INSERT INTO pause (scope, tenant_id, name, paused_by, pause_reason) VALUES ('task', @tenant, @task::text, 'a', 'r')`,
	"redrive_item": `INSERT INTO redrive_item (operation_id, n, task_id) VALUES (@op, 1, @task)`,
}

// untenanted are the tables without policies, each with the reason why none is needed.
// tes_read may read none of their columns but those of the second list.
var untenanted = map[string]string{
	"dequeue_turn":       "the engine's alone: which call of a dequeue takes; tes_read has no right to it",
	"event_unknown":      "ids of events that were lost here: their tenant is not known",
	"executor":           "processes",
	"goose_db_version":   "which migrations were applied",
	"inbound":            "counts by subject",
	"inbox":              "ids of messages: their tenant is not known; tes_read has no right to it",
	"maintenance":        "lanes, which are all tenants'",
	"maintenance_change": "lanes, which are all tenants'",
	"outbox":             "ranges of event ids",
	"outbox_published":   "ranges of event ids",
	"outbox_stream":      "when the stream was made",
	"pause_lock":         "always empty: a lock",
	"pause_walk":         "a place among the jobs, which are all tenants', and ids of pauses; tes_read has no right to it",
	"relay_leader":       "which process publishes",
	"river_job":          "tes_read sees how jobs stand and the ids in their args, for a task's place in its queue is counted over all tenants",
	"river_leader":       "processes",
	"river_migration":    "which migrations were applied",
	"river_notification": "River's own, empty on PostgreSQL",
	"river_queue":        "queues, which are all tenants'",
	"secret":             "keys of the service's own; tes_read has no right to it",
	"shutdown_order":     "orders to processes",
	"tally":              "counts over all tenants",
	"tally_delta":        "counts over all tenants",
	"tally_hour":         "counts over all tenants",
	"task_move":          "the legal moves",
	"ready":              "the engine's alone: what remote workers can lease, in the order of claims; tes_read has no right to it",
	"task_open":          "the engine's alone: open_for in claim-next's order; tes_read has no right to it",
}

// readable are the columns of untenanted tables that tes_read may read.
var readable = map[string][]string{
	"executor":    {"executor_id", "kinds", "seen_at", "worker_at"},
	"maintenance": {"lane", "reason", "since", "until"},
	"river_job":   {"args", "attempted_at", "attempted_by", "created_at", "id", "kind", "priority", "queue", "scheduled_at", "state"},
	"river_queue": {"name", "paused_at"},
}

// populate makes the rows of filled for two tenants, and for callers without one.
func (b *testBundle) populate() {
	b.t.Helper()
	for i, tenant := range []string{"a", "b", ""} {
		args := pgx.NamedArgs{"tenant": tenant, "task": uuid.New(), "op": uuid.New(), "n": i + 1}
		for _, table := range slices.Sorted(maps.Keys(filled)) {
			_, err := b.pool.Exec(b.t.Context(), filled[table], args)
			require.NoError(b.t, err, table)
		}
	}
}

// TestEveryTableHasATenantOrAReason fails for a table that is new. One that holds what
// belongs to a tenant needs both policies (see 00022_row_security.sql), SELECT for
// tes_read in grants.sql, and a row in filled; any other needs a reason in untenanted.
func TestEveryTableHasATenantOrAReason(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const how = "%s: add policies (00022_row_security.sql shows them), GRANT SELECT to tes_read in grants.sql and a row in `filled`; or, if it holds nothing of a tenant's, its reason in `untenanted`"
	for _, table := range list[string](t, b.pool, "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'") {
		policies := list[string](t, b.pool, `
			SELECT format('%s %s to %s: %s%s', policyname, cmd, array_to_string(roles, ','), qual, ' / ' || with_check)
			FROM pg_policies
			WHERE schemaname = 'public' AND tablename = $1
			ORDER BY policyname`, table)
		secured := list[bool](t, b.pool, "SELECT relrowsecurity FROM pg_class WHERE oid = $1::text::regclass", "public."+table)[0]
		if untenanted[table] != "" {
			require.Empty(t, policies, table)
			require.False(t, secured, table)
			require.ElementsMatch(t, readable[table], list[string](t, b.pool, `
				SELECT attname::text
				FROM pg_attribute
				WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped
					AND has_column_privilege('tes_read', attrelid, attnum, 'SELECT')
				ORDER BY attname`, "public."+table), table)
			continue
		}
		require.Len(t, policies, 2, how, table)
		require.Equal(t, "engine ALL to tes_app: true / true", policies[0], table)
		require.True(t, strings.HasPrefix(policies[1], "tenant SELECT to tes_read: "), policies[1])
		require.True(t, secured, how, table)
		require.NotEmpty(t, filled[table], how, table)
	}
}

// What is not asked for by tenant shows the tenant's rows alone, in every table.
func TestReadsShowOneTenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.populate()
	for _, table := range slices.Sorted(maps.Keys(filled)) {
		require.EqualValues(t, 3, list[int64](t, b.pool, "SELECT count(*) FROM "+table)[0], table)
		for tenant, want := range map[string]int64{"a": 1, "b": 1, "": 1, "=a": 0, "A": 0, "%": 0, "c": 0} {
			err := pgpool.ReadAs(t.Context(), b.pool, tenant, func(tx pgx.Tx) error {
				want := want
				if table == "task_definition" && tenant != "" {
					want++ // the platform's, which every tenant may use
				}
				require.Equal(t, want, list[int64](t, tx, "SELECT count(*) FROM "+table)[0], "%s as %q", table, tenant)
				require.Len(t, list[string](t, tx, fmt.Sprintf("SELECT (x.*)::text FROM %s x", table)), int(want))
				return nil
			})
			require.NoError(t, err)
		}
	}
	for tenant, want := range map[string]int{"a": 1, "c": 0} {
		require.NoError(t, pgpool.ReadAs(t.Context(), b.pool, tenant, func(tx pgx.Tx) error {
			require.Len(t, list[uuid.UUID](t, tx, "SELECT task_open_ids('{group:g}')"), want)
			return nil
		}))
	}
}

// A reader of whom no tenant is known sees nothing, also in a session that has read for
// one before; and nobody becomes a tenant by the name they choose.
func TestReadsWithoutATenantShowNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.populate()
	for _, tenant := range []string{"", "a", `o'b\'; SET ROLE tes_owner; --`, `\`, `'`, "é\n\t$$", strings.Repeat("x", 1<<16)} {
		for _, quoting := range []string{"on", "off"} {
			cfg := b.pool.Config()
			cfg.MaxConns, cfg.ConnConfig.RuntimeParams["standard_conforming_strings"] = 1, quoting
			one, err := pgxpool.NewWithConfig(t.Context(), cfg)
			require.NoError(t, err)
			require.NoError(t, pgpool.ReadAs(t.Context(), one, tenant, func(tx pgx.Tx) error {
				require.Equal(t, []string{"=" + tenant}, list[string](t, tx, "SELECT current_setting('tes.tenant')"))
				require.Equal(t, []string{"tes_read"}, list[string](t, tx, "SELECT current_user::text"))
				require.Equal(t, []string{"on"}, list[string](t, tx, "SELECT current_setting('transaction_read_only')"))
				return nil
			}))
			_, err = one.Exec(t.Context(), "SET ROLE tes_read")
			require.NoError(t, err)
			require.Equal(t, []int64{0}, list[int64](t, one, "SELECT count(*) FROM task"), "after a transaction as %q", tenant)
			one.Close()
		}
	}
	require.Error(t, pgpool.ReadAs(t.Context(), b.pool, "a\x00", func(pgx.Tx) error { return nil }))

	never := b.as("tes_read")
	for _, table := range slices.Sorted(maps.Keys(filled)) {
		require.Equal(t, []int64{0}, list[int64](t, never, "SELECT count(*) FROM "+table), table)
	}
}

// Whoever reads for a tenant writes nothing, neither by the transaction's mode nor by
// the role's rights.
func TestReadersDoNotWrite(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.populate()
	reader := b.as("tes_read")
	_, err := reader.Exec(t.Context(), "SET tes.tenant = '=a'; SET tes.actor = 'engine'")
	require.NoError(t, err)
	for _, table := range list[string](t, b.pool, "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'") {
		for _, sql := range []string{"DELETE FROM %s", "INSERT INTO %s DEFAULT VALUES", "TRUNCATE %s", "DO 'BEGIN LOCK TABLE %s IN ROW EXCLUSIVE MODE; END'"} {
			_, err := reader.Exec(t.Context(), fmt.Sprintf(sql, table))
			requireCode(t, forbidden, err, sql, table)
		}
	}
	_, err = reader.Exec(t.Context(), "UPDATE task SET tenant_id = 'b'")
	requireCode(t, forbidden, err)
	_, err = reader.Exec(t.Context(), "SELECT FROM task FOR UPDATE")
	requireCode(t, forbidden, err)
	for _, table := range []string{"report.task", "secret", "inbox", "river_job"} {
		_, err = reader.Exec(t.Context(), "SELECT * FROM "+table)
		requireCode(t, forbidden, err, table)
	}
	err = pgpool.ReadAs(t.Context(), b.pool, "a", func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "DELETE FROM task")
		return err
	})
	require.Error(t, err)
}

// A service that is no superuser reads the same way, and its engine sees every tenant.
func TestTheServiceReadsAsTenantsToo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.populate()
	name := "tes_login_" + uuid.NewString()[:8]
	_, err := b.pool.Exec(t.Context(), "CREATE ROLE "+name+" LOGIN PASSWORD 'x' IN ROLE tes_app")
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = b.pool.Exec(context.Background(), "DROP ROLE "+name) })
	service := b.as("")
	_, err = service.Exec(t.Context(), "SET SESSION AUTHORIZATION "+name)
	require.NoError(t, err)
	require.Equal(t, []int64{3}, list[int64](t, service, "SELECT count(*) FROM task"))
	_, err = service.Exec(t.Context(), "BEGIN; SET LOCAL ROLE tes_read; SET LOCAL tes.tenant = '=a'")
	require.NoError(t, err)
	require.Equal(t, []int64{1}, list[int64](t, service, "SELECT count(*) FROM task"))
	_, err = service.Exec(t.Context(), "ROLLBACK; RESET SESSION AUTHORIZATION")
	require.NoError(t, err)
}
