package callback_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/outbox/callback"
	"github.com/seed-3f7a0631/tes/outbox/webhook"
)

// BenchmarkCallbacks is how fast one process tells one host, over HTTP and signed, what
// has waited for it: two updates a task.
func BenchmarkCallbacks(b *testing.B) {
	pool := dbtest.New(b)
	taker := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer taker.Close()
	for _, sql := range []string{
		`INSERT INTO task (task_id, job_id, created_at, version, type, lane, revision, priority, tenant_id, workflow_id, definition_id, executor, correlation_id, callback_url, input)
			SELECT md5(n::text)::uuid, n, now(), 1, 'AUTOMATED', 'task-execution-automated', 0, 3, '', 'wf', 'd', 'noop', 'c', '` + taker.URL + `', '{}' FROM generate_series(1, $1::integer) n`,
		`INSERT INTO task_event (id, task_id, at, seq, attempt, type, was, now, actor)
			SELECT 2 * g.n + k.n, md5(g.n::text)::uuid, now(), k.n, 1, k.type::task_event_type, 'PENDING', 'RUNNING', 'p'
			FROM generate_series(1, $1::integer) g (n), unnest(ARRAY['started', 'completed']) WITH ORDINALITY k (type, n)`,
		`INSERT INTO callback (task_id, told, upto, since, host)
			SELECT t.task_id, 0, 2, now(), callback_host(t.callback_url) FROM task t WHERE t.job_id <= $1::integer`,
	} {
		_, err := pool.Exec(b.Context(), sql, (b.N+1)/2)
		require.NoError(b, err)
	}
	secrets, err := webhook.ParseSecrets(webhook.NewSecret())
	require.NoError(b, err)
	caller := webhook.New(webhook.Config{Secrets: secrets, Allow: loopback})
	defer caller.Close()
	c := callback.New(pool, caller, callback.Config{Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan struct{})
	b.ResetTimer()
	begun := time.Now()
	go func() { defer close(ended); c.Run(ctx) }()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for c.Delivered() < int64(b.N) {
		<-look.C
	}
	b.ReportMetric(float64(b.N)/time.Since(begun).Seconds(), "updates/s")
	b.StopTimer()
	cancel()
	<-ended
}
