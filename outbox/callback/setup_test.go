package callback_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox/callback"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/webhook"
)

// testBundle is outboxtest.Bundle with the helpers of this package's tests.
type testBundle struct{ *outboxtest.Bundle }

func setup(t *testing.T) *testBundle {
	t.Helper()
	return &testBundle{outboxtest.New(t)}
}

// ask returns the only value of a query's only row.
func ask[T any](b *testBundle, sql string, args ...any) T {
	b.T.Helper()
	return outboxtest.Ask[T](b.Bundle, sql, args...)
}

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
		var update callback.StatusUpdate
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
	b.T.Helper()
	secrets, err := webhook.ParseSecrets(secret)
	require.NoError(b.T, err)
	caller := webhook.New(webhook.Config{Secrets: secrets, Allow: allow})
	b.T.Cleanup(caller.Close)
	return caller
}

// dispatch runs a dispatcher until the test ends, with intervals of milliseconds; stop waits for its end.
func (b *testBundle) dispatch(caller callback.Caller, change ...func(*callback.Config)) (c *callback.Dispatcher, stop func()) {
	b.T.Helper()
	cfg := callback.Config{
		PollInterval: 5 * time.Millisecond, Backoff: time.Millisecond, BackoffMax: 10 * time.Millisecond, RefusedMax: 20 * time.Millisecond,
		OpenFor: 10 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(b.Log, nil)),
	}
	for _, fn := range change {
		fn(&cfg)
	}
	c = callback.New(b.Pool, caller, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		outboxtest.Receive(b.T, ended)
	})
	b.T.Cleanup(stop)
	return c, stop
}

// called inserts a task that wants to be called back.
func (b *testBundle) called(address string) uuid.UUID {
	b.T.Helper()
	id := b.Task()
	b.Force("UPDATE task SET callback_url = $2, step_id = 's-1' WHERE task_id = $1", id, address)
	return id
}

// moves commits moves of a task as the engine does: the events, and what is owed.
func (b *testBundle) moves(task uuid.UUID, age time.Duration, types ...string) {
	b.T.Helper()
	b.Exec(`
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

// allTold waits until nothing is owed.
func (b *testBundle) allTold() {
	b.T.Helper()
	outboxtest.WaitFor(b.T, "all callbacks to be made", func() bool { return ask[int](b, "SELECT count(*) FROM callback") == 0 })
}
