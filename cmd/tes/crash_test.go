package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs/check"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

var crashes = flag.Int("crashes", 1, "how often TestCrash kills tes dev in the middle of its thousand tasks")

const (
	crashTasks   = 1000
	crashClients = 8
)

// crash is one run: a dev that is killed, those who give it tasks, the services
// that its tasks call, and somebody who listens.
type crash struct {
	t     *testing.T
	dir   string
	file  string
	token string
	web   *httptest.Server

	dev   *program
	ready atomic.Pointer[ready] // of the dev that runs, or has just been killed
	bus   *natsbus.Bus
	ears  *recorder

	mu           sync.Mutex
	acknowledged map[string]string // task by its Idempotency-Key; guarded by mu
	calls        map[string]int    // how often the web service was called, by its Idempotency-Key; guarded by mu
	flaky        map[string]int    // how often it has refused a flaky task; guarded by mu
}

// crashKinds are the tasks, in the order in which they come again and again, and
// what each must come to.
var crashKinds = []struct {
	definition string
	input      object
	status     string
	code       string // of the error that stays
}{
	{"noop", object{"n": 1}, "COMPLETED", ""},
	{"expression", object{"n": 21.5}, "COMPLETED", ""},
	{"invoice", object{"contact_id": "CONT-1"}, "COMPLETED", ""},
	{"email", object{"to_address": "a@example.com"}, "COMPLETED", ""},
	{"slow", object{}, "COMPLETED", ""},
	{"flaky", object{}, "COMPLETED", ""},
	{"noop", object{"n": 2}, "COMPLETED", ""},
	{"broken", object{}, "FAILED", "HTTP_500"},
	{"email", object{"to_address": "b@example.com"}, "COMPLETED", ""},
	{"refused", object{"contact_id": "CONT-REJECTED"}, "FAILED", "VALIDATION_ERROR"},
}

// Kill -9 in the middle of a thousand tasks, and a restart on the same directory:
// whoever got an answer has a task, every task ends, each with one terminal event,
// and what is in the log is on the bus.
func TestCrash(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	c := &crash{
		t: t, dir: dataDir(t), file: readyFile(t), ears: newRecorder(),
		acknowledged: map[string]string{}, calls: map[string]int{}, flaky: map[string]int{},
	}
	c.web = serveWeb(t, http.HandlerFunc(c.serveWeb))
	c.start()
	c.define()

	given := make(chan error, 1)
	go func() { given <- c.give() }()
	var open []int
	var killed time.Time
	for k := range *crashes {
		c.reach((k + 1) * crashTasks / (*crashes + 1))
		killed = time.Now()
		c.kill(k%2 == 1)
		c.start()
		open = append(open, crashTasks-number(t, c.ready.Load().DatabaseURL, "SELECT count(*) FROM task WHERE ended_at IS NOT NULL"))
	}
	require.NoError(t, <-given)
	c.settle()
	settled := time.Since(killed)

	log := c.readLog()
	c.ears.hearAll(t, len(log))
	result := c.check(log)
	c.stop()
	result["kills"], result["openAtRestart"] = *crashes, open
	result["lastKillToSettledSeconds"], result["totalSeconds"] = settled.Seconds(), time.Since(begun).Seconds()
	line, err := json.Marshal(result)
	require.NoError(t, err)
	fmt.Fprintf(os.Stdout, "%s\n", line)
	require.Positive(t, slices.Max(open), "nothing was in the middle")
}

// start starts dev, and whoever listens to its bus.
func (c *crash) start() {
	c.t.Helper()
	c.dev = startProcess(c.t, environ(), devArgs(c.file, "--data-dir", c.dir)...)
	r := isReady(c.t, c.dev, c.file)
	if c.token == "" {
		c.token = r.Tokens["workflow-orchestrator"] // good for all that follow: the key stays
	}
	c.ready.Store(&r)
	bus, err := natsbus.Open(c.t.Context(), natsbus.Config{URL: r.NATSURL, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = bus.Close(context.Background()) })
	c.bus = bus
	require.NoError(c.t, bus.Subscribe(c.t.Context(), "task.>", natsbus.All, c.ears.hear))
}

// kill is kill -9 of dev alone, and what it has started must see for itself; or of
// its PostgreSQL with it.
func (c *crash) kill(postgres bool) {
	c.t.Helper()
	if postgres {
		require.NoError(c.t, syscall.Kill(postmaster(c.t, c.dir), syscall.SIGKILL))
	}
	require.NoError(c.t, c.dev.cmd.Process.Kill())
	<-c.dev.done
	require.FileExists(c.t, c.file, "it had no time to remove it")
	require.NoError(c.t, c.bus.Close(context.Background()))
}

