package check_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/check"
	"github.com/seed-3f7a0631/tes/sql/checks"
)

const patience = 30 * time.Second

// testBundle is a database in which tasks of every kind have been at work. Its
// process is gone; nobody touches it but the test.
type testBundle struct {
	t    *testing.T
	pool *pgxpool.Pool
	ids  map[string]uuid.UUID // done, called, failed, cancelled, assigned, running, pending
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	b := &testBundle{t, dbtest.Get(t), map[string]uuid.UUID{}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tasks := jobs.New(b.pool, jobs.Config{ProcessID: "p1", Logger: slog.New(slog.DiscardHandler)})
	runner := jobs.NewRunner(tasks, jobs.RunnerConfig{Poll: 5 * time.Millisecond, Tick: 20 * time.Millisecond, Executors: map[string]jobs.Registration{
		"noop": {Executor: jobs.ExecutorFunc(func(_ context.Context, job jobs.Job) (jobs.Result, error) {
			if job.WorkflowID == "failed" {
				return jobs.Result{}, &jobs.Failure{Code: "E", Message: "as ordered"}
			}
			return jobs.Result{Output: json.RawMessage(`{}`)}, nil
		})},
		"manual": {Assigns: true, Executor: jobs.ExecutorFunc(func(context.Context, jobs.Job) (jobs.Result, error) {
			return jobs.Result{Assign: &jobs.Assignment{AssigneeID: "ann"}}, nil
		})},
	}})
	create := func(name, executor string, kind jobs.Type) {
		t.Helper()
		callback := ""
		if name == "called" {
			callback = "https://orchestrator.example.org/callbacks"
		}
		task, _, err := tasks.Create(ctx, jobs.Request{
			CallbackURL: callback, TaskDefinitionID: "adhoc", WorkflowID: name, TaskType: kind, Actor: "test", Key: "key-" + name, Body: []byte(`{}`),
			Config: &jobs.RequestConfig{
				RetryPolicy:     &jobs.RetryPolicy{MaxRetries: 1, RetryInterval: 1, BackoffMultiplier: 1},
				ExecutionConfig: jobs.ExecutionConfig{Executor: executor},
			},
		})
		require.NoError(t, err)
		b.ids[name] = task.TaskID
	}
	work, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- runner.Run(work, time.Second) }()
	create("done", "noop", jobs.Automated)
	create("failed", "noop", jobs.Automated)
	create("assigned", "manual", jobs.Manual)
	create("called", "noop", jobs.Automated)
	for name, status := range map[string]string{"done": "COMPLETED", "called": "COMPLETED", "failed": "FAILED", "assigned": "ASSIGNED"} {
		require.Eventually(t, func() bool { return b.ask("SELECT status::text FROM task WHERE task_id = $1", b.ids[name]) == status },
			patience, 5*time.Millisecond, name)
	}
	create("running", jobs.ExecutorWorker, jobs.Automated)
	leases, err := tasks.Leases.Acquire(ctx, jobs.LeaseRequest{Worker: "w1", Most: 1, Wait: patience, Select: []jobs.Selection{{Lane: jobs.LaneAutomated}}})
	require.NoError(t, err)
	require.Len(t, leases, 1)
	create("cancelled", jobs.ExecutorWorker, jobs.Automated)
	_, err = tasks.Cancel(ctx, b.ids["cancelled"], jobs.Actor{Name: "test"})
	require.NoError(t, err)
	create("pending", jobs.ExecutorWorker, jobs.Automated)
	stop()
	require.NoError(t, <-ended)
	tasks.Drain(ctx)

	// All was told an hour ago.
	b.exec(`INSERT INTO outbox_published (id, lo, hi, last_seq, published_at) SELECT id, lo, hi, id, now() - interval '1 hour' FROM outbox`)
	b.exec(`DELETE FROM outbox`)
	return b
}

