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

// door is the queue in front of one receiver of spans. OpenTelemetry's batch processor is behind
// it; the door bounds and counts, because the batch processor reports no drops.
type door struct {
	name    string
	log     *slog.Logger
	batch   sdktrace.SpanProcessor
	most    int64
	waiting atomic.Int64 // in the queue or being sent
	dropped atomic.Int64
	closed  chan struct{} // closed when nothing is being sent any more

	mu    sync.Mutex
	last  error     // why the last spans were dropped; guarded by mu
	said  time.Time // time of the last log line; guarded by mu
	known int64     // drops in that line; guarded by mu
}

var errFull = errors.New("more spans come than are taken away")

func newDoor(life context.Context, name string, to sdktrace.SpanExporter, cfg Config) *door {
	d := &door{name: name, log: cfg.Logger, most: int64(cfg.Queue), closed: make(chan struct{})}
	d.batch = sdktrace.NewBatchSpanProcessor(&carrier{door: d, to: to, life: life},
		sdktrace.WithMaxQueueSize(cfg.Queue), sdktrace.WithMaxExportBatchSize(min(512, cfg.Queue)),
		sdktrace.WithBatchTimeout(cfg.Delay), sdktrace.WithExportTimeout(cfg.Timeout))
	return d
}

// OnStart does nothing.
func (d *door) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd queues a span or drops it. It never blocks: the queue behind it has room for every span
// that passes.
func (d *door) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}

	if d.waiting.Add(1) > d.most {
		d.waiting.Add(-1)
		d.drop(1, errFull)
		return
	}

	d.batch.OnEnd(s)
}

// Shutdown sends the queued spans, until ctx ends.
func (d *door) Shutdown(ctx context.Context) error { return d.batch.Shutdown(ctx) }

// ForceFlush sends the queued spans.
func (d *door) ForceFlush(ctx context.Context) error { return d.batch.ForceFlush(ctx) }

func (d *door) drop(n int, why error) {
	d.dropped.Add(int64(n))
	d.mu.Lock()
	d.last = why
	d.mu.Unlock()
	d.say(false)
}

// sayEvery is the interval between log lines about dropped spans.
const sayEvery = time.Minute

// say logs the drops since the last line.
func (d *door) say(now bool) {
	d.mu.Lock()
	n := d.dropped.Load()
	why, fresh := d.last, n-d.known
	speak := fresh > 0 && (now || time.Since(d.said) >= sayEvery)
	if speak {
		d.said, d.known = time.Now(), n
	}

	d.mu.Unlock()
	if speak {
		d.log.Warn("spans were dropped; tasks are not concerned", "to", d.name, "spans", fresh, "since_start", n, "error", why)
	}
}

// carrier sends batches, in the batch processor's goroutine.
type carrier struct {
	door *door
	to   sdktrace.SpanExporter
	life context.Context //nolint:containedctx // it is the process's, not a call's
}

// ExportSpans sends a batch. A failed batch is dropped and counted. It returns no error, because
// OpenTelemetry would print it.
func (c *carrier) ExportSpans(ctx context.Context, batch []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	err := c.to.ExportSpans(ctx, batch)
	c.door.waiting.Add(-int64(len(batch)))
	if err != nil {
		c.door.drop(len(batch), err)
	}
	return nil
}

// Shutdown is called after the last batch.
func (c *carrier) Shutdown(ctx context.Context) error {
	defer close(c.door.closed)
	return c.to.Shutdown(ctx)
}
