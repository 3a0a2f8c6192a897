// Package spans makes OpenTelemetry's spans and takes them to those who keep them:
// the Observability Service, and a collector that speaks OTLP. It is best effort.
// Spans wait in a queue of bounded length; what finds it full, or is not taken in
// time, is dropped and counted. Whoever ends a span never waits.
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

// Config says who gets spans, and of what. Nobody named: there is no tracing.
type Config struct {
	Observability Sender // default none
	// OTLP takes spans to a collector too; OTEL_EXPORTER_OTLP_* say where, and are
	// read by OpenTelemetry. Default false.
	OTLP bool
	// Sampled says that OTEL_TRACES_SAMPLER tells which traces to take, and
	// OpenTelemetry reads it. Default false: whatever the caller decided, and of the
	// traces that begin here Roots each second.
	Sampled bool
	Roots   int           // default 100
	Queue   int           // spans that may wait, for each who gets them; default 8192
	Delay   time.Duration // until a batch that is not full goes out; default 1 s
	Timeout time.Duration // of one batch on its way; default 5 s

	// Version and Instance describe this process, beside what
	// OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say, which goes before.
	Version, Instance string
	Logger            *slog.Logger // default slog.Default
}

// Spans is tracing at work; nil is none, and every method may be called on it.
type Spans struct {
	provider *sdktrace.TracerProvider
	doors    []*door
	end      context.CancelFunc // of whatever is on its way
}

// New begins tracing. It calls nobody. It answers nil where nobody gets spans.
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
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	s := &Spans{end: end}
	if cfg.Observability != nil {
		s.doors = append(s.doors, newDoor(life, "observability", otlptrace.NewUnstarted(observability{cfg.Observability}), cfg))
	}
	if cfg.OTLP {
		otlp, err := otlptracehttp.New(ctx)
		if err != nil {
			_ = s.Close(ctx)
			return nil, fmt.Errorf("tracing: otlp: %w", err)
		}
		s.doors = append(s.doors, newDoor(life, "otlp", otlp, cfg))
	}
	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(about), sdktrace.WithIDGenerator(ids{})}
	if !cfg.Sampled {
		options = append(options, sdktrace.WithSampler(sdktrace.ParentBased(newRoots(cfg.Roots))))
	}
	for _, d := range s.doors {
		options = append(options, sdktrace.WithSpanProcessor(d))
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

// Tracer makes spans for one room; nil where there is no tracing.
func (s *Spans) Tracer(room string) trace.Tracer {
	if s == nil {
		return nil
	}
	return s.provider.Tracer("github.com/seed-3f7a0631/tes/" + room)
}

// Dropped counts the spans that somebody did not get.
func (s *Spans) Dropped() (n int64) {
	if s != nil {
		for _, d := range s.doors {
			n += d.dropped.Load()
		}
	}
	return n
}

// closeTime bounds the last words.
const closeTime = 2 * time.Second

// Close takes away what waits, for two seconds at most, and ends tracing.
func (s *Spans) Close(ctx context.Context) error {
	if s == nil {
		return nil
	}
	defer s.end()
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	var all sync.WaitGroup // each has the whole time, whatever becomes of the others
	for _, d := range s.doors {
		all.Go(func() { _ = d.Shutdown(ctx) })
	}
	all.Wait()
	s.end()
	for _, d := range s.doors {
		<-d.closed // what was on its way has let go
		d.say(true)
	}
	return nil
}
