package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/retry"
	"github.com/seed-3f7a0631/tes/outbox/webhook"
)

// orchestrator takes callbacks over HTTP and remembers them. How it answers is up to
// the test.
type orchestrator struct {
	*httptest.Server
	secret string

	mu     sync.Mutex
	answer func(r *http.Request, task, id string) int // 0: hangs up; guarded by mu
	posts  []post                                     // guarded by mu
}

type post struct {
	task, id string
	status   int // that was answered
	body     []byte
	valid    error
}

func newOrchestrator(t *testing.T) *orchestrator {
	t.Helper()
	o := &orchestrator{secret: webhook.NewSecret()}
	o.answers(func(*http.Request, string, string) int { return 200 })
	taker, err := standardwebhooks.NewWebhook(o.secret)
	require.NoError(t, err)
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var update outbox.StatusUpdate
		_ = json.Unmarshal(body, &update)
		p := post{task: update.TaskID, id: r.Header.Get("webhook-id"), body: body, valid: taker.Verify(body, r.Header)}
		o.mu.Lock()
		answer := o.answer
		o.mu.Unlock()
		p.status = answer(r, p.task, p.id)
		o.mu.Lock()
		o.posts = append(o.posts, p)
		o.mu.Unlock()
		if p.status == 0 {
			if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
				_ = conn.Close()
			}
			return
		}
		w.WriteHeader(p.status)
	}))
	t.Cleanup(o.CloseClientConnections)
	t.Cleanup(o.Close)
	return o
}

func (o *orchestrator) answers(fn func(r *http.Request, task, id string) int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = fn
}

func (o *orchestrator) seen() []post {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.posts)
}

// taken are the ids that a task's updates were acknowledged under, in order.
func (o *orchestrator) taken(task uuid.UUID) (ids []string) {
	for _, p := range o.seen() {
		if p.task == task.String() && p.status >= 200 && p.status < 300 {
			ids = append(ids, p.id)
		}
	}
	return ids
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func (b *testBundle) caller(secret string, allow ...netip.Prefix) *webhook.Caller {
	b.t.Helper()
	secrets, err := webhook.ParseSecrets(secret)
	require.NoError(b.t, err)
	caller := webhook.New(webhook.Config{Secrets: secrets, Allow: allow})
	b.t.Cleanup(caller.Close)
	return caller
}

// courier makes callbacks until the test ends, in a quick rhythm; stop waits.
func (b *testBundle) courier(caller outbox.Caller, change ...func(*outbox.CallbackConfig)) (c *outbox.Callbacks, stop func()) {
	b.t.Helper()
	cfg := outbox.CallbackConfig{
		Poll: 5 * time.Millisecond, Backoff: time.Millisecond, BackoffMax: 10 * time.Millisecond, RefusedMax: 20 * time.Millisecond,
		OpenFor: 10 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	for _, fn := range change {
		fn(&cfg)
	}
	c = outbox.NewCallbacks(b.pool, caller, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		receive(b.t, ended)
	})
	b.t.Cleanup(stop)
	return c, stop
}

// called inserts a task that wants to be called back.
func (b *testBundle) called(address string) uuid.UUID {
	b.t.Helper()
	id := b.task()
	b.force("UPDATE task SET callback_url = $2, step_id = 's-1' WHERE task_id = $1", id, address)
	return id
}

// moves commits moves of a task as the engine does: the events, and what is owed.
func (b *testBundle) moves(task uuid.UUID, age time.Duration, types ...string) {
	b.t.Helper()
	b.exec(`
		WITH new_event AS (
			INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
			SELECT
				nextval('task_event_id_seq'), $1, date_trunc('milliseconds', now() - $3::interval), s.seq + k.n, 1, k.type::task_event_type, 'PENDING',
				CASE k.type
					WHEN 'started' THEN 'RUNNING' WHEN 'completed' THEN 'COMPLETED' WHEN 'failed' THEN 'FAILED' WHEN 'canceled' THEN 'CANCELLED'
					WHEN 'assigned' THEN 'ASSIGNED' ELSE 'PENDING'
				END::task_status, 'p'
			FROM (SELECT coalesce(max(seq), 0) AS seq FROM task_event WHERE task_id = $1) s
			CROSS JOIN unnest($2::text[]) WITH ORDINALITY k (type, n)
			RETURNING task_id, seq, type, at
		)
		INSERT INTO callback (task_id, told, upto, since, host)
		SELECT t.task_id, min(e.seq) - 1, max(e.seq), min(e.at), callback_host(t.callback_url)
		FROM new_event e
		JOIN task t ON t.task_id = e.task_id
		WHERE callback_tells(e.type)
		GROUP BY t.task_id, t.callback_url
		ON CONFLICT (task_id) DO UPDATE SET upto = excluded.upto`, task, types, age)
}

// force goes past the guard of moves, as a superuser can.
func (b *testBundle) force(sql string, args ...any) {
	b.t.Helper()
	require.NoError(b.t, pgx.BeginFunc(b.ctx, b.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(b.ctx, "SET LOCAL session_replication_role = replica")
		require.NoError(b.t, err)
		_, err = tx.Exec(b.ctx, sql, args...)
		return err
	}))
}