func (b *testBundle) ask(sql string, args ...any) (text string) {
	b.t.Helper()
	require.NoError(b.t, b.pool.QueryRow(b.t.Context(), sql, args...).Scan(&text))
	return text
}

// exec goes past the guard, as a superuser can. done, failed and so on stand for
// the tasks' ids.
func (b *testBundle) exec(statements ...string) {
	b.t.Helper()
	require.NoError(b.t, pgx.BeginFunc(b.t.Context(), b.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(b.t.Context(), "SET LOCAL session_replication_role = replica")
		require.NoError(b.t, err)
		for _, sql := range statements {
			for name, id := range b.ids {
				sql = strings.ReplaceAll(sql, "<"+name+">", "'"+id.String()+"'")
			}
			done, err := tx.Exec(b.t.Context(), sql)
			require.NoError(b.t, err, sql)
			require.Positive(b.t, done.RowsAffected(), sql)
		}
		return nil
	}))
}

func (b *testBundle) run(o check.Options) check.Report {
	b.t.Helper()
	report, err := check.Run(b.t.Context(), b.pool, o)
	require.NoError(b.t, err)
	require.Len(b.t, report.Invariants, 16)
	return report
}

func broken(report check.Report) (ids []string) {
	for _, rule := range report.Offending() {
		ids = append(ids, rule.ID)
	}
	return ids
}

// files are the rules' names, as they are on disk.
func files(t *testing.T) (names []string) {
	t.Helper()
	all, err := fs.Glob(checks.Files, "*.sql")
	require.NoError(t, err)
	for _, file := range all {
		names = append(names, strings.TrimSuffix(file, ".sql"))
	}
	return names
}

func TestRulesHoldAfterWork(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, o := range []check.Options{{}, {AtRest: true}, {Ledger: b.ledger(b.lines())}} {
		report := b.run(o)
		require.Empty(t, report.Offending())
		require.Zero(t, report.Broken)
		require.Zero(t, report.Incomplete)
		require.WithinDuration(t, time.Now(), report.At, time.Hour)
		verdicts := map[check.Verdict][]string{}
		var rules []string
		for i, one := range report.Invariants {
			require.Equal(t, fmt.Sprint("I", i+1), one.ID)
			require.NotEmpty(t, one.Sentence)
			require.Equal(t, one.Verdict == check.NotChecked, one.Why != "", one.ID)
			verdicts[one.Verdict] = append(verdicts[one.Verdict], one.ID)
			for _, rule := range one.Rules {
				rules = append(rules, rule.ID)
				require.Regexp(t, `^[A-Z].*[.]$`, rule.Sentence)
			}
		}
		for _, rule := range report.More {
			require.Equal(t, check.OK, rule.Verdict)
			rules = append(rules, rule.ID)
		}
		require.Subset(t, rules, files(t), "every file is a rule")
		slices.Sort(rules)
		require.Len(t, slices.Compact(rules), len(files(t))+5)
		blind := []string{"I1", "I9", "I13", "I14", "I15"}
		switch {
		case o.Ledger != nil:
		case o.AtRest:
			blind = append(blind, "I2", "I5", "I6", "I7", "I8", "I11")
		default:
			blind = append(blind, "I5", "I6", "I7", "I8", "I11")
		}
		require.ElementsMatch(t, blind, verdicts[check.NotChecked])
		require.Len(t, verdicts[check.OK], 16-len(blind))
	}
}

