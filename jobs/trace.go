package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/db"
)

// All attempts of a task are spans of one trace, the one that task.traceparent
// names, and an attempt is one span, whoever ran it: it is told with the move that
// ends it, under the fence of that move. Whoever comes late tells nothing; an
// attempt that was given back has not been, and its number's next bearer has its
// span. For that its id is derived, as event ids are: no row holds it, and yet a
// worker's spans have their parent before it is told, and the next attempt its link.

// The names of what we tell of a task. Never its input, output, context or error
// message: those may hold anything.
const (
	attrTask       = attribute.Key("tes.task.id")
	attrAttempt    = attribute.Key("tes.task.attempt")
	attrType       = attribute.Key("tes.task.type")
	attrLane       = attribute.Key("tes.task.lane")
	attrDefinition = attribute.Key("tes.task.definition")
	attrOutcome    = attribute.Key("tes.task.outcome")
)

// attemptSpan is an attempt, as its span tells of it.
type attemptSpan struct {
	task        uuid.UUID
	attempt     int32
	kind        Type
	lane        string
	definition  string
	traceparent *string
	startedAt   time.Time
}

// runningSpan is the attempt of a task that runs; nil where none does.
func runningSpan(task db.Task) *attemptSpan {
	if task.Status != db.TaskStatusRUNNING || task.StartedAt == nil {
		return nil
	}
	return &attemptSpan{
		task: task.TaskID, attempt: task.Attempt, kind: Type(task.Type), lane: string(task.Lane),
		definition: task.DefinitionID, traceparent: task.Traceparent, startedAt: *task.StartedAt,
	}
}

// wholeSpan is the attempt that somebody is about to begin and end in one word; a
// person's took as long as it was their turn.
func wholeSpan(task db.Task, at time.Time) *attemptSpan {
	if task.Status == db.TaskStatusASSIGNED && task.AssignedAt != nil {
		at = *task.AssignedAt
	}
	task.Status, task.Attempt, task.StartedAt = db.TaskStatusRUNNING, task.Attempt+1, &at
	return runningSpan(task)
}

// attemptSpanID is the id of an attempt's span.
func attemptSpanID(task uuid.UUID, attempt int32) (id trace.SpanID) {
	var key [20]byte
	copy(key[:], task[:])
	binary.BigEndian.PutUint32(key[16:], uint32(attempt))
	sum := sha256.Sum256(key[:])
	copy(id[:], sum[16:]) // the other half is the event's: see outbox.EventID
	id[0] |= 1            // zero is no id
	return id
}

// startSpan begins an attempt's span. The context is ctx with the span in it.
func (t *Tasks) startSpan(ctx context.Context, a *attemptSpan) (context.Context, trace.Span) {
	ctx = ContextWithTraceparent(ctx, stringOf(a.traceparent))
	wish := context.WithValue(ctx, wishKey{}, a)
	_, span := t.cfg.Tracer.Start(wish, "task.attempt", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(a.startedAt))
	if span.IsRecording() {
		span.SetAttributes(a.attributes()...)
		if a.attempt > 1 {
			before := trace.NewSpanContext(trace.SpanContextConfig{
				TraceID: span.SpanContext().TraceID(), SpanID: attemptSpanID(a.task, a.attempt-1), TraceFlags: trace.FlagsSampled,
			})
			span.AddLink(trace.Link{SpanContext: before})
		}
	}

	return trace.ContextWithSpan(ctx, span), span
}

func (a *attemptSpan) attributes() []attribute.KeyValue {
	return []attribute.KeyValue{
		attrTask.String(a.task.String()), attrAttempt.Int(int(a.attempt)), attrType.String(string(a.kind)),
		attrLane.String(a.lane), attrDefinition.String(a.definition),
	}
}

// endSpan tells how an attempt ended; code is its failure's, empty for none.
func endSpan(span trace.Span, outcome, code string, at time.Time) {
	if span.IsRecording() {
		span.SetAttributes(attrOutcome.String(outcome))
		if code != "" {
			code = storableText(code, 128)
			span.SetAttributes(semconv.ErrorTypeKey.String(code))
			span.SetStatus(codes.Error, code)
		}
	}

	span.End(trace.WithTimestamp(at))
}