func (c *crash) stop() {
	c.t.Helper()
	c.dev.signal(c.t, syscall.SIGINT)
	require.Equal(c.t, exitOK, c.dev.wait(c.t, 15*time.Second), c.dev.stderr)
	require.NoFileExists(c.t, c.file)
	nothingRuns(c.t, c.dir)
}

// define registers what the tasks are. Leases and timeouts are short, so that what
// the killed process had in its hands is taken from it in seconds.
func (c *crash) define() {
	c.t.Helper()
	retry := object{"maxRetries": 8, "retryInterval": 200, "backoffMultiplier": 1}
	invoke := func(method string) object {
		return object{"visibilityTimeout": 4000, "integration": object{"type": "REST", "method": method, "instance": "peer", "async": method == "send_email"}}
	}
	call := func(path string) object {
		return object{"executor": "http", "visibilityTimeout": 4000, "http": object{"url": c.web.URL + path, "method": "POST"}}
	}
	for id, definition := range map[string]object{
		"noop":       {"type": "AUTOMATED", "executionConfig": object{"executor": "noop"}},
		"expression": {"type": "AUTOMATED", "executionConfig": object{"executor": "expression", "expression": []object{{"name": "twice", "value": "input.n + input.n"}}}},
		"invoice":    {"type": "INTEGRATION", "timeout": 15000, "retryPolicy": retry, "executionConfig": invoke("create_invoice")},
		"email":      {"type": "INTEGRATION", "timeout": 6000, "retryPolicy": retry, "executionConfig": invoke("send_email")},
		"slow":       {"type": "AUTOMATED", "timeout": 15000, "retryPolicy": retry, "executionConfig": call("/slow")},
		"flaky":      {"type": "AUTOMATED", "timeout": 15000, "retryPolicy": retry, "executionConfig": call("/flaky")},
		"broken": {
			"type": "AUTOMATED", "timeout": 15000, "executionConfig": call("/broken"),
			"retryPolicy": object{"maxRetries": 2, "retryInterval": 200, "backoffMultiplier": 1},
		},
		"refused": {"type": "INTEGRATION", "timeout": 15000, "retryPolicy": retry, "executionConfig": invoke("create_invoice")},
	} {
		definition["name"], definition["version"] = id, "1.0.0"
		must(c.t, http.StatusCreated, "PUT", c.ready.Load().APIURL+definitionsPath+"/"+id, c.token, definition)
	}
}

