package spans

import (
	"fmt"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// roots takes so many traces a second of those that begin here: all of them where
// little happens, and no more than can be carried where much does.
type roots struct{ left *rate.Limiter }

func newRoots(perSecond int) roots {
	return roots{rate.NewLimiter(rate.Limit(perSecond), perSecond)}
}

// ShouldSample takes a trace while there is something left of the second.
func (r roots) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	decision := sdktrace.Drop
	if r.left.Allow() {
		decision = sdktrace.RecordAndSample
	}
	return sdktrace.SamplingResult{Decision: decision, Tracestate: trace.SpanContextFromContext(p.ParentContext).TraceState()}
}

// Description names the sampler.
func (r roots) Description() string { return fmt.Sprintf("Roots{%d/s}", r.left.Burst()) }
