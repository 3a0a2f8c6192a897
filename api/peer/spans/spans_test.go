package spans

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/seed-3f7a0631/tes/jobs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// keeper is an Observability Service that takes what comes, once it may.
type keeper struct {
	answer func(ctx context.Context) error // default takes it

	mu      sync.Mutex
	batches []json.RawMessage // guarded by mu
}

func (k *keeper) Send(ctx context.Context, batch any) error {
	if k.answer != nil {
		if err := k.answer(ctx); err != nil {
			return err
		}
	}
	text, err := json.Marshal(batch)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.batches = append(k.batches, text)
	return err
}

type keptSpan struct {
	TraceID      string `json:"traceId"`
	SpanID       string `json:"spanId"`
	ParentSpanID string `json:"parentSpanId"`
	Name         string `json:"name"`
	Kind         int    `json:"kind"`
	Start        string `json:"startTimeUnixNano"`
	Links        []struct {
		TraceID string `json:"traceId"`
		SpanID  string `json:"spanId"`
	} `json:"links"`
}

// spans is all that was kept.
func (k *keeper) spans(t *testing.T) (found []keptSpan) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, text := range k.batches {
		var batch struct {
			ResourceSpans []struct {
				ScopeSpans []struct {
					Spans []keptSpan `json:"spans"`
				} `json:"scopeSpans"`
			} `json:"resourceSpans"`
		}
		require.NoError(t, json.Unmarshal(text, &batch))
		for _, r := range batch.ResourceSpans {
			for _, s := range r.ScopeSpans {
				found = append(found, s.Spans...)
			}
		}
	}
	return found
}

// text is what was kept, as it came.
func (k *keeper) text() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return fmt.Sprintf("%s", k.batches)
}

type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func setup(t *testing.T, k *keeper, change ...func(*Config)) (*Spans, *logBook) {
	t.Helper()
	log := &logBook{}
	cfg := Config{Observability: k, Version: "1.2.3", Instance: "p1", Roots: 1000, Logger: slog.New(slog.NewTextHandler(log, nil))}
	for _, f := range change {
		f(&cfg)
	}
	s, err := New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close(context.Background())) })
	return s, log
}