// serveWeb is a service of somebody else's, which outlives every crash.
func (c *crash) serveWeb(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	task := r.Header.Get("X-Tes-Task-Id")
	c.mu.Lock()
	c.calls[r.Header.Get("Idempotency-Key")]++
	refuse := r.URL.Path == "/broken"
	if r.URL.Path == "/flaky" && c.flaky[task] < 2 {
		c.flaky[task]++
		refuse = true
	}
	c.mu.Unlock()
	if r.URL.Path == "/slow" {
		select {
		case <-time.After(100 * time.Millisecond): // work that takes its time
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if refuse {
		w.WriteHeader(http.StatusInternalServerError)
	}
	fmt.Fprint(w, `{"done": true}`)
}

// give hands all tasks in, each again and again under one key until it is
// acknowledged.
func (c *crash) give() error {
	next := make(chan int)
	go func() {
		defer close(next)
		for i := range crashTasks {
			next <- i
		}
	}()
	errs := make(chan error, crashClients)
	var clients sync.WaitGroup
	for range crashClients {
		clients.Go(func() {
			for i := range next {
				if err := poll(c.t.Context(), 2*time.Minute, func() error { return c.giveOne(i) }); err != nil {
					errs <- fmt.Errorf("task %d: %w", i, err)
					for range next {
					}
				}
			}
		})
	}
	clients.Wait()
	close(errs)
	return <-errs
}

var errRefused = errors.New("refused")

func (c *crash) giveOne(i int) error {
	kind := crashKinds[i%len(crashKinds)]
	key := fmt.Sprintf("key-%d", i)
	status, answer, text, err := ask(c.t.Context(), "POST", c.ready.Load().APIURL+tasksPath, c.token, object{
		"taskDefinitionId": kind.definition, "workflowId": fmt.Sprintf("crash-%d", i%7), "input": kind.input,
		"priority": []string{"LOW", "MEDIUM", "HIGH", "CRITICAL"}[i%4], "correlationId": key,
	}, "Idempotency-Key", key)
	if err != nil {
		return err
	}
	if status != http.StatusCreated && status != http.StatusOK {
		if status != http.StatusServiceUnavailable {
			c.t.Errorf("%s: %d %s", key, status, text)
		}
		return fmt.Errorf("%w: %d %s", errRefused, status, text)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acknowledged[key] = fmt.Sprint(answer["taskId"])
	return nil
}

// reach waits until so many tasks are acknowledged.
func (c *crash) reach(n int) {
	c.t.Helper()
	eventually(c.t, 2*time.Minute, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.acknowledged) < n {
			return fmt.Errorf("%d tasks are acknowledged", len(c.acknowledged))
		}
		return nil
	})
}

// settle waits until every task has ended and every event was told.
func (c *crash) settle() {
	c.t.Helper()
	dsn := c.ready.Load().DatabaseURL
	settled(c.t, dsn)
}

// settled waits until no task is open and every event was told.
func settled(t *testing.T, dsn string) {
	t.Helper()
	eventually(t, 90*time.Second, func() error {
		type row struct {
			Status, Definition string
			Executor           *string
			N                  int
		}
		rows, err := collect(t.Context(), dsn, pgx.RowToStructByPos[row], `
			SELECT t.status::text, t.definition_id, j.state || ' ' || coalesce(j.attempted_by[1], ''), count(*)
			FROM task t
			LEFT JOIN river_job j ON j.id = t.job_id
			WHERE t.ended_at IS NULL
			GROUP BY 1, 2, 3`)
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			text, _ := json.Marshal(rows)
			return fmt.Errorf("tasks have not ended: %s", text)
		}
		waiting, err := collect(t.Context(), dsn, pgx.RowTo[int], "SELECT count(*) FROM outbox")
		if err == nil && waiting[0] > 0 {
			err = fmt.Errorf("%d flushes are not told", waiting[0])
		}
		return err
	})
}

func (c *crash) readLog() map[string]logged {
	c.t.Helper()
	return readLog(c.t, c.ready.Load().DatabaseURL)
}

// readLog is everything that must be on the bus, by its id.
func readLog(t *testing.T, dsn string) map[string]logged {
	t.Helper()
	rows, err := collect(t.Context(), dsn, pgx.RowToStructByPos[logged], `
		SELECT task_id, seq, type::text, now::text FROM task_event WHERE type NOT IN ('released', 'redriven')`)
	require.NoError(t, err)
	log := map[string]logged{}
	for _, row := range rows {
		log[row.id()] = row
	}
	require.Len(t, log, len(rows))
	return log
}

// holdRules holds a database at rest against crashRules, and it and what was heard
// against everything that tes check knows.
func holdRules(t *testing.T, dsn string, ears *recorder) {
	t.Helper()
	for _, rule := range crashRules {
		broken, err := collect(t.Context(), dsn, pgx.RowTo[string], rule.sql)
		require.NoError(t, err, rule.rule)
		require.Empty(t, broken[:min(5, len(broken))], "%s: broken by %d", rule.rule, len(broken))
	}
	holdTold(t, dsn, ears)
}

// holdTold holds the database, and what was heard, against everything that tes check
// knows, while tasks are open.
func holdTold(t *testing.T, dsn string, ears *recorder) {
	t.Helper()
	code, stdout, stderr := tes(t, environ("TES_DATABASE_URL="+dsn), "check", "--json", "--grace", "5s", "--ledger", ears.write(t))
	if code == exitOK {
		return
	}
	var report check.Report
	require.NoError(t, json.Unmarshal([]byte(stdout), &report), "%s\n%s", stdout, stderr)
	var broken strings.Builder
	for _, rule := range report.Offending() {
		fmt.Fprintf(&broken, "%s: %s Broken by %d, such as:\n", rule.ID, rule.Sentence, rule.Count)
		for _, one := range rule.First[:min(5, len(rule.First))] {
			fmt.Fprintf(&broken, "    %s %s\n", one.Task, one.Detail)
		}
	}
	require.Fail(t, "tes check ended with "+fmt.Sprint(code), "%s%s", &broken, stderr)
}

