// Package spans creates OpenTelemetry spans and exports them to the Observability Service and to an
// OTLP collector.
//
// Export is best effort. Spans wait in a bounded queue; a span that finds the queue full, or is not
// exported in time, is dropped and counted. Ending a span never blocks.
package spans

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Sender is the Observability Service.
type Sender interface {
	Send(ctx context.Context, batch any) error
}

// Config configures New. Without a receiver there is no tracing.
type Config struct {
	Observability Sender // default: none
	// OTLP exports to a collector too. OpenTelemetry reads its address from OTEL_EXPORTER_OTLP_*.
	// Default: false.
	OTLP bool
	// Sampled leaves sampling to OTEL_TRACES_SAMPLER, which OpenTelemetry reads. Default: false: the
	// caller's decision, and Roots traces per second among those that begin here.
	Sampled bool
	Roots   int           // default: 100
	Queue   int           // spans that may wait for each receiver; default: 8192
	Delay   time.Duration // until a partly filled batch is sent; default: 1 s
	Timeout time.Duration // of sending one batch; default: 5 s

	// Version and Instance describe this process. OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME take
	// precedence.
	Version, Instance string
	Logger            *slog.Logger // default: slog.Default
}

// Spans is the running tracing. Every method may be called on nil, which means no tracing.
type Spans struct {
	provider *sdktrace.TracerProvider
	queues   []*queue
	end      context.CancelFunc // cancels what is being sent
}

// New starts tracing. It sends nothing yet. It returns nil if there is no receiver.
func New(ctx context.Context, cfg Config) (*Spans, error) {
	if cfg.Observability == nil && !cfg.OTLP {
		return nil, nil
	}

	cfg.defaults()
	about, err := resource.New(ctx,
		resource.WithAttributes(
			semconv.ServiceName("task-execution-service"), semconv.ServiceVersion(cfg.Version), semconv.ServiceInstanceID(cfg.Instance)),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("tracing: describe the process: %w", err)
	}

	// Spans outlive the start's context, and are cancelled by Close.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	s := &Spans{end: end}
	if cfg.Observability != nil {
		s.queues = append(s.queues, newQueue(life, "observability", otlptrace.NewUnstarted(observability{cfg.Observability}), cfg))
	}
	if cfg.OTLP {
		otlp, err := otlptracehttp.New(ctx)
		if err != nil {
			_ = s.Close(ctx)
			return nil, fmt.Errorf("tracing: otlp: %w", err)
		}
		s.queues = append(s.queues, newQueue(life, "otlp", otlp, cfg))
	}

	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(about), sdktrace.WithIDGenerator(ids{})}
	if !cfg.Sampled {
		options = append(options, sdktrace.WithSampler(sdktrace.ParentBased(newRoots(cfg.Roots))))
	}

	for _, q := range s.queues {
		options = append(options, sdktrace.WithSpanProcessor(q))
	}

	s.provider = sdktrace.NewTracerProvider(options...)
	return s, nil
}

func (cfg *Config) defaults() {
	if cfg.Roots == 0 {
		cfg.Roots = 100
	}

	if cfg.Queue == 0 {
		cfg.Queue = 8192
	}
	if cfg.Delay == 0 {
		cfg.Delay = time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}

	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
}

// Tracer makes spans for one package; nil without tracing.
func (s *Spans) Tracer(room string) trace.Tracer {
	if s == nil {
		return nil
	}
	return s.provider.Tracer("github.com/seed-3f7a0631/tes/" + room)
}

// Dropped returns the number of spans that a receiver did not get.
func (s *Spans) Dropped() (n int64) {
	if s != nil {
		for _, q := range s.queues {
			n += q.dropped.Load()
		}
	}
	return n
}

// closeTime bounds the last export.
const closeTime = 2 * time.Second

// Close exports the queued spans, for two seconds at most, and ends tracing.
func (s *Spans) Close(ctx context.Context) error {
	if s == nil {
		return nil
	}
	defer s.end()
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	// Each receiver has the whole time, however the others behave.
	var all sync.WaitGroup
	for _, q := range s.queues {
		all.Go(func() { _ = q.Shutdown(ctx) })
	}

	all.Wait()
	s.end()
	for _, q := range s.queues {
		// Nothing is being sent any more.
		<-q.closed
		q.report(true)
	}

	return nil
}
