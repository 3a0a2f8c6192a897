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

// All attempts of a task are spans of one trace, named by task.traceparent. An attempt is one
// span, whoever runs the attempt: the transition that ends it also ends the span, under the same
// fence. A superseded attempt has no span. A released attempt has none either; the next attempt
// reuses its number, and so its span id.
//
// Span ids are derived from task and attempt, as event ids are. A worker's spans can name their
// parent before the parent is recorded, and the next attempt can link to it, without a row.

// The attributes of an attempt's span. Never the task's input, output, context or error message:
// those may hold anything.
const (
	attrTask       = attribute.Key("tes.task.id")
	attrAttempt    = attribute.Key("tes.task.attempt")
	attrType       = attribute.Key("tes.task.type")
	attrLane       = attribute.Key("tes.task.lane")
	attrDefinition = attribute.Key("tes.task.definition")
	attrOutcome    = attribute.Key("tes.task.outcome")
)

// attemptSpan describes the span of an attempt.
type attemptSpan struct {
	task        uuid.UUID
	attempt     int32
	kind        Type
	lane        string
	definition  string
	traceparent *string
	startedAt   time.Time
}

// runningSpan describes the running attempt of a task; nil if no attempt runs.
func runningSpan(task db.Task) *attemptSpan {
	if task.Status != db.TaskStatusRUNNING || task.StartedAt == nil {
		return nil
	}
	return &attemptSpan{
		task: task.TaskID, attempt: task.Attempt, kind: Type(task.Type), lane: string(task.Lane),
		definition: task.DefinitionID, traceparent: task.Traceparent, startedAt: *task.StartedAt,
	}
}

// wholeSpan describes an attempt that begins and ends in one call. The attempt of a person began with
// the assignment.
func wholeSpan(task db.Task, at time.Time) *attemptSpan {
	if task.Status == db.TaskStatusASSIGNED && task.AssignedAt != nil {
		at = *task.AssignedAt
	}
	task.Status, task.Attempt, task.StartedAt = db.TaskStatusRUNNING, task.Attempt+1, &at
	return runningSpan(task)
}

// attemptSpanID derives the id of an attempt's span.
func attemptSpanID(task uuid.UUID, attempt int32) (id trace.SpanID) {
	var key [20]byte
	copy(key[:], task[:])
	binary.BigEndian.PutUint32(key[16:], uint32(attempt))
	sum := sha256.Sum256(key[:])
	copy(id[:], sum[16:]) // the other half is the event's: see outbox.EventID
	id[0] |= 1            // zero is no id
	return id
}

// startSpan begins an attempt's span. The returned context is ctx with the span.
func (t *Tasks) startSpan(ctx context.Context, a *attemptSpan) (context.Context, trace.Span) {
	ctx = ContextWithTraceparent(ctx, stringOf(a.traceparent))
	// The id generator reads the preset ids from wish. ctx has none: the child spans get ids of their
	// own.
	wish := context.WithValue(ctx, presetSpanKey{}, a)
	_, span := t.cfg.Tracer.Start(wish, "task.attempt", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(a.startedAt))
	if span.IsRecording() {
		span.SetAttributes(a.attributes()...)
		// The id of the span before follows from task and attempt; no row is read.
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

// endSpan ends a span with the attempt's outcome; code is the failure's, empty for none.
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

// endAttemptSpan records the span of the attempt that a transition has ended, if no executor of this
// process has the span.
func (t *Tasks) endAttemptSpan(m *transition, out transitionResult) {
	if t.cfg.Tracer == nil || m.span == nil || !out.applied || m.notCounted || m.outcome == "" {
		return
	}
	if !m.begins && (out.was != Running || out.attempt != m.span.attempt) {
		return // a different attempt from the described one
	}
	_, span := t.startSpan(context.Background(), m.span)
	endSpan(span, string(m.outcome), m.failureCode, out.at)
}

// withSpan puts the span of the attempt into ctx, for the services that the executor calls. Without
// tracing, ctx gets the span of the request that created the task.
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

	// An assignment is no attempt: the span has an id of its own.
	ctx, r.span = tracer.Start(ContextWithTraceparent(ctx, stringOf(a.traceparent)), "task.assign", trace.WithTimestamp(a.startedAt))
	r.span.SetAttributes(a.attributes()...)
	return ctx
}

// endSpan ends the span once the attempt's end is written.
func (r *run) endSpan(outcome, code string, at time.Time) {
	if r.span != nil {
		endSpan(r.span, outcome, code, at)
	}
}

// logged returns a context for log lines with the trace of the task.
func (r *run) logged() context.Context {
	return ContextWithTraceparent(context.Background(), stringOf(r.claim.Traceparent))
}

type presetSpanKey struct{}

// PresetSpanIDs returns the ids for the span to be started; the id generator behind Config.Tracer must
// use them. Without a traceparent, the id of the trace is the id of the task.
func PresetSpanIDs(ctx context.Context) (id trace.TraceID, span trace.SpanID, ok bool) {
	a, ok := ctx.Value(presetSpanKey{}).(*attemptSpan)
	if !ok {
		return id, span, false
	}
	return trace.TraceID(a.task), attemptSpanID(a.task, a.attempt), true
}

// Traceparent encodes the span of a context as the header traceparent; empty for no span.
func Traceparent(ctx context.Context) string {
	var h traceHeader
	propagation.TraceContext{}.Inject(ctx, &h)
	return string(h)
}

// ContextWithTraceparent returns ctx inside the span that the header names. An empty or malformed
// header leaves ctx as it is.
func ContextWithTraceparent(ctx context.Context, header string) context.Context {
	if header == "" {
		return ctx
	}
	h := traceHeader(header)
	return propagation.TraceContext{}.Extract(ctx, &h)
}

// traceHeader carries the W3C header traceparent. A task does not keep the header tracestate: the task
// may wait for days, and the entries of vendors would wait with it.
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

// traceparent is the parent of a worker's spans: the attempt's span, or the request's where the
// attempt's will not be recorded.
func (l *Leases) traceparent(traceparent string, task uuid.UUID, attempt int32) string {
	if l.t.cfg.Tracer == nil || traceparent == "" {
		return traceparent
	}
	parent := trace.SpanContextFromContext(ContextWithTraceparent(context.Background(), traceparent))
	// The attempt of an unsampled trace is not recorded, and cannot be a parent.
	if !parent.IsSampled() {
		return traceparent
	}
	return Traceparent(trace.ContextWithSpanContext(context.Background(), parent.WithSpanID(attemptSpanID(task, attempt))))
}
