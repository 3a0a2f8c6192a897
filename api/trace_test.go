package api_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/api"
)

const askedSpan = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// recording makes spans of requests, and remembers them.
func recording(sampler sdktrace.Sampler) (*tracetest.SpanRecorder, func(*api.Config)) {
	told := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(told), sdktrace.WithSampler(sampler))
	return told, func(cfg *api.Config) { cfg.Tracer = provider.Tracer("test") }
}

func attr(s sdktrace.ReadOnlySpan, name string) string {
	for _, a := range s.Attributes() {
		if a.Key == attribute.Key(name) {
			return a.Value.String()
		}
	}
	return ""
}

func (b *testBundle) keptTraceparent(t *testing.T, task object) (kept string) {
	t.Helper()
	require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT coalesce(traceparent, '') FROM task WHERE task_id = $1", task["taskId"]).Scan(&kept))
	return kept
}

// Each request is a span, a child of the caller's, and what it makes remembers it.
func TestRequestIsASpan(t *testing.T) {
	t.Parallel()
	told, traced := recording(sdktrace.ParentBased(sdktrace.AlwaysSample()))
	b := setup(t, traced)
	const canary = "canary-31c7"

	task := b.ask(t, orchestrator, "POST", tasksPath, noop(object{"input": object{"x": canary}}), "traceparent", askedSpan).is(t, 201)
	own := b.ask(t, orchestrator, "POST", tasksPath, noop()).is(t, 201)
	b.askWith(t, canary, "POST", tasksPath+"/"+canary+"/cancel", nil).fails(t, 401, "UNAUTHORIZED")
	b.ask(t, orchestrator, "GET", "/nowhere/"+canary, nil).fails(t, 404, "NOT_FOUND")
	b.ask(t, orchestrator, "BREW", tasksPath, nil)
	b.askWith(t, "", "GET", "/livez", nil).is(t, 200)
	eventually(t, func() bool { return len(told.Ended()) == 5 }) // the probe has none

	spans := told.Ended()
	made := spans[0]
	require.Equal(t, "POST /api/internal/tasks", made.Name())
	require.Equal(t, trace.SpanKindServer, made.SpanKind())
	require.Equal(t, "00f067aa0ba902b7", made.Parent().SpanID().String())
	require.Equal(t, "201", attr(made, "http.response.status_code"))
	require.Equal(t, task["taskId"], attr(made, "tes.task.id"))
	require.Equal(t, orchestrator, attr(made, "tes.caller"))
	for i, o := range []object{task, own} {
		sc := spans[i].SpanContext()
		require.Equal(t, fmt.Sprintf("00-%s-%s-01", sc.TraceID(), sc.SpanID()), b.keptTraceparent(t, o))
	}
	require.Equal(t, askedSpan[3:35], made.SpanContext().TraceID().String())

	require.Equal(t, "POST /api/internal/tasks/{taskId}/cancel", spans[2].Name())
	require.Equal(t, "401", attr(spans[2], "http.response.status_code"))
	require.Equal(t, "GET", spans[3].Name())
	require.Equal(t, "HTTP", spans[4].Name())
	require.Equal(t, "_OTHER", attr(spans[4], "http.request.method"))
	for _, s := range spans {
		require.NotContains(t, fmt.Sprint(s.Name(), s.Attributes(), s.Status(), s.Events()), canary)
	}
}

// A caller who decided against it is obeyed, and so is our own sampler; either way
// what follows can know.
func TestUnsampledRequest(t *testing.T) {
	t.Parallel()
	told, traced := recording(sdktrace.ParentBased(sdktrace.NeverSample()))
	b := setup(t, traced)
	asked := b.ask(t, orchestrator, "POST", tasksPath, noop(), "traceparent", askedSpan[:53]+"00").is(t, 201)
	own := b.ask(t, orchestrator, "POST", tasksPath, noop()).is(t, 201)
	require.Regexp(t, "^00-"+askedSpan[3:35]+"-[0-9a-f]{16}-00$", b.keptTraceparent(t, asked))
	require.Regexp(t, "^00-[0-9a-f]{32}-[0-9a-f]{16}-00$", b.keptTraceparent(t, own))
	require.Empty(t, told.Ended())
}
