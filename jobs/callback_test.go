package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/callback"
)

const callbackURL = "https://Orchestrator.Example.org:8443/callbacks?key=s3cret"

func callsBack(req *Request) { req.CallbackURL = callbackURL }

// owed is what a task's callback has not been told.
func (b *testBundle) owed(id uuid.UUID) (types string) {
	b.t.Helper()
	return ask[string](b, `
		SELECT coalesce(string_agg(e.type::text, ' ' ORDER BY e.seq), '')
		FROM callback c
		JOIN task_event e ON e.task_id = c.task_id AND e.seq > c.told AND e.seq <= c.upto AND callback_tells(e.type)
		WHERE c.task_id = $1`, id)
}

// Workflow Orchestrator: store status updates locally and retry. They are stored in
// the commit of the move, whichever statement makes it.
func TestMovesOweACallback(t *testing.T) {
	t.Parallel()
	woken := make(chan struct{}, 100)
	b := setup(t, func(cfg *Config) { cfg.OnCallbacksCommitted = func() { woken <- struct{}{} } })
	b.work(map[string]Registration{
		"noop":   {Executor: does(`{"ok": true}`, nil), Pure: true},
		"http":   {Executor: does("", &Failure{Code: "E", Message: "no", Retryable: ptr(true)})},
		"manual": assigning("ann")["manual"],
	})

	b.becomes(b.create().TaskID, Completed)
	require.Empty(t, woken, "who wants no callback costs nothing")
	require.Zero(t, ask[int](b, "SELECT count(*) FROM callback"))

	done := b.becomes(b.create(callsBack).TaskID, Completed)
	require.Equal(t, "started completed", b.owed(done.TaskID))
	receive(t, woken)

	retried := b.create(callsBack, policy(RetryPolicy{MaxRetries: 1, RetryInterval: 1}), func(req *Request) {
		req.Config.Executor, req.Config.HTTP = "http", &HTTPCall{URL: "https://example.org/"}
	})
	b.becomes(retried.TaskID, Failed)
	require.Equal(t, "started retry started failed", b.owed(retried.TaskID))

	person := b.becomes(b.create(callsBack, manual).TaskID, Assigned)
	_, err := b.Worklist.Reassign(b.ctx, person.TaskID, Actor{Name: "ui"}, Reassignment{AssigneeID: "bob"})
	require.NoError(t, err)
	_, err = b.Cancel(b.ctx, person.TaskID, Actor{Name: "o"})
	require.NoError(t, err)
	require.Equal(t, "assigned assigned canceled", b.owed(person.TaskID))

	require.Equal(t, "orchestrator.example.org:8443", ask[string](b, "SELECT DISTINCT host FROM callback"))
}

// What is for the audit trail alone is not owed: a claim that is given back, a redrive.
func TestReleasesAndRedrivesOweNoCallback(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.work(noop(does("", &Outage{PeerService: "n", Err: errors.New("away")})))
	task := b.create(callsBack)
	b.until(task.TaskID, "released", func(db.Task) bool { return b.story(task.TaskID) == "created started released" })
	w.stop()
	require.Equal(t, "started", b.owed(task.TaskID))
	require.EqualValues(t, 2, ask[int32](b, "SELECT upto FROM callback WHERE task_id = $1", task.TaskID))
}

// postman takes every callback, and remembers which.
type postman struct {
	mu    sync.Mutex
	taken map[string][]string // guarded by mu
}

func (p *postman) Call(_ context.Context, address, id string, _ []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken[address] = append(p.taken[address], id)
	return nil
}