// crashRules must hold when every task has ended, beside those that tes check knows;
// each is a query for what breaks it.
var crashRules = []struct{ rule, sql string }{
	{"one terminal event each", `
		SELECT task_id::text
		FROM task_event
		GROUP BY task_id
		HAVING count(*) FILTER (WHERE now IN ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMED_OUT')) <> 1`},
	{"no lease is left", `SELECT task_id::text FROM lease`},
	{"no job is left, but dead letters", `
		SELECT j.id || ' ' || j.state || ' ' || j.queue
		FROM river_job j
		WHERE j.kind LIKE 'task.%' AND j.kind <> 'task.deadletter' AND j.state NOT IN ('completed', 'cancelled', 'discarded')`},
	{"a dead letter for each that failed, and no other", `
		SELECT t.task_id::text
		FROM task t
		FULL JOIN report.dead_letter d ON d.task_id = t.task_id
		WHERE (t.status = 'FAILED') IS DISTINCT FROM (d.task_id IS NOT NULL)`},
	{"every task has the key of its own request", `
		SELECT t.task_id::text
		FROM task t
		WHERE t.request_id IS NULL OR t.correlation_id IS DISTINCT FROM t.request_id`},
}

// check holds the database, the bus and the callers against each other.
func (c *crash) check(log map[string]logged) object {
	t, dsn := c.t, c.ready.Load().DatabaseURL
	t.Helper()
	holdRules(t, dsn, c.ears)
	tasks := c.checkTasks()
	c.checkCalls(tasks)
	duplicates := c.ears.check(t, log, crashTasks)

	retries, crashed := 0, 0
	for _, task := range tasks {
		retries += int(task.Failures)
		crashed += int(task.Crashes)
	}
	status, answer, text, err := ask(t.Context(), "GET", c.ready.Load().APIURL+tasksPath+"/metrics", c.ready.Load().Tokens["monitoring-service"], nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, "%s %v", text, answer)
	return object{
		"tasks": len(tasks), "events": len(log), "duplicates": duplicates, "failures": retries, "leasesExpired": crashed,
		"webCalls": len(c.calls),
	}
}

type endedTask struct {
	ID                string
	Key               string
	Status            string
	Code              string
	Attempt           int32
	Failures, Crashes int32
	Output            []byte
}

// checkTasks: those who were told of a task have it, nobody has another, and each
// came to what it must.
func (c *crash) checkTasks() map[string]endedTask {
	t := c.t
	t.Helper()
	rows, err := collect(t.Context(), c.ready.Load().DatabaseURL, pgx.RowToStructByPos[endedTask], `
		SELECT task_id::text, request_id, status::text, coalesce(error ->> 'code', ''), attempt, failures, crashes, output
		FROM task`)
	require.NoError(t, err)
	require.Len(t, rows, crashTasks)
	require.Len(t, c.acknowledged, crashTasks)
	tasks := map[string]endedTask{}
	for _, row := range rows {
		tasks[row.ID] = row
		require.Equal(t, row.ID, c.acknowledged[row.Key], row.Key)
		var i int
		_, err := fmt.Sscanf(row.Key, "key-%d", &i)
		require.NoError(t, err)
		kind := crashKinds[i%len(crashKinds)]
		if row.Code == "POISON" && *crashes >= 5 {
			continue // five times in the hands of a process that was killed: so it is ruled
		}
		require.Equal(t, kind.status, row.Status, "%s %s: %+v", kind.definition, row.ID, row)
		switch kind.definition {
		case "expression":
			require.JSONEq(t, `{"twice": 43}`, string(row.Output))
		case "broken":
			require.EqualValues(t, 3, row.Failures, row.ID)
			require.Equal(t, kind.code, row.Code)
		case "refused":
			require.EqualValues(t, 1, row.Failures, row.ID)
			require.Equal(t, kind.code, row.Code)
		}
		require.GreaterOrEqual(t, row.Attempt, row.Failures+row.Crashes, row.ID)
	}
	return tasks
}

// checkCalls: what was done outside was done in an attempt that is in the books,
// and once in each.
func (c *crash) checkCalls(tasks map[string]endedTask) {
	t := c.t
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, n := range c.calls {
		id, attempt, _ := strings.Cut(key, ":")
		require.Equal(t, 1, n, "%s was called %d times", key, n)
		require.LessOrEqual(t, attempt, fmt.Sprint(tasks[id].Attempt), key)
	}
	for id, task := range tasks {
		if task.Status == "COMPLETED" && bytes.Contains(task.Output, []byte("done")) {
			require.Positive(t, c.calls[fmt.Sprintf("%s:%d", id, task.Attempt)], "%s is done, and nobody was asked", id)
		}
	}
}
