package spans

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/jobs"
)

// ids are random, except for the spans of attempts, whose ids are known before the span starts.
type ids struct{}

// NewIDs is called for a span that begins a trace.
func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if id, span, ok := jobs.PresetSpanIDs(ctx); ok {
		return id, span
	}
	var id trace.TraceID
	binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(id[8:], randomID())
	return id, randomSpanID()
}

// NewSpanID is called for a span within a trace.
func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	if _, span, ok := jobs.PresetSpanIDs(ctx); ok {
		return span
	}
	return randomSpanID()
}

func randomSpanID() (span trace.SpanID) {
	binary.NativeEndian.PutUint64(span[:], randomID())
	return span
}

// randomID returns a random number other than zero, which would be an invalid id.
func randomID() uint64 {
	for {
		if n := rand.Uint64(); n != 0 {
			return n
		}
	}
}