// breakages are what must be found, each by one rule alone.
var breakages = []struct {
	rule string
	task string // that is named; empty: not looked at
	how  []string
}{
	{"i02_running_lease", "running", []string{"DELETE FROM lease"}},
	{"i02_running_lease", "pending", []string{`
		INSERT INTO lease (task_id, job_id, attempt, kind, visibility_ms, expires_at, owner)
		VALUES (<pending>, 1, 1, 'process', 1000, now() + interval '1 minute', 'p1')`}},
	{"i02_lease_over", "running", []string{"UPDATE lease SET expires_at = now() - interval '2 minutes'"}},
	{"i02_claim_lost", "pending", []string{`
		UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '2 minutes', attempted_by = '{gone}'
		WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)`}},
	{"i02_claim_lost", "pending", []string{"INSERT INTO executor (executor_id) VALUES ('there')", `
		UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '11 minutes', attempted_by = '{there}'
		WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)`}},
	{"i02_schedule_missed", "pending", []string{`
		UPDATE river_job SET state = 'scheduled', scheduled_at = now() - interval '2 minutes'
		WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)`}},
	{"i03_history_contiguous", "done", []string{"UPDATE task SET version = version + 1 WHERE task_id = <done>"}},
	{"i03_history_legal", "done", []string{"UPDATE task_event SET was = 'ASSIGNED' WHERE task_id = <done> AND type = 'completed'"}},
	{"i03_history_legal", "pending", []string{"UPDATE task_event SET type = 'started' WHERE task_id = <pending>"}},
	{"i03_history_task", "", []string{
		`
		INSERT INTO task_event (id, task_id, at, seq, attempt, type, now, actor) VALUES (-1, gen_random_uuid(), now(), 1, 0, 'created', 'PENDING', 'x')`,
		"INSERT INTO outbox (lo, hi) VALUES (-1, 0)",
	}},
	{"i04_told_once", "", []string{"DELETE FROM outbox_published WHERE id = (SELECT max(id) FROM outbox_published)"}},
	{"i04_told_once", "", []string{"INSERT INTO outbox (lo, hi) SELECT lo, hi FROM outbox_published ORDER BY id LIMIT 1"}},
	{"i06_told_order", "", []string{"UPDATE outbox_published SET id = -id"}},
	{"i06_callback_order", "pending", []string{`
		INSERT INTO callback (task_id, told, upto, since, host) VALUES (<pending>, 0, 1, now(), 'h')`}},
	{"i06_callback_order", "called", []string{"UPDATE callback SET upto = upto + 1 WHERE task_id = <called>"}},
	{"i06_callback_order", "called", []string{`
		INSERT INTO callback_given_up (task_id, seq, tries, host, problem) VALUES (<called>, 2, 1, 'h', 'p')`}},
	{"i10_attempt_fence", "failed", []string{"UPDATE task_event SET attempt = 1 WHERE task_id = <failed> AND type = 'failed'"}},
	{"i10_attempts_counted", "done", []string{`
		INSERT INTO task_attempt (task_id, attempt, outcome, job_id, started_at, ended_at, executor_id) VALUES (<done>, 2, 'RELEASED', 1, now(), now(), 'p1')`}},
	{"i10_attempts_counted", "running", []string{"UPDATE task_attempt SET outcome = 'RELEASED', ended_at = started_at WHERE task_id = <running>"}},
	{"i10_failures_counted", "done", []string{"UPDATE task SET failures = 1 WHERE task_id = <done>"}},
	{"i10_failures_counted", "failed", []string{"UPDATE task SET crashes = 1 WHERE task_id = <failed>"}},
	{"i10_completed_by_last", "done", []string{"UPDATE task_attempt SET outcome = 'RELEASED' WHERE task_id = <done>"}},
	{"i11_one_end", "failed", []string{
		`
		INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
		SELECT -2, task_id, now(), version + 1, attempt, 'released'::task_event_type, 'FAILED'::task_status, 'PENDING'::task_status, 'x' FROM task WHERE task_id = <failed>
		UNION ALL
		SELECT -1, task_id, now(), version + 2, attempt, 'failed', 'PENDING', 'FAILED', 'x' FROM task WHERE task_id = <failed>`,
		"UPDATE task SET version = version + 2 WHERE task_id = <failed>",
		"INSERT INTO outbox (lo, hi) VALUES (-2, 0)",
	}},
	{"i12_request_key", "done", []string{"UPDATE task_request SET request_key = 'another' WHERE task_id = <done>"}},
	{"i12_request_key", "done", []string{"DELETE FROM task_request WHERE task_id = <done>"}},
	{"i12_request_key", "failed", []string{"UPDATE task SET request_id = 'key-done' WHERE task_id = <failed>"}},
	{"i16_pending_job", "pending", []string{"DELETE FROM river_job WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)"}},
	{"i16_pending_job", "pending", []string{`
		UPDATE river_job SET state = 'cancelled', finalized_at = now() WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)`}},
	{"i16_pending_job", "pending", []string{"UPDATE river_job SET state = 'pending' WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)"}},
	{"i16_pending_job", "pending", []string{"UPDATE river_job SET queue = 'elsewhere' WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)"}},
	{"i16_pending_job", "pending", []string{`
		UPDATE river_job SET args = args || '{"attempt": 2}' WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)`}},
	{"i16_no_other_job", "done", []string{`
		UPDATE river_job SET state = 'available', finalized_at = NULL WHERE id = (SELECT job_id FROM task WHERE task_id = <done>)`}},
	{"i16_no_other_job", "cancelled", []string{`
		UPDATE river_job SET state = 'running', finalized_at = NULL, attempted_at = now() - interval '2 minutes'
		WHERE id = (SELECT job_id FROM task WHERE task_id = <cancelled>)`}},
	{"i16_dead_letter", "failed", []string{"UPDATE river_job SET kind = 'task.worker' WHERE id = (SELECT job_id FROM task WHERE task_id = <failed>)"}},
	{"i16_dead_letter", "failed", []string{"DELETE FROM river_job WHERE id = (SELECT job_id FROM task WHERE task_id = <failed>)"}},
	{"i16_dead_letter", "failed", []string{"UPDATE river_job SET state = 'cancelled', finalized_at = now() - interval '1 hour' WHERE id = (SELECT job_id FROM task WHERE task_id = <failed>)"}},
	{"i16_dead_letter", "failed", []string{"UPDATE river_job SET state = 'running', attempted_at = now() WHERE id = (SELECT job_id FROM task WHERE task_id = <failed>)"}},
	{"i02_ready", "failed", []string{"DELETE FROM ready WHERE task_id = <failed>"}},
	{"i02_ready", "failed", []string{"UPDATE ready SET rank = rank + interval '1 hour' WHERE task_id = <failed>"}},
	{"i02_ready", "done", []string{`
		INSERT INTO ready (job_id, task_id, place, tenant_id, definition_id, urgent, due_at, rank)
		SELECT job_id, task_id, 'task-execution-automated', tenant_id, definition_id, false, now(), now() FROM task WHERE task_id = <done>`}},
	{"x_counters", "", []string{`
		INSERT INTO tally_delta (at, type, lane, event, now, n, run_ms) VALUES (now(), 'AUTOMATED', 'task-execution-automated', 'created', 'PENDING', 1, 0)`}},
	{"x_definition", "done", []string{"UPDATE task SET revision = 1 WHERE task_id = <done>"}},
	{"x_definition", "done", []string{"UPDATE task SET own_definition = true WHERE task_id = <done>"}},
	{"x_hours", "", []string{`
		INSERT INTO tally_hour (hour, type, lane, event, now, n, run_ms) VALUES ('2000-01-01', 'AUTOMATED', 'task-execution-automated', 'created', 'PENDING', 1, 0)`}},
	{"x_went_back", "", []string{"INSERT INTO event_unknown (event_id, stream_seq) VALUES (gen_random_uuid(), 7)"}},
	{"x_times", "failed", []string{"UPDATE task_attempt SET ended_at = started_at - interval '1 second' WHERE task_id = <failed> AND attempt = 1"}},
}