// allTold waits until nothing is owed.
func (b *testBundle) allTold() {
	b.t.Helper()
	waitFor(b.t, "all callbacks to be made", func() bool { return ask[int](b, "SELECT count(*) FROM callback") == 0 })
}

// Workflow Orchestrator: store status updates locally and retry. It is away for a
// while, with 503 and then not answering at all, while tasks go on, two processes try
// and one of them restarts. When it is back each task's updates arrive in order, each
// once.
func TestOrchestratorAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := newOrchestrator(t)
	tries := make(chan struct{}, 10_000)
	away := func(status int) func(*http.Request, string, string) int {
		return func(*http.Request, string, string) int { tries <- struct{}{}; return status }
	}
	o.answers(away(503))
	caller := b.caller(o.secret, loopback...)
	_, stop := b.courier(caller)
	b.courier(caller)

	var tasks []uuid.UUID
	for n := range 30 {
		task := b.called(fmt.Sprintf("%s/callbacks/%d?key=1", o.URL, n))
		b.moves(task, 0, "created", "started")
		tasks = append(tasks, task)
	}
	for range 20 {
		receive(t, tries)
	}
	stop()
	for _, task := range tasks {
		b.moves(task, 0, "retry", "released", "started")
	}
	o.answers(away(0))
	for range 5 {
		receive(t, tries)
	}
	b.courier(caller)
	for _, task := range tasks {
		b.moves(task, 0, "completed")
	}
	require.Equal(t, len(tasks), ask[int](b, "SELECT count(*) FROM report.callback WHERE state = 'WAITING'"), "one row a task, however much it waits for")
	o.answers(func(*http.Request, string, string) int { return 204 })
	b.allTold()

	for _, task := range tasks {
		var want []string
		for _, seq := range []int32{2, 3, 5, 6} { // not what is for the audit trail
			want = append(want, outbox.EventID(task, seq).String())
		}
		require.Equal(t, want, o.taken(task))
	}
	bodies := map[string]string{}
	for _, p := range o.seen() {
		require.NoError(t, p.valid)
		if was, again := bodies[p.id]; again {
			require.Equal(t, was, string(p.body), "a repetition is equal to the byte")
		}
		bodies[p.id] = string(p.body)
	}
	require.JSONEq(t, fmt.Sprintf(`{"taskId": %q, "workflowId": "wf", "stepId": "s-1", "status": "PENDING", "correlationId": "c"}`, tasks[0]),
		bodies[outbox.EventID(tasks[0], 3).String()])
	require.Zero(t, ask[int](b, "SELECT count(*) FROM callback_given_up"))
}

