package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
)

// growing are the tables that grow with every task, and must never be read whole.
var growing = []string{"task", "task_attempt", "task_event", "task_request", "river_job", "lease", "outbox", "outbox_published", "inbox", "callback", "notice", "task_open", "ready"}

// byLane are the statements that look for jobs by where they wait; every other one
// must come to a job by its id. An index that holds the state would be walked for
// every single id once the planner believes that nothing is running.
var byLane = map[string]bool{
	"LaneClaim": true, "LaneKinds": true, "LaneAge": true, "LaneOrphans": true, "LaneWaiting": true, "WorkerClaim": true, "TaskWhy": true, "LaneStale": true,
	"DeadLetterReach": true, "DeadLetterList": true, "DeadLetterGroups": true, "LetterClaim": true, "LetterWaits": true, "PauseRelease": true,
}

// inOrder are the statements that read the first few rows in an index's order.
var inOrder = map[string]bool{"CallbackClaim": true, "CallbackBacklog": true, "OutboxAdvance": true, "OutboxBacklog": true, "OutboxRounds": true, "OutboxForget": true}

// needed are the statements without which the test would prove nothing.
var needed = []string{
	"TaskCreate", "TaskComplete", "TaskMove", "LaneClaim", "LaneKinds", "LaneRefile", "LanePark", "PauseRelease", "LaneOrphans", "LaneAge", "LaneWaiting", "LeaseExtend", "LeaseExpired",
	"LeaseSweep", "LeaseAwait", "OutboxAdvance", "OutboxEvents", "OutboxRequeue", "OutboxRounds", "TaskListByWorkflow", "TaskListByUser",
	"TaskListForUser", "TaskOpenFor", "TaskHeld", "TaskLastAssigned",
	"TaskRequestGet", "EventsFound", "JobsEnd", "TaskGet", "InboxSeen",
	"LaneStale", "LaneRequeue", "TaskAdrift", "SignalList",
	"WorkerClaim", "ReadyFor", "ReadyRepair", "WorkerAnswered", "WorkerList", "WorkerLeases", "WorkerBeat", "WorkerSaid", "InboxPut", "MaintenanceSet",
	"TaskWhy", "TaskEvents", "TaskAttempts", "TaskGetMany",
	"DeadLetterReach", "DeadLetterList", "DeadLetterGroups", "DeadLetterDiscard", "DeadLetterTasks", "RedriveTrace", "RedriveCount",
	"RedriveUndoable", "RedriveWaiting", "LetterClaim", "LetterWaits", "LeaseTurn", "LeaseTurnsEnd", "LeaseTurnHold", "JobsFree", "LetterExpired", "LetterReturn", "JobTasks",
	"CallbackClaim", "CallbackSettle", "CallbackExpire", "CallbackBacklog",
	"DeadlineTask", "DeadlineStep", "NoticeGet", "NoticeSettle", "NoticeTried", "NoticeForget", "AssigneeLoad",
}