// endAttemptSpan tells of the attempt that a move ended, where no executor of this
// process has its span.
func (t *Tasks) endAttemptSpan(m *transition, out transitionResult) {
	if t.cfg.Tracer == nil || m.span == nil || !out.made || m.notCounted || m.outcome == "" {
		return
	}
	if !m.begins && (out.was != Running || out.attempt != m.span.attempt) {
		return // another attempt than the one that was looked at
	}
	_, span := t.startSpan(context.Background(), m.span)
	endSpan(span, string(m.outcome), m.failureCode, out.at)
}

// withSpan puts the attempt's span into ctx, or without tracing that of the request
// that made the task: what is called shall know of it.
func (r *run) withSpan(ctx context.Context) context.Context {
	tracer := r.r.tasks.cfg.Tracer
	if tracer == nil {
		return ContextWithTraceparent(ctx, stringOf(r.claim.Traceparent))
	}

	a := &attemptSpan{
		task: r.id(), attempt: r.attempt(), kind: Type(*r.claim.Type), lane: r.claimer.lane, definition: *r.claim.DefinitionID,
		traceparent: r.claim.Traceparent, startedAt: r.startedAt,
	}
	if !r.exec.Assigns {
		ctx, r.span = r.r.tasks.startSpan(ctx, a)
		return ctx
	}

	// No attempt begins, and the span is one like any other.
	ctx, r.span = tracer.Start(ContextWithTraceparent(ctx, stringOf(a.traceparent)), "task.assign", trace.WithTimestamp(a.startedAt))
	r.span.SetAttributes(a.attributes()...)
	return ctx
}

// endSpan ends the span, once the attempt's end is written.
func (r *run) endSpan(outcome, code string, at time.Time) {
	if r.span != nil {
		endSpan(r.span, outcome, code, at)
	}
}

// logged is a context for the log, whose lines say whose trace they belong to.
func (r *run) logged() context.Context {
	return ContextWithTraceparent(context.Background(), stringOf(r.claim.Traceparent))
}

type wishKey struct{}

// WishedIDs is for the maker of ids behind Config.Tracer: the ids that the span
// which is being started asks for. A task without a traceparent has a trace all the
// same: its id is the task's.
func WishedIDs(ctx context.Context) (id trace.TraceID, span trace.SpanID, ok bool) {
	a, ok := ctx.Value(wishKey{}).(*attemptSpan)
	if !ok {
		return id, span, false
	}
	return trace.TraceID(a.task), attemptSpanID(a.task, a.attempt), true
}

// Traceparent is the span of a context as the header of that name has it; empty for
// none.
func Traceparent(ctx context.Context) string {
	var h traceHeader
	propagation.TraceContext{}.Inject(ctx, &h)
	return string(h)
}

// ContextWithTraceparent is ctx inside the span that a header names. Nothing changes
// where the header is empty, or not written as W3C asks.
func ContextWithTraceparent(ctx context.Context, header string) context.Context {
	if header == "" {
		return ctx
	}
	h := traceHeader(header)
	return propagation.TraceContext{}.Extract(ctx, &h)
}

// traceHeader is the one header of W3C's that a task carries. Its companion
// tracestate is not kept: a task may wait for days, and vendors' notes with it.
type traceHeader string

// Get is the header's value.
func (h *traceHeader) Get(name string) string {
	if name == "traceparent" {
		return string(*h)
	}
	return ""
}

// Set takes the header's value.
func (h *traceHeader) Set(name, value string) {
	if name == "traceparent" {
		*h = traceHeader(value)
	}
}

// Keys names the header.
func (h *traceHeader) Keys() []string { return []string{"traceparent"} }

// traceparent is what a worker is told: its spans are children of the
// attempt's. Where that is not going to be told, of the request's.
func (l *Leases) traceparent(traceparent string, task uuid.UUID, attempt int32) string {
	if l.t.cfg.Tracer == nil || traceparent == "" {
		return traceparent
	}
	parent := trace.SpanContextFromContext(ContextWithTraceparent(context.Background(), traceparent))
	if !parent.IsSampled() {
		return traceparent
	}
	return Traceparent(trace.ContextWithSpanContext(context.Background(), parent.WithSpanID(attemptSpanID(task, attempt))))
}