// Status, output and error are those of the move, whatever has happened since.
func TestCallbackTellsTheMoment(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := newOrchestrator(t)
	task := b.called(o.URL)
	b.exec(`INSERT INTO task_attempt (task_id, attempt, outcome, job_id, started_at, ended_at, executor_id, error)
		VALUES ($1, 1, 'FAILED', 1, now(), now(), 'p', '{"code": "E1", "message": "<first>"}')`, task)
	b.moves(task, 0, "created", "started", "failed")
	b.force(`UPDATE task SET status = 'COMPLETED', ended_at = now(), attempt = 2, error = NULL, output = '{"total": 50.73}' WHERE task_id = $1`, task)
	b.moves(task, 0, "redriven", "started", "completed")
	b.courier(b.caller(o.secret, loopback...))
	b.allTold()
	var bodies []string
	for _, p := range o.seen() {
		bodies = append(bodies, string(p.body))
	}
	head := `{"taskId":"` + task.String() + `","workflowId":"wf","stepId":"s-1","status":`
	require.Equal(t, []string{
		head + `"RUNNING","correlationId":"c"}`,
		head + `"FAILED","error":{"code":"E1","message":"\u003cfirst\u003e"},"correlationId":"c"}`,
		head + `"RUNNING","correlationId":"c"}`,
		head + `"COMPLETED","output":{"total":50.73},"correlationId":"c"}`,
	}, bodies)
}

// stuck is a process that is killed between the call and the mark: its call is made,
// and it never comes back from it.
type stuck struct {
	outbox.Caller
	called chan string
	let    chan struct{}
}

func (s *stuck) Call(ctx context.Context, address, id string, body []byte) error {
	err := s.Caller.Call(ctx, address, id, body)
	s.called <- id
	<-s.let
	return err
}

// Workflow Orchestrator: store status updates locally and retry. A process is killed
// after it has posted and before it has written so: another repeats it, under the same
// id and with the same body, and only then goes on.
func TestKilledBetweenCallAndMark(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := newOrchestrator(t)
	task := b.called(o.URL)
	b.moves(task, 0, "created", "started", "completed")
	quick := func(cfg *outbox.CallbackConfig) { cfg.Timeout = 200 * time.Millisecond }
	dead := &stuck{b.caller(o.secret, loopback...), make(chan string, 10), make(chan struct{})}
	awake := sync.OnceFunc(func() { close(dead.let) })
	t.Cleanup(awake)
	_, bury := b.courier(dead, quick, func(cfg *outbox.CallbackConfig) { cfg.Places = 1 })
	first := receive(t, dead.called)
	require.Equal(t, outbox.EventID(task, 2).String(), first)

	b.courier(b.caller(o.secret, loopback...))
	b.allTold()
	third := outbox.EventID(task, 3).String()
	require.Equal(t, []string{first, first, third}, o.taken(task))
	posts := o.seen()
	require.Equal(t, posts[0].body, posts[1].body)

	// It was only asleep, and wakes while the next update is on its way, in a row that
	// looks like the one it had: its claim is over and changes nothing.
	entered, let := make(chan struct{}), make(chan struct{})
	free := sync.OnceFunc(func() { close(let) })
	t.Cleanup(free)
	o.answers(func(*http.Request, string, string) int { entered <- struct{}{}; <-let; return 200 })
	b.moves(task, 0, "redriven", "started")
	receive(t, entered)
	row := "SELECT format('%s %s %s %s', told, upto, claim, due_at) FROM callback"
	before := ask[string](b, row)
	awake()
	bury()
	require.Equal(t, before, ask[string](b, row))
	free()
	b.allTold()
	require.Equal(t, []string{first, first, third, outbox.EventID(task, 5).String()}, o.taken(task))
	require.Zero(t, ask[int](b, "SELECT count(*) FROM callback_given_up"))
}