func TestEachRuleCanFail(t *testing.T) {
	t.Parallel()
	proven := map[string]bool{}
	for _, one := range breakages {
		proven[one.rule] = true
		t.Run(one.rule, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.exec(one.how...)
			report := b.run(check.Options{})
			require.Equal(t, []string{one.rule}, broken(report), "%v", report.Offending())
			require.Equal(t, 1, report.Broken)
			rule := report.Offending()[0]
			require.Len(t, rule.First, rule.Count)
			require.NotEmpty(t, rule.First[0].Detail)
			if one.task != "" {
				var named []string
				for _, offence := range rule.First {
					named = append(named, offence.Task)
				}
				require.Contains(t, named, b.ids[one.task].String())
			}
			for _, i := range report.Invariants {
				want := slices.ContainsFunc(i.Rules, func(r check.Rule) bool { return r.ID == one.rule })
				require.Equal(t, want, i.Verdict == check.Broken, i.ID)
				if i.ID == "I2" && one.rule == "i16_pending_job" {
					require.True(t, want, "a task without a job waits for nobody")
				}
			}
		})
	}
	require.ElementsMatch(t, files(t), slices.Collect(maps.Keys(proven)), "a rule that nothing has broken proves nothing")
}

// What is under way this moment is not broken; on a database at rest it is, or
// nobody is there to be late.
func TestGrace(t *testing.T) {
	t.Parallel()
	for _, one := range []struct {
		how    string
		atRest []string // what is broken then
	}{
		{"UPDATE lease SET expires_at = now() - interval '30 seconds'", nil},
		{`UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '30 seconds', attempted_by = '{gone}'
			WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)`, nil},
		{`UPDATE river_job SET state = 'scheduled', scheduled_at = now() - interval '30 seconds'
			WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)`, nil},
		{`UPDATE river_job SET state = 'retryable', scheduled_at = now() + interval '1 hour'
			WHERE id = (SELECT job_id FROM task WHERE task_id = <pending>)`, nil},
		{`UPDATE river_job SET state = 'running', finalized_at = NULL, attempted_at = now() - interval '30 seconds'
			WHERE id = (SELECT job_id FROM task WHERE task_id = <cancelled>)`, []string{"i16_no_other_job"}},
		{`UPDATE river_job SET state = 'cancelled', finalized_at = now() - interval '30 seconds'
			WHERE id = (SELECT job_id FROM task WHERE task_id = <failed>)`, []string{"i16_dead_letter"}},
	} {
		t.Run(one.how, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.exec(one.how)
			require.Empty(t, b.run(check.Options{}).Offending())
			require.Equal(t, one.atRest, broken(b.run(check.Options{AtRest: true})))
			if !strings.Contains(one.how, "1 hour") {
				require.Len(t, broken(b.run(check.Options{Grace: 10 * time.Second})), 1)
			}
		})
	}
}

