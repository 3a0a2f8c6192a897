package relay_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/relay"
)

// A round is a span in the trace of a task that it tells of, linked to the others, as
// far as somebody looks at them; and the messages know nothing of it.
func TestRoundIsASpan(t *testing.T) {
	t.Parallel()
	b := setup(t)
	told := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(told))
	var all []uuid.UUID
	for i := range 100 {
		task := b.Task()
		if i >= 10 { // the first ten came by no traced request, the next ten by one nobody takes
			b.Force("UPDATE task SET traceparent = $2 WHERE task_id = $1", task, fmt.Sprintf("00-4bf92f3577b34da6a3ce929d0e0e%04d-00f067aa0ba902b7-0%d", i, min(1, (i-10)/10)))
		}
		all = append(all, task)
	}
	refused := false
	b.Bus.Before = func(batch []outbox.Message) error {
		if len(batch) > 20 && !refused {
			refused = true
			return errors.New("away")
		}
		return nil
	}
	b.Flush(all[:20]...)
	b.Relay(b.Bus, func(cfg *relay.Config) { cfg.Tracer = provider.Tracer("test") })
	b.AwaitPublished()
	require.Empty(t, told.Ended(), "nobody looks at these")

	b.Flush(append(all, all...)...)
	b.AwaitPublished()
	outboxtest.WaitFor(t, "two rounds to be told", func() bool { return len(told.Ended()) == 2 })
	failed, done := told.Ended()[0], told.Ended()[1]
	require.Equal(t, codes.Error, failed.Status().Code)
	require.Equal(t, codes.Unset, done.Status().Code)
	require.Equal(t, trace.SpanKindProducer, done.SpanKind())
	require.Equal(t, "4bf92f3577b34da6a3ce929d0e0e0020", done.SpanContext().TraceID().String())
	require.Equal(t, "00f067aa0ba902b7", done.Parent().SpanID().String())
	require.Len(t, done.Links(), 31)
	require.Equal(t, "4bf92f3577b34da6a3ce929d0e0e0021", done.Links()[0].SpanContext.TraceID().String())
	for _, m := range b.Bus.Deliveries() {
		require.NotContains(t, m.Header["traceparent"], done.SpanContext().SpanID().String())
	}
}