// What is sent is what OTLP's JSON says: ids in hex, enums as numbers, times as text.
func TestSpansAsTheyAreSent(t *testing.T) {
	t.Parallel()
	k := &keeper{}
	s, _ := setup(t, k)
	ctx := jobs.ContextWithTraceparent(t.Context(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	ctx, parent := s.Tracer("api").Start(ctx, "parent", trace.WithSpanKind(trace.SpanKindServer))
	_, child := s.Tracer("jobs").Start(ctx, "child", trace.WithLinks(trace.LinkFromContext(ctx)), trace.WithAttributes(attribute.Int("n", 7)))
	child.End()
	parent.End()
	require.NoError(t, s.Close(t.Context()))

	found := map[string]keptSpan{}
	for _, one := range k.spans(t) {
		found[one.Name] = one
	}
	require.Len(t, found, 2)
	p, c := found["parent"], found["child"]
	require.Equal(t, "4bf92f3577b34da6a3ce929d0e0e4736", p.TraceID)
	require.Equal(t, "00f067aa0ba902b7", p.ParentSpanID)
	require.Equal(t, parent.SpanContext().SpanID().String(), p.SpanID)
	require.Equal(t, 2, p.Kind)
	require.Regexp(t, `^\d{19}$`, p.Start)
	require.Equal(t, p.TraceID, c.TraceID)
	require.Equal(t, p.SpanID, c.ParentSpanID)
	require.Equal(t, p.SpanID, c.Links[0].SpanID)
	for _, said := range []string{
		`{"key":"service.name","value":{"stringValue":"task-execution-service"}}`, `{"key":"service.version","value":{"stringValue":"1.2.3"}}`,
		`{"key":"service.instance.id","value":{"stringValue":"p1"}}`, `"name":"github.com/seed-3f7a0631/tes/jobs"`, `{"key":"n","value":{"intValue":"7"}}`,
	} {
		require.Contains(t, k.text(), said)
	}
	require.Zero(t, s.Dropped())
}

// A service that hangs costs whoever ends a span nothing: what finds the queue full
// is dropped and counted, all of it, and the end is in time.
func TestServiceThatHangs(t *testing.T) {
	t.Parallel()
	hanging := make(chan struct{}, 1)
	k := &keeper{answer: func(ctx context.Context) error {
		select {
		case hanging <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	s, log := setup(t, k, func(cfg *Config) { cfg.Queue, cfg.Timeout = 100, time.Hour })
	sampled := int64(0)
	for range 5_000 {
		_, span := s.Tracer("x").Start(t.Context(), "x")
		if span.SpanContext().IsSampled() {
			sampled++
		}
		span.End()
	}
	select {
	case <-hanging:
	case <-time.After(patience):
		require.FailNow(t, "nothing was sent")
	}
	require.Equal(t, sampled-100, s.Dropped())
	require.NoError(t, s.Close(t.Context()))
	require.Equal(t, sampled, s.Dropped())
	require.Empty(t, k.spans(t))
	require.Equal(t, 2, strings.Count(log.String(), "spans were dropped"), "the first and the last time: %s", log)
	require.Contains(t, log.String(), fmt.Sprintf("since_start=%d", sampled))
}

// A service that refuses costs one line a minute.
func TestServiceThatRefuses(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1000)
	k := &keeper{answer: func(context.Context) error { asked <- struct{}{}; return errors.New("no room") }}
	s, log := setup(t, k, func(cfg *Config) { cfg.Delay = time.Millisecond })
	for range 20 {
		_, span := s.Tracer("x").Start(t.Context(), "x")
		span.End()
		select {
		case <-asked:
		case <-time.After(patience):
			require.FailNow(t, "nothing was sent")
		}
	}
	require.NoError(t, s.Close(t.Context()))
	require.EqualValues(t, 20, s.Dropped())
	require.Equal(t, 2, strings.Count(log.String(), "no room"), "%s", log)
}

// Of the traces that begin here so many a second; of those that a caller began, what
// the caller decided.
func TestSampling(t *testing.T) {
	t.Parallel()
	k := &keeper{}
	s, _ := setup(t, k, func(cfg *Config) { cfg.Roots = 5 })
	made := func(ctx context.Context) (sampled int) {
		for range 50 {
			_, span := s.Tracer("x").Start(ctx, "x")
			require.True(t, span.SpanContext().IsValid())
			if span.SpanContext().IsSampled() {
				sampled++
			}
		}
		return sampled
	}
	begun := time.Now()
	got := made(t.Context())
	require.GreaterOrEqual(t, got, 5)
	require.LessOrEqual(t, got, 5+int(5*time.Since(begun).Seconds()))
	require.Equal(t, 50, made(jobs.ContextWithTraceparent(t.Context(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")))
	require.Equal(t, 0, made(jobs.ContextWithTraceparent(t.Context(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")))
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A request to a service is a span, and the service hears of it; no more of the
// request is told than whom it went to.
func TestTransport(t *testing.T) {
	t.Parallel()
	const canary = "canary-90ab"
	heard := make(chan string, 1)
	there := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		heard <- r.Header.Get("Traceparent")
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(there.Close)
	call := func(ctx context.Context, s *Spans, next http.RoundTripper) error {
		r, err := http.NewRequestWithContext(ctx, "POST", there.URL+"/"+canary+"?key="+canary, strings.NewReader(canary))
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+canary)
		answer, err := s.Transport("books")(next).RoundTrip(r)
		require.Empty(t, r.Header.Get("Traceparent"), "a transport leaves the request as it is")
		if err == nil {
			require.NoError(t, answer.Body.Close())
		}
		return err
	}
	own := &http.Transport{}
	t.Cleanup(own.CloseIdleConnections)
	const header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	ctx := jobs.ContextWithTraceparent(t.Context(), header)

	k := &keeper{}
	s, _ := setup(t, k)
	require.NoError(t, call(ctx, s, own))
	sent := <-heard
	require.Error(t, call(ctx, s, roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New(canary) })))
	require.NoError(t, s.Close(t.Context()))
	found := k.spans(t)
	require.Len(t, found, 2)
	require.Equal(t, "POST books", found[0].Name)
	require.Equal(t, 3, found[0].Kind)
	require.Equal(t, header[36:52], found[0].ParentSpanID)
	require.Equal(t, "00-"+found[0].TraceID+"-"+found[0].SpanID+"-01", sent)
	require.Contains(t, k.text(), `{"key":"http.response.status_code","value":{"intValue":"418"}}`)
	require.Contains(t, k.text(), `{"key":"error.type","value":{"stringValue":"connection"}}`)
	require.NotContains(t, k.text(), canary)

	var off *Spans
	require.NoError(t, call(ctx, off, own))
	require.Equal(t, header, <-heard, "it goes on as it came")
	require.NoError(t, call(t.Context(), off, own))
	require.Empty(t, <-heard)
}

// Nobody to get spans: there is no tracing, and nothing to be careful of.
func TestNobody(t *testing.T) {
	t.Parallel()
	s, err := New(t.Context(), Config{})
	require.NoError(t, err)
	require.Nil(t, s)
	require.Nil(t, s.Tracer("api"))
	require.Zero(t, s.Dropped())
	require.NoError(t, s.Close(t.Context()))
}

func TestLog(t *testing.T) {
	t.Parallel()
	book := &logBook{}
	log := slog.New(Log(slog.NewTextHandler(book, nil))).With("a", 1)
	log.InfoContext(jobs.ContextWithTraceparent(t.Context(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"), "inside")
	log.Info("outside")
	require.Contains(t, book.String(), "msg=inside a=1 trace_id=4bf92f3577b34da6a3ce929d0e0e4736\n")
	require.Contains(t, book.String(), "msg=outside a=1\n")
}
