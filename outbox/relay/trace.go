package relay

import (
	"context"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// mostTold bounds the tasks that the span of one round knows of.
const mostTold = 32

// span is of one round on its way to the bus. It is no part of a message: a
// redelivery must be equal to the byte, so a message knows its task's span alone. It
// is in the trace of the first task that is sampled, and linked to the others; a round
// that tells of none has no span.
func (r *Relay) span(ctx context.Context, batch []told) (context.Context, trace.Span) {
	var tasks []trace.Link
	if r.cfg.Tracer != nil {
		tasks = sampled(batch)
	}
	if tasks == nil {
		return ctx, noop.Span{}
	}
	return r.cfg.Tracer.Start(trace.ContextWithRemoteSpanContext(ctx, tasks[0].SpanContext), "publish task events",
		trace.WithSpanKind(trace.SpanKindProducer), trace.WithLinks(tasks[1:]...),
		trace.WithAttributes(
			semconv.MessagingSystemKey.String("nats"), semconv.MessagingOperationName("publish"), semconv.MessagingOperationTypeSend,
			attribute.Int("messaging.batch.message_count", len(batch))))
}

// sampled are the tasks of a batch whose traces are taken.
func sampled(batch []told) (tasks []trace.Link) {
	for i := range batch {
		header := batch[i].Header["traceparent"]
		if len(header) != 55 || header[54]&1 == 0 { // the sampled flag, without parsing what has none
			continue
		}
		task := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": header}))
		known := slices.ContainsFunc(tasks, func(l trace.Link) bool { return l.SpanContext.Equal(task) })
		if !task.IsSampled() || known {
			continue
		}
		if tasks = append(tasks, trace.Link{SpanContext: task}); len(tasks) == mostTold {
			break
		}
	}
	return tasks
}

// endSpan says whether the bus took the round.
func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetAttributes(semconv.ErrorTypeOther)
		span.SetStatus(codes.Error, "")
	}
	span.End()
}