// A host that never answers holds its own places and no others.
func TestSlowHostDoesNotHoldUpAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	slow, brisk := newOrchestrator(t), newOrchestrator(t)
	slow.answers(func(r *http.Request, _, _ string) int { <-r.Context().Done(); return 0 })
	for range 50 {
		b.moves(b.called(slow.URL), 0, "started")
	}
	c, stop := b.courier(b.caller(brisk.secret, loopback...), func(cfg *outbox.CallbackConfig) { cfg.Places, cfg.PerHost, cfg.Timeout = 8, 4, time.Minute })
	waitFor(t, "the slow host's places to be taken", func() bool { return ask[int](b, "SELECT count(*) FROM callback WHERE claim > 0") == 4 })
	var tasks []uuid.UUID
	for range 50 {
		task := b.called(brisk.URL)
		b.moves(task, 0, "started", "completed")
		tasks = append(tasks, task)
	}
	c.Wake()
	waitFor(t, "the brisk host to be told all", func() bool { return ask[int](b, "SELECT count(*) FROM callback") == 50 })
	for _, task := range tasks {
		require.Len(t, brisk.taken(task), 2)
	}
	require.EqualValues(t, 100, c.Taken())
	require.Equal(t, 4, ask[int](b, "SELECT count(*) FROM callback WHERE claim > 0"))

	// Who is asked to stop hangs up, and what it had is free at once, without a mark.
	slow.CloseClientConnections()
	slow.answers(func(*http.Request, string, string) int { return 200 })
	stop()
	b.courier(b.caller(slow.secret, loopback...))
	b.allTold()
}

// scripted answers calls from a script, without a network.
type scripted func(ctx context.Context, address, id string) error

func (s scripted) Call(ctx context.Context, address, id string, _ []byte) error {
	return s(ctx, address, id)
}

// A host that is away is left alone, but for one call now and then, however many
// tasks wait for it.
func TestHostThatIsAwayIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for n := range 200 {
		b.moves(b.called(fmt.Sprintf("http://away.example.org/%d", n)), 0, "started")
	}
	var mu sync.Mutex
	calls, back := 0, false
	tried := make(chan struct{}, 10_000)
	_, stop := b.courier(scripted(func(context.Context, string, string) error {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if back {
			return nil
		}
		tried <- struct{}{}
		return errors.New("no answer")
	}), func(cfg *outbox.CallbackConfig) { cfg.OpenFor = time.Hour })
	for range 10 {
		receive(t, tried)
	}
	waitFor(t, "all to be back", func() bool {
		return b.log.says("now=open") && ask[int](b, "SELECT count(*) FROM callback WHERE due_at > now() + interval '1 s'") == 0
	})
	stop()
	require.LessOrEqual(t, calls, 10+16, "those that were on their way")
	mu.Lock()
	back = true
	mu.Unlock()
	b.courier(scripted(func(context.Context, string, string) error { return nil }))
	b.allTold()
}

// An address that may not be called is given up at once, with the reason; so is one
// that is gone for good. The task's later updates go on.
func TestGivenUpAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := newOrchestrator(t)
	inside := b.called(o.URL + "/?key=s3cret")
	b.moves(inside, 0, "created", "started")
	_, stop := b.courier(b.caller(o.secret)) // no private network is allowed
	b.allTold()
	stop()
	require.Empty(t, o.seen())
	require.Equal(t, "GIVEN_UP 2 1 the address is not one that may be called",
		ask[string](b, "SELECT format('%s %s %s %s', state, seq, tries, problem) FROM report.callback WHERE task_id = $1", inside))
	require.Contains(t, b.log.String(), "callback given up")
	require.NotContains(t, b.log.String(), "s3cret")

	var gone string
	o.answers(func(_ *http.Request, _, id string) int {
		if id == gone {
			return 410
		}
		return 200
	})
	task := b.called(o.URL)
	gone = outbox.EventID(task, 3).String()
	b.moves(task, 0, "created", "started", "retry", "started", "completed")
	b.courier(b.caller(o.secret, loopback...))
	b.allTold()
	require.Equal(t, []string{outbox.EventID(task, 2).String(), outbox.EventID(task, 4).String(), outbox.EventID(task, 5).String()}, o.taken(task))
	require.Equal(t, "GIVEN_UP 3 1 the answer is 410 Gone",
		ask[string](b, "SELECT format('%s %s %s %s', state, seq, tries, problem) FROM report.callback WHERE task_id = $1", task))
}