// The engine keeps generic plans, and makes them anew every second (pgpool.Replan).
// They must go by an index for tables of any size, and whatever the statistics
// believe; an index that is walked from end to end is no better than the table.
func TestPlansGoByIndexAtAnySize(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	indexes := indexesOf(t, pool)
	size := 0
	for _, stage := range []struct {
		rows    int
		analyze bool
	}{{0, true}, {1000, true}, {100_000, false}, {100_000, true}} {
		if testing.Short() && stage.rows > 1000 {
			break
		}
		fill(t, pool, size, stage.rows, stage.analyze)
		size = stage.rows
		at := fmt.Sprintf("at %d rows, analyzed %v", stage.rows, stage.analyze)
		plans := explainAll(t, pool)
		for _, name := range needed {
			require.NotEmpty(t, plans[name].Type, "there is no statement %s any more", name)
		}
		requireLockOrder(t, plans["TaskComplete"], at)
		for name, plan := range plans {
			plan.walk(func(n node) {
				if n.Type == "Seq Scan" && slices.Contains(growing, n.Relation) {
					t.Errorf("%s reads the whole of %s %s", name, n.Relation, at)
				}
				by := indexes[n.Index]
				switch {
				case !slices.Contains(growing, by.Table):
				case by.Table == "river_job" && n.Index != "river_job_pkey" && (!byLane[name] || n.Index != "river_job_prioritized_fetching_index"):
					t.Errorf("%s comes to river_job by %s %s", name, n.Index, at)
				case stage.rows > 0 && !inOrder[name] && !strings.Contains(n.Cond, by.Leading+" "):
					t.Errorf("%s walks the whole of %s %s (condition: %s)", name, n.Index, at, n.Cond)
				case name == "TaskWhy" && n.Index == "river_job_prioritized_fetching_index" && !strings.Contains(n.Cond, "ROW("):
					t.Errorf("%s reads more of a queue than is ahead %s (condition: %s)", name, at, n.Cond)
				case stage.rows > 0 && name == "AssigneeLoad" && !strings.Contains(n.Cond, "task_id"):
					t.Errorf("%s reads all that somebody ever did %s", name, at)
				case stage.rows > 0 && name == "TaskRequestGet" && !strings.Contains(n.Cond, "request_key"):
					t.Errorf("%s reads all keys of a tenant %s", name, at)
				}
			})
		}
	}
	requireReadPlans(t, pool, size)
}

// reads are the statements that are read on behalf of a tenant.
var reads = []string{
	"TaskGet", "TaskProgress", "TaskTenant", "TaskListByWorkflow", "TaskListByUser", "TaskListForUser", "TaskWhy", "TaskEvents", "TaskAttempts",
	"DeadLetterReach", "DeadLetterList", "DeadLetterGroups", "RedriveGet", "RedriveCount", "RedriveRejected",
}

// requireReadPlans wants that the policies of tes_read keep no read from its index.
func requireReadPlans(t *testing.T, pool *pgxpool.Pool, size int) {
	t.Helper()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, dbtest.URL(pool))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(ctx, "SET plan_cache_mode = force_generic_plan; SET jit = off; SET ROLE tes_read; SET tes.tenant = '='")
	require.NoError(t, err)
	indexes := indexesOf(t, pool)
	plans := explain(t, conn, func(name string) bool { return slices.Contains(reads, name) })
	require.Len(t, plans, len(reads))
	for name, plan := range plans {
		plan.walk(func(n node) {
			by := indexes[n.Index]
			switch {
			case n.Type == "Seq Scan" && slices.Contains(growing, n.Relation) && size > 1000:
				t.Errorf("%s reads the whole of %s as a tenant", name, n.Relation)
			case slices.Contains(growing, by.Table) && by.Table != "river_job" && size > 1000 && !strings.Contains(n.Cond, by.Leading+" "):
				t.Errorf("%s walks the whole of %s as a tenant (condition: %s)", name, n.Index, n.Cond)
			}
		})
	}

	// What task_open_ids asks with the owner's eyes.
	var plan []byte
	require.NoError(t, pool.QueryRow(ctx, "EXPLAIN (FORMAT JSON) SELECT t.task_id FROM task t WHERE t.open_for && '{x}' AND current_setting('tes.tenant', true) = '=' || t.tenant_id").Scan(&plan))
	require.Contains(t, string(plan), `"Index Name": "task_open_for"`)
}

// requireLockOrder holds that results lock tasks in the order of their ids, as every other
// statement does: the list, which is in that order, is gone through and the task behind
// each is looked up; or, in a small table, the primary key is gone through.
func requireLockOrder(t *testing.T, plan node, at string) {
	t.Helper()
	found := false
	plan.walk(func(n node) {
		if n.Type != "ModifyTable" || n.Relation != "task" {
			return
		}
		found = true
		join := n.Plans[0]
		require.Equal(t, "Nested Loop", join.Type, at)
		require.Len(t, join.Plans, 2, at)
		outer := join.Plans[0]
		if outer.Relation == "task" {
			require.Equal(t, "task_pkey", outer.Index, at)
			return
		}
		outer.walk(func(from node) {
			require.Contains(t, []string{"CTE Scan", "Subquery Scan", "ProjectSet", "Result"}, from.Type, at)
		})
	})
	require.True(t, found, "TaskComplete does not update task any more")
}

