package jobs

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// backlog is how much waits in these tests.
const backlog = 20_000

// A look of claim-next reads a page of what waits for each name, however much waits.
func TestClaimNextReadsAPage(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	_, err := pool.Exec(t.Context(), `
		INSERT INTO task (task_id, job_id, created_at, assigned_at, due_at, status, attempt, version, type, lane, revision, priority, tenant_id,
			workflow_id, definition_id, executor, correlation_id, group_id, input)
		SELECT md5(n::text)::uuid, n, now(), now(), now() + make_interval(mins => n), 'ASSIGNED', 0, 2, 'MANUAL', 'task-execution-manual', 1, 3, '',
			'wf', 'd', 'manual', 'c', 'crew', '{}'
		FROM generate_series(1, $1::integer) n`, backlog)
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), "ANALYZE")
	require.NoError(t, err)

	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	for _, sql := range statements(t.Context()) {
		if !strings.HasPrefix(sql, "-- name: TaskOpenFor ") {
			continue
		}
		_, err := conn.Conn().Prepare(t.Context(), "look", sql)
		require.NoError(t, err)
		var text []byte
		require.NoError(t, conn.QueryRow(t.Context(), fmt.Sprintf("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE look (ARRAY['anyone', 'user:ann', 'group:crew'], '', %d)", nextLook), pgx.QueryExecModeSimpleProtocol).Scan(&text))
		var plan []struct{ Plan worked }
		require.NoError(t, json.Unmarshal(text, &plan))
		require.Equal(t, float64(nextLook), plan[0].Plan.Rows*plan[0].Plan.Loops)
		require.Less(t, plan[0].Plan.read(), 200.0, "%s", text)
		return
	}
	require.Fail(t, "there is no statement TaskOpenFor any more")
}

// worked is a node of a plan that was carried out.
type worked struct {
	Type  string  `json:"Node Type"`
	Rows  float64 `json:"Actual Rows"`
	Loops float64 `json:"Actual Loops"`
	Plans []worked
}

// read is how many rows the scans of tables and indexes have brought.
func (w worked) read() (rows float64) {
	if strings.Contains(w.Type, "Scan") {
		rows = w.Rows * w.Loops
	}
	for _, child := range w.Plans {
		rows += child.read()
	}
	return rows
}

// River's fetch of notices reads what it takes, however much is due.
func TestNoticesAreFetchedByIndex(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	_, err := pool.Exec(t.Context(), `
		INSERT INTO river_job (state, attempt, max_attempts, scheduled_at, priority, args, kind, metadata, queue, tags)
		SELECT 'available', 0, 32767, now() - make_interval(secs => n), 1 + n % 4, '{}', 'notice.send', '{}', $2, '{}'
		FROM generate_series(1, $1::integer) n`, backlog, queueNotices)
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), "ANALYZE river_job")
	require.NoError(t, err)

	own, err := pgpool.Open(t.Context(), dbtest.URL(pool), pgpool.Config{Name: "river", MaxConns: 1, Custom: true})
	require.NoError(t, err)
	defer own.Close()
	// More often than a connection tries custom plans before it thinks of a generic one.
	for range 8 {
		before := rowsRead(t, own)
		fetched, err := riverpgxv5.New(own).GetExecutor().JobGetAvailable(t.Context(), &riverdriver.JobGetAvailableParams{
			ClientID: "p", MaxAttemptedBy: 10, MaxToLock: noticeSlots, Queue: queueNotices,
		})
		require.NoError(t, err)
		require.Len(t, fetched.Jobs, noticeSlots)
		require.Less(t, rowsRead(t, own)-before, 20*noticeSlots)
	}
}

// rowsRead is how many rows of river_job were read so far. The pool has one connection, so
// that it is the one whose figures are flushed.
func rowsRead(t *testing.T, pool *pgxpool.Pool) (read int) {
	t.Helper()
	_, err := pool.Exec(t.Context(), "SELECT pg_stat_force_next_flush()")
	require.NoError(t, err)
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT (seq_tup_read + idx_tup_fetch)::integer FROM pg_stat_user_tables WHERE relname = 'river_job'").Scan(&read))
	return read
}
