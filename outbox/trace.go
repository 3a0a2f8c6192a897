package outbox

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

// mostLinks bounds the tasks that the span of one round is linked to.
const mostLinks = 32

// span is of one round on its way to the bus. It is no part of a message: a
// redelivery must be equal to the byte, so a message knows its task's span alone. A
// round that tells of no sampled task has none.
func (r *Relay) span(ctx context.Context, batch []told) (context.Context, trace.Span) {
	var links []trace.Link
	if r.cfg.Tracer != nil {
		links = linksOf(batch)
	}
	if links == nil {
		return ctx, noop.Span{}
	}
	return r.cfg.Tracer.Start(ctx, "publish task events",
		trace.WithSpanKind(trace.SpanKindProducer), trace.WithLinks(links...),
		trace.WithAttributes(
			semconv.MessagingSystemKey.String("nats"), semconv.MessagingOperationName("publish"), semconv.MessagingOperationTypeSend,
			attribute.Int("messaging.batch.message_count", len(batch))))
}

func linksOf(batch []told) (links []trace.Link) {
	for i := range batch {
		header := batch[i].Header["traceparent"]
		if len(header) != 55 || header[54]&1 == 0 { // the sampled flag, without parsing what has none
			continue
		}
		task := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": header}))
		known := slices.ContainsFunc(links, func(l trace.Link) bool { return l.SpanContext.Equal(task) })
		if !task.IsSampled() || known {
			continue
		}
		if links = append(links, trace.Link{SpanContext: task}); len(links) == mostLinks {
			break
		}
	}
	return links
}

// endSpan says whether the bus took the round.
func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetAttributes(semconv.ErrorTypeOther)
		span.SetStatus(codes.Error, "")
	}
	span.End()
}