// node is one node of a plan.
type node struct {
	Type     string `json:"Node Type"`
	Relation string `json:"Relation Name"`
	Index    string `json:"Index Name"`
	Cond     string `json:"Index Cond"`
	Plans    []node `json:"Plans"`
}

func (n node) walk(visit func(node)) {
	visit(n)
	for _, child := range n.Plans {
		child.walk(visit)
	}
}

// index is where an index stands and by what it is sorted first.
type index struct{ Name, Table, Leading string }

func indexesOf(t *testing.T, pool *pgxpool.Pool) map[string]index {
	t.Helper()
	rows, err := pool.Query(t.Context(), `
		SELECT c.relname, r.relname, a.attname
		FROM pg_index i
		JOIN pg_class c ON c.oid = i.indexrelid
		JOIN pg_class r ON r.oid = i.indrelid
		JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]`)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[index])
	require.NoError(t, err)
	byName := map[string]index{}
	for _, one := range all {
		byName[one.Name] = one
	}
	return byName
}

// explainAll returns the plan of every statement of package db, by its name, as a
// connection of the engine's makes it.
func explainAll(t *testing.T, pool *pgxpool.Pool) map[string]node {
	t.Helper()
	ctx := t.Context()
	pooled, err := pool.Acquire(ctx)
	require.NoError(t, err)
	conn := pooled.Hijack() // with the plans that it keeps
	defer conn.Close(context.Background())
	return explain(t, conn, func(string) bool { return true })
}

// explain returns the generic plans of those statements that are wanted.
func explain(t *testing.T, conn *pgx.Conn, wanted func(name string) bool) map[string]node {
	t.Helper()
	ctx := t.Context()
	plans := map[string]node{}
	for _, sql := range statements(ctx) {
		name := strings.Fields(strings.TrimPrefix(sql, "-- name: "))[0]
		if !wanted(name) {
			continue
		}
		prepared, err := conn.Prepare(ctx, name, sql)
		require.NoError(t, err, name)
		nulls := ""
		if n := len(prepared.ParamOIDs); n > 0 {
			nulls = "(" + strings.TrimSuffix(strings.Repeat("NULL,", n), ",") + ")"
		}
		var text []byte
		explain := fmt.Sprintf("EXPLAIN (FORMAT JSON) EXECUTE %s%s", pgx.Identifier{name}.Sanitize(), nulls)
		require.NoError(t, conn.QueryRow(ctx, explain, pgx.QueryExecModeSimpleProtocol).Scan(&text), name)
		var plan []struct{ Plan node }
		require.NoError(t, json.Unmarshal(text, &plan), name)
		plans[name] = plan[0].Plan
	}
	return plans
}

// statements are the texts of all queries of package db, heard by calling each.
func statements(ctx context.Context) []string {
	heard := &listener{}
	v := reflect.ValueOf(db.New(heard))
	for i := range v.NumMethod() {
		if v.Type().Method(i).Name == "WithTx" {
			continue
		}
		args := []reflect.Value{reflect.ValueOf(ctx)}
		for a := 1; a < v.Method(i).Type().NumIn(); a++ {
			args = append(args, reflect.Zero(v.Method(i).Type().In(a)))
		}
		v.Method(i).Call(args)
	}
	return heard.statements
}

// listener stands where a connection would, and hears what it is asked.
type listener struct{ statements []string }

var errNotAsked = errors.New("only listening")

func (l *listener) Exec(_ context.Context, sql string, _ ...any) (pgconn.CommandTag, error) {
	l.statements = append(l.statements, sql)
	return pgconn.CommandTag{}, errNotAsked
}

func (l *listener) Query(_ context.Context, sql string, _ ...any) (pgx.Rows, error) {
	l.statements = append(l.statements, sql)
	return nil, errNotAsked
}

func (l *listener) QueryRow(_ context.Context, sql string, _ ...any) pgx.Row {
	l.statements = append(l.statements, sql)
	return noRow{}
}

