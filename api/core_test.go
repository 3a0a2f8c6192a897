package api_test

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// TestReadsAreATenants: what a handler reads it reads by core.read, as its caller's
// tenant, but for what is over all tenants on purpose.
func TestReadsAreATenants(t *testing.T) {
	t.Parallel()
	users := map[string][]string{}
	files, err := os.ReadDir(".")
	require.NoError(t, err)
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".go") || strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file.Name(), nil, 0)
		require.NoError(t, err)
		for _, decl := range parsed.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains([]string{"across", "Reads", "reads"}, s.Sel.Name) && !slices.Contains(users[s.Sel.Name], fn.Name.Name) {
					users[s.Sel.Name] = append(users[s.Sel.Name], fn.Name.Name)
				}
				return true
			})
		}
	}
	slices.Sort(users["across"])
	slices.Sort(users["Reads"])
	require.Equal(t, []string{"getTaskMetrics", "readyz"}, users["across"])
	slices.Sort(users["reads"])
	require.Equal(t, []string{"New", "build", "newHandlers"}, users["Reads"], "New pings, the others make what across and core.read use")
	require.Equal(t, []string{"read"}, users["reads"])
}

// forgetful is a transaction whose statements have lost what they say of the tenant.
type forgetful struct {
	pgx.Tx
	forgot int
}

var tenantConditions = regexp.MustCompile(`(?:\w+\.)?tenant_id = (\$\d+(::text)?)`)

func (f *forgetful) amnesia(sql string) string {
	f.forgot += len(tenantConditions.FindAllString(sql, -1))
	return tenantConditions.ReplaceAllString(sql, "$1::text IS NOT NULL")
}

func (f *forgetful) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return f.Tx.Query(ctx, f.amnesia(sql), args...)
}

func (f *forgetful) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return f.Tx.QueryRow(ctx, f.amnesia(sql), args...)
}

func (f *forgetful) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return f.Tx.Exec(ctx, f.amnesia(sql), args...)
}

// TestARowLevelPolicyStandsBehindEachWhere takes the tenant out of the WHERE of what is
// read for callers: another tenant sees nothing all the same, and would see the task if
// there were no policies.
func TestARowLevelPolicyStandsBehindEachWhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.pool.Exec(t.Context(), `
		INSERT INTO task (task_id, job_id, created_at, ended_at, type, lane, revision, priority, tenant_id, workflow_id, definition_id, executor, correlation_id, input, status, assignee_id, group_id)
		SELECT gen_random_uuid(), 4711 + n, now(), CASE WHEN n = 2 THEN now() END, 'MANUAL', 'task-execution-manual', 0, 3, 'acme', 'wf', 'd', 'manual', 'c', '{}', (ARRAY['ASSIGNED', 'FAILED'])[n]::task_status, 'ann', 'g'
		FROM generate_series(1, 2) n`)
	require.NoError(t, err)
	var open, dead uuid.UUID
	require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT min(task_id::text) FILTER (WHERE status = 'ASSIGNED'), min(task_id::text) FILTER (WHERE status = 'FAILED') FROM task").Scan(&open, &dead))
	_, err = b.pool.Exec(t.Context(), `
		INSERT INTO river_job (id, args, kind, queue, max_attempts)
		SELECT job_id, jsonb_build_object('task_id', task_id), 'task.deadletter', 'task-execution-deadletter', 1 FROM task WHERE status = 'FAILED'`)
	require.NoError(t, err)
	_, err = b.pool.Exec(t.Context(), `
		INSERT INTO redrive_operation (operation_id, tenant_id, actor, reason, state, rate, canary_count, canary_ratio, matched, selection)
		VALUES ($1, 'acme', 'a', 'r', 'DONE', 1, 0, 0, 0, '{}')`, dead)
	require.NoError(t, err)

	ann := "ann"
	reads := map[string]func(context.Context, *db.Queries) (int, error){
		"TaskGet": func(ctx context.Context, q *db.Queries) (int, error) { // it never had a tenant in its WHERE
			_, err := q.TaskGet(ctx, open)
			return found(err)
		},
		"TaskListByWorkflow": func(ctx context.Context, q *db.Queries) (int, error) {
			rows, err := q.TaskListByWorkflow(ctx, db.TaskListByWorkflowParams{WorkflowID: "wf", TenantID: "mallory", Page: 9})
			return len(rows), err
		},
		"TaskListByUser": func(ctx context.Context, q *db.Queries) (int, error) {
			rows, err := q.TaskListByUser(ctx, db.TaskListByUserParams{UserID: &ann, TenantID: "mallory", Page: 9})
			return len(rows), err
		},
		"TaskListForUser": func(ctx context.Context, q *db.Queries) (int, error) {
			rows, err := q.TaskListForUser(ctx, db.TaskListForUserParams{UserID: &ann, Principals: []string{"group:g"}, TenantID: "mallory", Page: 9})
			return len(rows), err
		},
		"TaskWhy": func(ctx context.Context, q *db.Queries) (int, error) {
			_, err := q.TaskWhy(ctx, db.TaskWhyParams{TaskID: open, TenantID: "mallory"})
			return found(err)
		},
		"DeadLetterList": func(ctx context.Context, q *db.Queries) (int, error) {
			rows, err := q.DeadLetterList(ctx, db.DeadLetterListParams{UntilPriority: 9, Walk: 9, TenantID: "mallory", Page: 9})
			return len(rows), err
		},
		"DeadLetterGroups": func(ctx context.Context, q *db.Queries) (int, error) {
			rows, err := q.DeadLetterGroups(ctx, db.DeadLetterGroupsParams{AfterN: 9, Walk: 9, TenantID: "mallory", Page: 9})
			return len(rows), err
		},
		"RedriveGet": func(ctx context.Context, q *db.Queries) (int, error) {
			_, err := q.RedriveGet(ctx, db.RedriveGetParams{OperationID: dead, TenantID: "mallory"})
			return found(err)
		},
	}
	for _, name := range slices.Sorted(maps.Keys(reads)) {
		for tenant, seen := range map[string]bool{"mallory": false, "": false, "acme": true} {
			require.NoError(t, pgpool.ReadAs(t.Context(), b.pool, tenant, func(tx pgx.Tx) error {
				lost := &forgetful{Tx: tx}
				n, err := reads[name](t.Context(), db.New(lost))
				require.NoError(t, err, name)
				require.Equal(t, seen, n > 0, "%s as %q", name, tenant)
				require.Equal(t, name == "TaskGet", lost.forgot == 0, "%s says nothing of the tenant that could be forgotten", name)
				return nil
			}), name)
		}
	}
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	for _, name := range slices.Sorted(maps.Keys(reads)) {
		if name == "TaskListForUser" {
			continue // its function asks for the tenant as a policy would
		}
		n, err := reads[name](t.Context(), db.New(&forgetful{Tx: tx}))
		require.NoError(t, err, name)
		require.Positive(t, n, "%s would have shown it without policies", name)
	}
}

func found(err error) (int, error) {
	if err == pgx.ErrNoRows { //nolint:errorlint // it comes as it is
		return 0, nil
	}
	return 1, err
}