// An answer that says no is asked again, ever more slowly, and opens no breaker.
func TestRefusedIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.called("https://example.org/")
	b.moves(task, 0, "started")
	tries := 0
	b.courier(scripted(func(context.Context, string, string) error {
		if tries++; tries <= 30 {
			return &outbox.Refused{Reason: "the answer is 404 Not Found"}
		}
		return nil
	}))
	b.allTold()
	require.Equal(t, 31, tries)
	require.NotContains(t, b.log.String(), "breaker")
}

// A host that asks to be left alone for a while is, for no longer than the policy's longest
// pause.
func TestRetryAfterIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for address, asked := range map[string]time.Duration{
		"https://a.example.org/": 30 * time.Second, "https://b.example.org/": time.Hour,
	} {
		task := b.called(address)
		b.moves(task, 0, "started")
		_, stop := b.courier(scripted(func(_ context.Context, to, _ string) error {
			require.Equal(t, address, to)
			return retry.Postpone(errors.New("the answer is 429 Too Many Requests"), asked)
		}), func(cfg *outbox.CallbackConfig) { cfg.BackoffMax = time.Minute })
		var wait float64
		require.Eventually(t, func() bool {
			err := b.pool.QueryRow(t.Context(), "SELECT extract(epoch FROM due_at - now()) FROM callback WHERE task_id = $1 AND tries = 1", task).Scan(&wait)
			return err == nil
		}, patience, 10*time.Millisecond)
		stop()
		require.InDelta(t, min(asked, time.Minute).Seconds(), wait, 20)
		b.force("DELETE FROM callback")
	}
}

// What nobody takes for days is given up when a call was in vain once more: that
// update when its host is there, all that are as old when it is away.
func TestGivenUpForItsAge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.called("https://example.org/")
	b.moves(old, 73*time.Hour, "created", "started")
	b.moves(old, time.Hour, "completed")
	refuse := true
	_, stop := b.courier(scripted(func(context.Context, string, string) error {
		if refuse {
			refuse = false
			return &outbox.Refused{Reason: "the answer is 403 Forbidden"}
		}
		return nil
	}))
	b.allTold()
	stop()
	require.Equal(t, "2 the answer is 403 Forbidden", ask[string](b, "SELECT string_agg(seq || ' ' || problem, ',') FROM callback_given_up"))

	var young uuid.UUID
	for range 40 {
		b.moves(b.called("https://away.example.org/"), 80*time.Hour, "created", "started", "completed")
	}
	young = b.called("https://away.example.org/")
	b.moves(young, 80*time.Hour, "created", "started")
	b.moves(young, time.Hour, "retry")
	_, stop = b.courier(scripted(func(context.Context, string, string) error { return errors.New("no answer: connection refused") }))
	waitFor(t, "all the old ones to be given up", func() bool {
		return ask[int](b, "SELECT count(*) FROM callback_given_up") == 1+2*40+1 && ask[int](b, "SELECT count(*) FROM callback") == 1
	})
	stop()
	require.Equal(t, 2, ask[int](b, "SELECT told FROM callback WHERE task_id = $1", young))
	require.Contains(t, b.log.String(), "callback")
	var taken []string
	b.courier(scripted(func(_ context.Context, _, id string) error { taken = append(taken, id); return nil }))
	b.allTold()
	require.Equal(t, []string{outbox.EventID(young, 3).String()}, taken)
}