// A system at work is never found broken: every move is in a snapshot as a whole.
func TestWhileAtWork(t *testing.T) {
	t.Parallel()
	pool := dbtest.Get(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tasks := jobs.New(pool, jobs.Config{ProcessID: "p1", Logger: slog.New(slog.DiscardHandler)})
	runner := jobs.NewRunner(tasks, jobs.RunnerConfig{Tick: 5 * time.Millisecond, Executors: map[string]jobs.Registration{
		"noop": {Pure: true, Executor: jobs.ExecutorFunc(func(_ context.Context, job jobs.Job) (jobs.Result, error) {
			if job.Attempt < 3 {
				return jobs.Result{}, &jobs.Failure{Code: "E", Message: "not yet"}
			}
			return jobs.Result{Output: json.RawMessage(`{}`)}, nil
		})},
	}})
	work, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- runner.Run(work, time.Second) }()
	const most = 1500
	var creators sync.WaitGroup
	for c := range 10 {
		creators.Go(func() {
			for n := range most / 10 {
				_, _, err := tasks.Create(ctx, jobs.Request{
					TaskDefinitionID: "adhoc", WorkflowID: "wf", TaskType: jobs.Automated, Actor: "test", Key: fmt.Sprint(c, "-", n), Body: []byte(`{}`),
					Config: &jobs.RequestConfig{
						RetryPolicy:     &jobs.RetryPolicy{MaxRetries: 5},
						ExecutionConfig: jobs.ExecutionConfig{Executor: "noop"},
					},
				})
				require.NoError(t, err)
			}
		})
	}
	looks, between := 0, 0
	for open := most; open > 0; looks++ {
		report, err := check.Run(ctx, pool, check.Options{})
		require.NoError(t, err)
		require.Empty(t, report.Offending())
		require.NoError(t, pool.QueryRow(ctx, "SELECT $1 - count(*) FILTER (WHERE status = 'COMPLETED') FROM task", most).Scan(&open))
		if 0 < open && open < most {
			between++
		}
	}
	creators.Wait()
	stop()
	require.NoError(t, <-ended)
	tasks.Drain(ctx)
	require.Positive(t, between, "it was over too soon to prove anything")
	t.Logf("%d looks, %d of them in the middle", looks, between)
}

