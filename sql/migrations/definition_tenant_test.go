package migrations_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// Definitions and tasks of before belong to no tenant, and what a process of the previous
// version writes beside the new one does too.
func TestDefinitionsOfBeforeAreThePlatforms(t *testing.T) {
	t.Parallel()
	dsn := empty(t)
	ctx := t.Context()
	require.NoError(t, migrations.Up(ctx, dsn))
	for {
		step, err := migrations.Down(ctx, dsn)
		require.NoError(t, err)
		require.NotNil(t, step)
		if step.Version == 20 {
			break
		}
	}
	pool := open(t, dsn)
	old := func(revision int) error {
		_, err := pool.Exec(ctx, `
			INSERT INTO task_definition (definition_id, revision, type, timeout_ms, version, name, description, created_by, execution_config)
			VALUES ('order-total', $1, 'AUTOMATED', 1000, '1.0.0', 'n', '', 'workflow-orchestrator', '{}')`, revision)
		return err
	}
	task := func(tenant string) {
		_, err := pool.Exec(ctx, `
			INSERT INTO task (task_id, job_id, created_at, type, lane, revision, priority, tenant_id, workflow_id, definition_id, executor, correlation_id, input)
			VALUES (gen_random_uuid(), 1, now(), 'AUTOMATED', 'task-execution-automated', 1, 3, $1, 'wf', 'order-total', 'noop', 'c', '{}')`, tenant)
		require.NoError(t, err)
	}
	require.NoError(t, old(1))
	task("acme")
	require.NoError(t, migrations.Up(ctx, dsn))

	require.NoError(t, old(2), "as the previous version writes it")
	task("mallory")
	requireCode(t, "23505", old(1))
	require.Equal(t, []string{"", ""}, list[string](t, pool, "SELECT tenant_id FROM task_definition"))
	require.Equal(t, []bool{false, false}, list[bool](t, pool, "SELECT own_definition FROM task"))

	// One id may exist in several tenants.
	_, err := pool.Exec(ctx, `
		INSERT INTO task_definition (tenant_id, definition_id, revision, type, timeout_ms, version, name, description, created_by, execution_config)
		SELECT tenant, 'order-total', 1, 'AUTOMATED', 1000, '1.0.0', 'n', '', 'x', '{}' FROM unnest(ARRAY['acme', 'mallory']) tenant`)
	require.NoError(t, err)
}