// Many processes, moves that go on meanwhile, and answers of every kind: each update is
// acknowledged once or given up once, and in order.
func TestCallbackOrderUnderAnything(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rapid.Check(t, func(r *rapid.T) {
		tasks := make([]uuid.UUID, rapid.IntRange(1, 4).Draw(r, "tasks"))
		seqs := make([]int32, len(tasks))
		want := map[uuid.UUID][]string{}
		var mu sync.Mutex
		got, inside := map[string][]string{}, map[string]bool{}
		answers := rapid.SliceOfN(rapid.SampledFrom([]string{"yes", "yes", "yes", "no", "away", "final"}), 40, 40).Draw(r, "answers")
		caller := scripted(func(_ context.Context, address, id string) error {
			mu.Lock()
			defer mu.Unlock()
			require.False(t, inside[address], "two of one task on their way")
			inside[address] = true
			answer := "yes"
			if len(answers) > 0 {
				answer, answers = answers[0], answers[1:]
			}
			mu.Unlock()
			runtime.Gosched()
			mu.Lock()
			inside[address] = false
			switch answer {
			case "no":
				return &outbox.Refused{Reason: "no"}
			case "away":
				return errors.New("away")
			case "final":
				got[address] = append(got[address], id)
				return &outbox.Refused{Reason: "final", Final: true}
			}
			got[address] = append(got[address], id)
			return nil
		})
		for i := range tasks {
			tasks[i] = b.called(fmt.Sprintf("https://example.org/%d", i))
		}
		var stops []func()
		for range rapid.IntRange(1, 3).Draw(r, "processes") {
			_, stop := b.courier(caller)
			stops = append(stops, stop)
		}
		for range rapid.IntRange(1, 12).Draw(r, "moves") {
			i := rapid.IntRange(0, len(tasks)-1).Draw(r, "task")
			types := rapid.SliceOfN(rapid.SampledFrom([]string{"started", "retry", "released", "completed"}), 1, 3).Draw(r, "types")
			for _, kind := range types {
				if seqs[i]++; kind != "released" {
					want[tasks[i]] = append(want[tasks[i]], outbox.EventID(tasks[i], seqs[i]).String())
				}
			}
			b.moves(tasks[i], 0, types...)
		}
		b.allTold()
		for _, stop := range stops {
			stop()
		}
		for i, task := range tasks {
			require.Equal(r, want[task], got[fmt.Sprintf("https://example.org/%d", i)])
		}
		b.exec("DELETE FROM callback_given_up")
	})
}

// A database that is away loses nothing: what came back is written when it answers.
func TestSettledWhenTheDatabaseAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.called("https://example.org/")
	b.moves(task, 0, "started")
	called, let := make(chan struct{}, 10), make(chan struct{})
	b.courier(scripted(func(context.Context, string, string) error {
		called <- struct{}{}
		<-let
		return nil
	}))
	receive(t, called)
	holder, err := b.pool.Begin(b.ctx)
	require.NoError(t, err)
	defer holder.Rollback(b.ctx)
	_, err = holder.Exec(b.ctx, "SELECT FROM callback FOR UPDATE")
	require.NoError(t, err)
	close(let)
	waitFor(t, "the mark to wait", func() bool {
		return ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 1
	})
	b.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
	waitFor(t, "the failure to be noticed", func() bool { return b.log.says("the database keeps them") })
	require.NoError(t, holder.Rollback(b.ctx))
	b.allTold()
	require.Empty(t, called, "it was called once")
}

// One row that somebody has locked keeps no other callback from being made or settled,
// and is settled without a second call when the lock is gone.
func TestOneLockedCallbackHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	near := *b // with the engine's own patience for locks
	var err error
	near.pool, err = pgpool.Open(t.Context(), dbtest.URL(b.pool), pgpool.Config{Engine: true, Name: "engine"})
	require.NoError(t, err)
	t.Cleanup(near.pool.Close)
	held := b.called("https://example.org/held")
	b.moves(held, 0, "started")
	called, let := make(chan string, 99), make(chan struct{})
	near.courier(scripted(func(_ context.Context, address, _ string) error {
		called <- address
		if address == "https://example.org/held" {
			<-let
		}
		return nil
	}))
	require.Equal(t, "https://example.org/held", receive(t, called))
	holder, err := b.pool.Begin(b.ctx)
	require.NoError(t, err)
	defer holder.Rollback(b.ctx)
	_, err = holder.Exec(b.ctx, "SELECT FROM callback WHERE task_id = $1 FOR UPDATE", held)
	require.NoError(t, err)
	close(let)
	for range 3 { // one after the other
		other := b.called("https://example.org/other")
		b.moves(other, 0, "started", "completed")
		waitFor(t, "another to be settled", func() bool {
			return ask[int](b, "SELECT count(*) FROM callback WHERE task_id = $1", other) == 0
		})
	}
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM callback"))
	require.NoError(t, holder.Rollback(b.ctx))
	b.allTold()
	require.Len(t, called, 6, "nobody was called twice")
}
