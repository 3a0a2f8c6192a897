package api

import (
	"context"
	"net/http"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/jobs"
)

// trace puts the request's span into its context, as a child of the caller's span. Tasks that the
// request creates keep the span and its sampling decision. Without tracing the caller's own span is
// passed on. Probes have no spans.
func (o *observer) trace(ctx context.Context, c *call, r *http.Request) context.Context {
	// Two headers contradict each other, so neither counts.
	if sent := r.Header["Traceparent"]; len(sent) == 1 {
		ctx = jobs.ContextWithTraceparent(ctx, sent[0])
	}
	if o.tracer != nil && c.path != "/livez" && c.path != "/readyz" {
		ctx, c.span = o.tracer.Start(ctx, "HTTP", trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(c.start))
	}
	// Without tracing this is the caller's own span.
	c.traceparent = jobs.Traceparent(ctx)
	return ctx
}

// endSpan ends the span with the request's result. The path is not recorded, because it may contain
// a lease token; neither is the text of an error, which may contain anything.
func (c *call) endSpan(r *http.Request) {
	if c.span == nil {
		return
	}
	defer c.span.End()
	if !c.span.IsRecording() {
		return
	}

	attrs := make([]attribute.KeyValue, 0, 8)
	name, method := methodOf(r)
	attrs = append(attrs, semconv.HTTPRequestMethodKey.String(method), semconv.URLScheme("http"), attribute.String("tes.request.id", c.id))
	if c.route != "" {
		name += " " + c.route
		attrs = append(attrs, semconv.HTTPRoute(c.route))
	}

	if c.status != 0 {
		attrs = append(attrs, semconv.HTTPResponseStatusCode(c.status))
	}
	if c.caller != nil {
		attrs = append(attrs, attribute.String("tes.caller", c.caller.Name))
	}
	if c.task != "" {
		attrs = append(attrs, attribute.String("tes.task.id", c.task))
	}

	// For servers, 4xx is the client's error and leaves the span's status unset.
	if c.status >= http.StatusInternalServerError {
		attrs = append(attrs, semconv.ErrorTypeKey.String(strconv.Itoa(c.status)))
		c.span.SetStatus(codes.Error, "")
	}

	// The name needs the route, which was unknown at the start.
	c.span.SetName(name)
	c.span.SetAttributes(attrs...)
}

// methodOf returns the method for the span's name and for its attribute. Unknown methods share one
// name, because clients may send any text.
func methodOf(r *http.Request) (name, method string) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return r.Method, r.Method
	}
	return "HTTP", "_OTHER"
}
