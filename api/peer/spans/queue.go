package spans

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// queue bounds and counts the spans that wait for one receiver. Spans pass it on their way to
// OpenTelemetry's batch processor, which would drop spans without a report.
type queue struct {
	name    string
	log     *slog.Logger
	batch   sdktrace.SpanProcessor
	most    int64
	waiting atomic.Int64 // in the queue or being sent
	dropped atomic.Int64
	closed  chan struct{} // closed after the last batch

	mu       sync.Mutex
	lastErr  error     // the reason for the last drop; guarded by mu
	logged   time.Time // time of the last log line; guarded by mu
	reported int64     // drops until the last log line; guarded by mu
}

var errFull = errors.New("the queue of spans is full")

func newQueue(life context.Context, name string, to sdktrace.SpanExporter, cfg Config) *queue {
	q := &queue{name: name, log: cfg.Logger, most: int64(cfg.Queue), closed: make(chan struct{})}
	q.batch = sdktrace.NewBatchSpanProcessor(&exporter{queue: q, to: to, life: life},
		sdktrace.WithMaxQueueSize(cfg.Queue), sdktrace.WithMaxExportBatchSize(min(512, cfg.Queue)),
		sdktrace.WithBatchTimeout(cfg.Delay), sdktrace.WithExportTimeout(cfg.Timeout))
	return q
}

// OnStart does nothing.
func (q *queue) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd queues a span or drops it. It never blocks: the batch processor has room for every span that
// is let through.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}

	// Counted before it is compared, because several spans may end at the same moment.
	if q.waiting.Add(1) > q.most {
		q.waiting.Add(-1)
		q.drop(1, errFull)
		return
	}

	q.batch.OnEnd(s)
}

// Shutdown sends the queued spans, until ctx ends.
func (q *queue) Shutdown(ctx context.Context) error { return q.batch.Shutdown(ctx) }

// ForceFlush sends the queued spans.
func (q *queue) ForceFlush(ctx context.Context) error { return q.batch.ForceFlush(ctx) }

func (q *queue) drop(n int, why error) {
	q.dropped.Add(int64(n))
	q.mu.Lock()
	q.lastErr = why
	q.mu.Unlock()
	q.report(false)
}

// reportEvery is the interval between log lines about dropped spans.
const reportEvery = time.Minute

// report logs the drops since the last log line, at most once a minute unless now.
func (q *queue) report(now bool) {
	q.mu.Lock()
	n := q.dropped.Load()
	why, fresh := q.lastErr, n-q.reported
	due := fresh > 0 && (now || time.Since(q.logged) >= reportEvery)
	if due {
		q.logged, q.reported = time.Now(), n
	}

	q.mu.Unlock()
	if due {
		q.log.Warn("spans were dropped; tasks are not affected", "to", q.name, "spans", fresh, "since_start", n, "error", why)
	}
}

// exporter sends batches, in the batch processor's goroutine.
type exporter struct {
	queue *queue
	to    sdktrace.SpanExporter
	life  context.Context // of the process; Close cancels it
}

// ExportSpans sends a batch. A failed batch is dropped and counted. It returns no error, because
// OpenTelemetry would print it.
func (c *exporter) ExportSpans(ctx context.Context, batch []sdktrace.ReadOnlySpan) error {
	// Close must not wait for a receiver that hangs.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	err := c.to.ExportSpans(ctx, batch)
	c.queue.waiting.Add(-int64(len(batch)))
	if err != nil {
		c.queue.drop(len(batch), err)
	}
	return nil
}

// Shutdown is called after the last batch.
func (c *exporter) Shutdown(ctx context.Context) error {
	defer close(c.queue.closed)
	return c.to.Shutdown(ctx)
}
