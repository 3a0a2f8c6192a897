package spans

import (
	"fmt"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// roots samples traces that begin here, up to a number per second.
type roots struct{ left *rate.Limiter }

func newRoots(perSecond int) roots {
	return roots{rate.NewLimiter(rate.Limit(perSecond), perSecond)}
}

// ShouldSample samples a trace while this second's number is not used up.
func (r roots) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	decision := sdktrace.Drop
	if r.left.Allow() {
		decision = sdktrace.RecordAndSample
	}
	return sdktrace.SamplingResult{Decision: decision, Tracestate: trace.SpanContextFromContext(p.ParentContext).TraceState()}
}

// Description names the sampler.
func (r roots) Description() string { return fmt.Sprintf("Roots{%d/s}", r.left.Burst()) }