type noRow struct{}

func (noRow) Scan(...any) error { return errNotAsked }

// fill brings the tables to a size, with nothing running: that is when statistics
// mislead.
func fill(t *testing.T, pool *pgxpool.Pool, from, to int, analyze bool) {
	t.Helper()
	for _, sql := range []string{
		`INSERT INTO river_job (id, state, attempt, max_attempts, created_at, scheduled_at, finalized_at, priority, args, kind, metadata, queue, tags)
			SELECT n, CASE WHEN n % 10 = 0 THEN 'available'::river_job_state ELSE 'completed' END, 1, 1, now(), now(),
				CASE WHEN n % 10 = 0 THEN NULL ELSE now() END, 3, jsonb_build_object('task_id', md5(n::text)::uuid, 'attempt', 1),
				'task.automated', '{}', 'task-execution-automated', ARRAY['wf-1']
			FROM generate_series($1::bigint + 1, $2) n`,
		`INSERT INTO task (task_id, job_id, created_at, ended_at, status, attempt, version, type, lane, revision, priority, tenant_id, workflow_id, definition_id, executor, correlation_id, assignee_id, input)
			SELECT md5(n::text)::uuid, n, now(), CASE WHEN n % 10 = 0 THEN NULL ELSE now() END,
				CASE WHEN n % 10 = 0 THEN 'PENDING'::task_status ELSE 'COMPLETED' END, 1, 3, 'AUTOMATED', 'task-execution-automated', 1, 3,
				'', 'wf-' || n / 10, 'd', 'noop', 'c', CASE WHEN n % 5 = 0 THEN 'user-' || n % 100 END, '{}'
			FROM generate_series($1::bigint + 1, $2) n`,
		`INSERT INTO task_attempt (task_id, attempt, outcome, job_id, started_at, ended_at, executor_id)
			SELECT md5(n::text)::uuid, 1, 'COMPLETED', n, now(), now(), 'p' FROM generate_series($1::bigint + 1, $2) n`,
		`INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
			SELECT n, md5(n::text)::uuid, now(), 1, 0, 'created', NULL, 'PENDING', 'o' FROM generate_series($1::bigint + 1, $2) n`,
		`INSERT INTO task_request (tenant_id, request_key, task_id, created_at, body_hash)
			SELECT '', 'key-' || n, md5(n::text)::uuid, now(), '\x00' FROM generate_series($1::bigint + 1, $2) n`,
		`INSERT INTO outbox_published (id, lo, hi, last_seq) SELECT n, n, n + 1, n FROM generate_series($1::bigint + 1, $2) n`,
		`INSERT INTO lease (task_id, job_id, attempt, kind, visibility_ms, expires_at, owner)
			SELECT md5(n::text)::uuid, n, 1, 'process', 30000, now() + interval '30 s', 'p' FROM generate_series($1::bigint + 1, $2) n WHERE n % 50 = 0`,
		`INSERT INTO outbox (lo, hi) SELECT n, n + 1 FROM generate_series($1::bigint + 1, $2) n WHERE n % 50 = 0`,
		`INSERT INTO callback (task_id, told, upto, since, due_at, host)
			SELECT md5(n::text)::uuid, 0, 1, now(), now(), 'host-' || n % 3 FROM generate_series($1::bigint + 1, $2) n WHERE n % 2 = 0`,
		`INSERT INTO notice (notice_id, task_id, deadline_id, percent, what, user_id, outcome, settled_at)
			SELECT n, md5(n::text)::uuid, n, 0, 'assigned', 'user', 'moot', now() FROM generate_series($1::bigint + 1, $2) n`,
		`INSERT INTO inbox (event_id, subject, outcome) SELECT 'event-' || n, 's', 'o' FROM generate_series($1::bigint + 1, $2) n`,
	} {
		_, err := pool.Exec(t.Context(), sql, from, to)
		require.NoError(t, err)
	}
	if analyze {
		_, err := pool.Exec(t.Context(), "ANALYZE")
		require.NoError(t, err)
	}
}
