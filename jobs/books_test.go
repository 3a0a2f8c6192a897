package jobs

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs/check"
)

// requireBooks holds the database against all rules. At rest: no move is in
// flight. A job may still be claimed.
func requireBooks(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	report, err := check.Run(ctx, pool, check.Options{AtRest: true})
	require.NoError(t, err)
	require.Empty(t, report.Offending())
	require.Zero(t, report.Incomplete)

	// No test closes a dead letter but by discarding it, so nothing may have; and one
	// that is taken is leased.
	rows, err := pool.Query(ctx, `
		SELECT t.task_id, j.state
		FROM task t
		LEFT JOIN river_job j ON j.id = t.job_id
		LEFT JOIN lease l ON l.task_id = t.task_id AND l.job_id = t.job_id AND l.kind = 'letter'
		WHERE t.status IN ('FAILED', 'TIMED_OUT') AND t.job_id <> 0
			AND (j.state = CASE WHEN l.task_id IS NULL THEN 'available'::river_job_state ELSE 'running' END) IS NOT TRUE`)
	require.NoError(t, err)
	closed, err := pgx.CollectRows(rows, pgx.RowToMap)
	require.NoError(t, err)
	require.Empty(t, closed)
}