// Workflow Orchestrator: store status updates locally and retry. Moves and callbacks
// of the same tasks in several processes at once: none gets lost, none overtakes, and
// they do not wait for each other in a circle.
func TestCallbacksBesideMoves(t *testing.T) {
	t.Parallel()
	post := &postman{taken: map[string][]string{}}
	first := setup(t)
	second := join(t, first.pool, "p2")
	var dispatchers []*callback.Dispatcher
	for _, b := range []*testBundle{first, second} {
		c := callback.New(b.pool, post, callback.Config{PollInterval: time.Millisecond, Logger: b.cfg.Logger})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); c.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-ended })
		dispatchers = append(dispatchers, c)
		b.cfg.OnCallbacksCommitted = c.Wake
		b.work(noop(func(_ context.Context, job Job) (Result, error) {
			if job.Attempt < 3 {
				return Result{}, &Failure{Code: "E", Message: "not yet", Retryable: ptr(true)}
			}
			return Result{Output: json.RawMessage(`{}`)}, nil
		}))
	}
	tasks := make([]uuid.UUID, 300)
	for i := range tasks {
		tasks[i] = first.create(policy(RetryPolicy{MaxRetries: 5, RetryInterval: 1}), func(req *Request) {
			req.CallbackURL = fmt.Sprintf("https://h%d.example.org/%d", i%3, i)
		}).TaskID
	}
	waitFor(t, "all to be told", func() bool {
		return ask[int](first, "SELECT count(*) FROM task WHERE status <> 'COMPLETED'")+ask[int](first, "SELECT count(*) FROM callback") == 0
	})
	for i, task := range tasks {
		var want []string
		for seq := range int32(6) { // started retry started retry started completed
			want = append(want, outbox.EventID(task, seq+2).String())
		}
		post.mu.Lock()
		require.Equal(t, want, post.taken[fmt.Sprintf("https://h%d.example.org/%d", i%3, i)])
		post.mu.Unlock()
	}
	require.EqualValues(t, 6*len(tasks), dispatchers[0].Delivered()+dispatchers[1].Delivered())
	require.False(t, first.log.says("deadlock") || second.log.says("deadlock"))
}

// A callback of before is not taken back by one that waits for the row's lock.
func TestMoveWhileItsCallbackSettles(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(callsBack, remote)
	_, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "o"}, Update{Status: Running})
	require.NoError(t, err)

	// The one who settles has told all there was, and has not committed yet.
	settle, err := b.pool.Begin(b.ctx)
	require.NoError(t, err)
	defer settle.Rollback(b.ctx)
	_, err = settle.Exec(b.ctx, "DELETE FROM callback WHERE task_id = $1 AND upto = 2", task.TaskID)
	require.NoError(t, err)
	moved := make(chan error, 1)
	go func() {
		_, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "o"}, Update{Status: Completed})
		moved <- err
	}()
	waitFor(t, "the move to wait for the lock", func() bool {
		return ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") > 0
	})
	require.NoError(t, settle.Commit(b.ctx))
	require.NoError(t, receive(t, moved))
	require.Equal(t, "completed", b.owed(task.TaskID))
}

func TestCallbackAddressesThatCannotBe(t *testing.T) {
	t.Parallel()
	b := setup(t, func(cfg *Config) {
		cfg.CheckCallback = func(address string) error {
			if address == "https://example.org/off" {
				return errors.New("callbacks are off")
			}
			return nil
		}
	})
	for address, why := range map[string]string{
		"https://user:s3cret@example.org/": "user name",
		"https://s3cret@example.org/":      "user name",
		"ftp://example.org/":               "http or https",
		"file:///etc/passwd":               "host",
		"http:///path":                     "host",
		"http://:80/":                      "host",
		"http:example.org":                 "host",
		"http://s3cret:%zz@[/":             "host",
		"https://example.org/off":          "callbacks are off",
	} {
		_, _, err := b.Create(b.ctx, request(func(req *Request) { req.CallbackURL = address }))
		var bad *Invalid
		require.ErrorAs(t, err, &bad, address)
		require.Contains(t, bad.Message, why, address)
		require.NotContains(t, bad.Message, "s3cret")
		require.Equal(t, "/callbackUrl", bad.Violations[0].Path)
	}
	for _, address := range []string{"https://example.org", "http://[2606:2800:220:1::1]:80/x?y=z#f", "http://127.0.0.1:1/"} {
		b.create(func(req *Request) { req.CallbackURL = address })
	}
}

// The host that a row waits behind, as SQL and as nobody's secret.
func TestCallbackHost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for address, want := range map[string]string{
		"https://A.example.org/x":             "a.example.org",
		"http://a:1?x@y":                      "a:1",
		"http://user:s3cret@h:2/":             "h:2",
		"http://a/b@c":                        "a",
		"http://[::1]:80/":                    "[::1]:80",
		"nonsense":                            "",
		"":                                    "",
		"http://user:s3cret@":                 "",
		"http://h#@s3cret":                    "h",
		"https://two@s3cret@host.example.org": "host.example.org",
	} {
		require.Equal(t, want, ask[string](b, "SELECT callback_host($1)", address), address)
	}
	require.Equal(t, "", ask[string](b, "SELECT callback_host(NULL)"))
}
