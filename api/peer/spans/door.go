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

// door is where spans go out to one of those who get them. OpenTelemetry's batching
// is behind it; the door stands in front, because batching tells nobody what it drops.
type door struct {
	name    string
	log     *slog.Logger
	batch   sdktrace.SpanProcessor
	most    int64
	waiting atomic.Int64 // in the queue, or on their way
	dropped atomic.Int64
	closed  chan struct{} // when nothing is on its way any more

	mu    sync.Mutex
	last  error     // why the last ones were dropped; guarded by mu
	said  time.Time // when we last spoke of it; guarded by mu
	known int64     // how many we spoke of; guarded by mu
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

// OnEnd takes a span, or drops it. It never waits: the queue behind it has room for
// all that it lets through.
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

// Shutdown takes away what waits, until ctx ends.
func (d *door) Shutdown(ctx context.Context) error { return d.batch.Shutdown(ctx) }

// ForceFlush takes away what waits.
func (d *door) ForceFlush(ctx context.Context) error { return d.batch.ForceFlush(ctx) }

func (d *door) drop(n int, why error) {
	d.dropped.Add(int64(n))
	d.mu.Lock()
	d.last = why
	d.mu.Unlock()
	d.say(false)
}

// sayEvery spaces the lines about dropped spans.
const sayEvery = time.Minute

// say logs what was dropped since it was last said.
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

// carrier takes batches away, in the batching's own goroutine.
type carrier struct {
	door *door
	to   sdktrace.SpanExporter
	life context.Context //nolint:containedctx // it is the process's, not a call's
}

// ExportSpans takes a batch away. What fails is dropped, counted, and no error to
// anybody: OpenTelemetry would print it.
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

// Shutdown comes after the last batch.
func (c *carrier) Shutdown(ctx context.Context) error {
	defer close(c.door.closed)
	return c.to.Shutdown(ctx)
}
