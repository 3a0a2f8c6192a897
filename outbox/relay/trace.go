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

// maxLinkedTasks bounds how many tasks a batch's span is linked to.
const maxLinkedTasks = 32

// startSpan starts the span of a batch on its way to the bus. The span is in the trace of the
// first sampled task and linked to the other sampled tasks; without a sampled task there is no
// span. Messages do not carry it, only their task's span: a redelivery must be equal to the
// byte.
func (r *Relay) startSpan(ctx context.Context, messages []message) (context.Context, trace.Span) {
	var tasks []trace.Link
	if r.cfg.Tracer != nil {
		tasks = sampledTasks(messages)
	}
	// Most deployments sample few tasks: no span without one.
	if tasks == nil {
		return ctx, noop.Span{}
	}

	return r.cfg.Tracer.Start(trace.ContextWithRemoteSpanContext(ctx, tasks[0].SpanContext), "publish task events",
		trace.WithSpanKind(trace.SpanKindProducer), trace.WithLinks(tasks[1:]...),
		trace.WithAttributes(
			semconv.MessagingSystemKey.String("nats"), semconv.MessagingOperationName("publish"), semconv.MessagingOperationTypeSend,
			attribute.Int("messaging.batch.message_count", len(messages))))
}

// sampledTasks returns the spans of the sampled tasks, each once, maxLinkedTasks at most.
func sampledTasks(messages []message) (tasks []trace.Link) {
	for i := range messages {
		// The last digit has the sampled flag. Most headers do not have it and are not parsed.
		header := messages[i].Header["traceparent"]
		if len(header) != 55 || header[54]&1 == 0 {
			continue
		}

		task := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": header}))
		known := slices.ContainsFunc(tasks, func(l trace.Link) bool { return l.SpanContext.Equal(task) })
		if !task.IsSampled() || known {
			continue
		}
		if tasks = append(tasks, trace.Link{SpanContext: task}); len(tasks) == maxLinkedTasks {
			break
		}
	}

	return tasks
}

// endSpan ends the span with the bus's answer.
func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetAttributes(semconv.ErrorTypeOther)
		span.SetStatus(codes.Error, "")
	}

	span.End()
}
