package spans

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Transport makes a span for each request to a service and sends the span's context along. Without
// tracing it forwards the caller's context. The URL is not recorded, because it may contain a
// person's name or a key; nor are headers and bodies.
func (s *Spans) Transport(service string) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		return &transport{next: next, service: service, tracer: s.Tracer("api/peer")}
	}
}

type transport struct {
	next    http.RoundTripper
	service string
	tracer  trace.Tracer
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	if t.tracer == nil {
		return t.next.RoundTrip(withTraceparent(r, ctx))
	}

	ctx, span := t.tracer.Start(ctx, r.Method+" "+t.service, trace.WithSpanKind(trace.SpanKindClient))
	defer span.End()
	if span.IsRecording() {
		span.SetAttributes(
			semconv.HTTPRequestMethodKey.String(r.Method), semconv.ServerAddress(r.URL.Hostname()), attribute.String("peer.service", t.service))
		if port, err := strconv.Atoi(r.URL.Port()); err == nil {
			span.SetAttributes(semconv.ServerPort(port))
		}
	}

	response, err := t.next.RoundTrip(withTraceparent(r, ctx))
	switch {
	case !span.IsRecording():
	case err != nil:
		span.SetAttributes(semconv.ErrorTypeKey.String(kind(err)))
		span.SetStatus(codes.Error, kind(err))
	default:
		span.SetAttributes(semconv.HTTPResponseStatusCode(response.StatusCode))
		if response.StatusCode >= http.StatusBadRequest {
			span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(response.StatusCode)))
			span.SetStatus(codes.Error, "")
		}
	}
	return response, err
}

// withTraceparent returns the request with the header of ctx's span. A transport may not modify the request
// that it was given.
func withTraceparent(r *http.Request, ctx context.Context) *http.Request { //nolint:revive // it is the request's context that changes
	header := jobs.Traceparent(ctx)
	if header == "" {
		return r
	}
	r = r.WithContext(ctx)
	r.Header = r.Header.Clone()
	r.Header.Set("Traceparent", header)
	return r
}

// kind classifies the error of a request without a response.
func kind(err error) string {
	switch {
	case errors.Is(err, context.Canceled):
		return "cancelled"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "connection"
}