// Many offences are counted, and the first of them shown.
func TestManyOffences(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(`INSERT INTO task_request (tenant_id, request_key, task_id, created_at, body_hash)
		SELECT '', 'k' || n, gen_random_uuid(), now(), '' FROM generate_series(1, 123) n`)
	report := b.run(check.Options{})
	require.Equal(t, []string{"i12_request_key"}, broken(report))
	require.Equal(t, 123, report.Offending()[0].Count)
	require.Len(t, report.Offending()[0].First, 20)
}

// A rule that takes too long is not green, and the others are checked all the same.
func TestRuleThatTakesTooLong(t *testing.T) {
	t.Parallel()
	b := setup(t)
	holder, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer holder.Rollback(t.Context())
	_, err = holder.Exec(t.Context(), "LOCK TABLE tally_hour")
	require.NoError(t, err)
	report := b.run(check.Options{Timeout: 2 * time.Second})
	require.Equal(t, 1, report.Incomplete)
	require.Zero(t, report.Broken)
	for _, rule := range report.More {
		want := check.OK
		if rule.ID == "x_hours" {
			want = check.NotChecked
			require.Equal(t, "took longer than 2s", rule.Why)
		}
		require.Equal(t, want, rule.Verdict, rule.ID)
	}
}

func TestOtherSchema(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	_, err := pool.Exec(t.Context(), "ALTER TABLE lease RENAME COLUMN expires_at TO ends_at")
	require.NoError(t, err)
	_, err = check.Run(t.Context(), pool, check.Options{})
	require.ErrorIs(t, err, check.ErrSchema)
}

// It reads with the rights of the service, and can do nothing else.
func TestAsTheService(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, role := range []string{"tes_app", "tes_owner"} {
		pool, err := pgpool.Open(t.Context(), dbtest.URL(b.pool), pgpool.Config{Name: "check", MaxConns: 1})
		require.NoError(t, err)
		defer pool.Close()
		_, err = pool.Exec(t.Context(), "SET ROLE "+role)
		require.NoError(t, err)
		report, err := check.Run(t.Context(), pool, check.Options{Ledger: b.ledger(b.lines())})
		require.NoError(t, err, role)
		require.Empty(t, report.Offending())
		var how string
		require.NoError(t, pool.QueryRow(t.Context(), "SHOW statement_timeout").Scan(&how))
		require.Equal(t, "30s", how, "nothing of it stays with the session")
	}
}

// The files are psql's too.
func TestFilesArePsqlScripts(t *testing.T) {
	t.Parallel()
	for _, name := range files(t) {
		text, err := os.ReadFile("../../sql/checks/" + name + ".sql")
		require.NoError(t, err)
		require.True(t, strings.HasSuffix(string(text), ";\n"), name)
		require.Equal(t, strings.Count(string(text), ":'"), strings.Count(string(text), ":'grace'::interval"), name)
		require.NotContains(t, string(text), "$1", name)
	}
}
