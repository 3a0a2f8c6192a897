package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

const (
	askedTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	askedSpan   = "00f067aa0ba902b7"
	traceparent = "00-" + askedTrace + "-" + askedSpan + "-01"
)

// span is one of OTLP's JSON.
type span struct {
	TraceID, SpanID, ParentSpanID, Name string
	Kind                                int
	Attributes                          []struct {
		Key   string
		Value struct{ StringValue, IntValue string }
	}
	Links []struct{ TraceID, SpanID string }
}

func (s span) attr(name string) string {
	for _, a := range s.Attributes {
		if a.Key == name {
			return a.Value.StringValue + a.Value.IntValue
		}
	}
	return ""
}

// spansOf reads batches of them. OTLP leaves it open how hex is written.
func spansOf(t *testing.T, batches ...[]byte) (found []span) {
	t.Helper()
	for _, text := range batches {
		var batch struct {
			ResourceSpans []struct{ ScopeSpans []struct{ Spans []span } }
		}
		require.NoError(t, json.Unmarshal(text, &batch), "%s", text)
		for _, r := range batch.ResourceSpans {
			for _, scope := range r.ScopeSpans {
				for _, s := range scope.Spans {
					s.TraceID, s.SpanID, s.ParentSpanID = strings.ToLower(s.TraceID), strings.ToLower(s.SpanID), strings.ToLower(s.ParentSpanID)
					for i, l := range s.Links {
						s.Links[i].TraceID, s.Links[i].SpanID = strings.ToLower(l.TraceID), strings.ToLower(l.SpanID)
					}
					found = append(found, s)
				}
			}
		}
	}
	return found
}

// observed are the spans that the Observability Service has.
func observed(t *testing.T, peers *peertest.Server) []span {
	t.Helper()
	var batches [][]byte
	for _, r := range peers.Requests(peertest.Observability) {
		batches = append(batches, r.Body)
	}
	return spansOf(t, batches...)
}

// collector takes OTLP.
type collector struct {
	*httptest.Server
	mu      sync.Mutex
	batches [][]byte // guarded by mu
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	c.Server = serveWeb(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("X-Collector") != "c" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.batches = append(c.batches, body)
	}))
	return c
}

func (c *collector) spans(t *testing.T) []span {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	return spansOf(t, c.batches...)
}

// One trace from the asking span through request, attempts, and calls to others; with
// the Observability Service and a collector beside it; and on the bus.
func TestOneTraceOverAllAttempts(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	var mu sync.Mutex
	told := map[string][]string{} // traceparents of events, by task; guarded by mu
	require.NoError(t, b.bus.Subscribe(t.Context(), "task.>", natsbus.All, func(d outbox.Delivery, _ uint64) {
		mu.Lock()
		defer mu.Unlock()
		task := d.Header["ce-subject"]
		told[task] = append(told[task], d.Header["traceparent"], d.Header["ce-traceparent"])
	}))
	var heard []string // by the called service; guarded by mu
	called := serveWeb(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if heard = append(heard, r.Header.Get("Traceparent")); len(heard) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, `{"answer": %q}`, canary)
	}))
	there := startCollector(t)
	p := startProcess(t, append(b.env, "OTEL_EXPORTER_OTLP_ENDPOINT="+there.URL, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json",
		"OTEL_EXPORTER_OTLP_HEADERS=X-Collector=c", "OTEL_SERVICE_NAME=ours", "OTEL_RESOURCE_ATTRIBUTES=deployment.environment=test"),
		"serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	retries := object{"maxRetries": 3, "retryInterval": 1, "backoffMultiplier": 1}
	for id, config := range map[string]object{
		"call":  {"executor": "http", "http": object{"url": called.URL + "/" + canary, "headers": object{"X-Key": canary, "traceparent": "the definition's"}}},
		"books": {"integration": object{"method": "create_invoice", "instance": "books", "credentialRef": canary}},
	} {
		kind := "AUTOMATED"
		if id == "books" {
			kind = "INTEGRATION"
		}
		must(t, http.StatusCreated, "PUT", api+definitionsPath+"/"+id, orchestrator, object{
			"name": id, "type": kind, "version": "1.0.0", "retryPolicy": retries, "executionConfig": config,
		})
	}
	b.peers.Steer(peertest.Integration, peertest.Steering{
		Mode: peertest.ModeError, Status: 503, Times: 2, Body: json.RawMessage(`{"error": {"code": "SERVICE_UNAVAILABLE", "message": "` + canary + `"}, "retryable": true}`),
	})
	tasks := map[string]object{}
	for _, id := range []string{"call", "books"} {
		tasks[id] = must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{
			"taskDefinitionId": id, "workflowId": "w", "input": object{"contact_id": canary, "amount": 7},
		}, "traceparent", traceparent)
	}
	for _, task := range tasks {
		reaches(t, api, orchestrator, task["taskId"], "COMPLETED")
	}
	heardOf := map[string][]string{}
	eventually(t, patience, func() error {
		mu.Lock()
		defer mu.Unlock()
		for id, task := range tasks {
			if heardOf[id] = told[task["taskId"].(string)]; len(heardOf[id]) < 14 { // 7 events
				return fmt.Errorf("heard of %s: %v", id, heardOf[id])
			}
		}
		return nil
	})
	p.end(t, nil)
	require.Equal(t, exitOK, p.code)

	mu.Lock()
	defer mu.Unlock()
	books := b.peers.Requests(peertest.Integration)
	var heardBooks []string
	for _, r := range books {
		heardBooks = append(heardBooks, r.Headers["Traceparent"])
	}
	for where, all := range map[string][]span{"observability": observed(t, b.peers), "otlp": there.spans(t)} {
		for id, task := range tasks {
			requireOneTrace(t, where+" "+id, all, task["taskId"].(string), heardOf[id], map[string][]string{"call": heard, "books": heardBooks}[id])
		}
		published := slices.ContainsFunc(all, func(s span) bool {
			return s.Name == "publish task events" && s.TraceID == askedTrace
		})
		require.True(t, published, where)
	}
	for _, text := range append(there.batches, b.peers.Requests(peertest.Observability)[0].Body) {
		require.Contains(t, string(text), `"ours"`)
		require.Contains(t, string(text), `"deployment.environment"`)
		require.NotContains(t, string(text), canary)
		require.NotContains(t, string(text), orchestrator)
	}
	for _, r := range b.peers.Requests(peertest.Observability) {
		require.Empty(t, r.Headers["X-Collector"], "what the collector is sent is not for the service")
		require.NotContains(t, string(r.Body), canary)
		require.NotContains(t, string(r.Body), "/api/tracing/span", "spans about spans never end")
	}
	require.Contains(t, p.stderr.String(), `"route":"/api/internal/tasks","status":201`)
	require.Contains(t, p.stderr.String(), `"trace_id":"`+askedTrace+`"`)
	require.NotContains(t, p.stderr.String(), "spans were dropped")
}

// requireOneTrace demands the tree of one task that took three attempts, each with a
// call.
func requireOneTrace(t *testing.T, what string, all []span, task string, events, heard []string) {
	t.Helper()
	var request span
	var attempts []span
	calls := map[string]span{} // by parent
	for _, s := range all {
		switch {
		case s.Name == "POST /api/internal/tasks" && s.attr("tes.task.id") == task:
			request = s
		case s.Name == "task.attempt" && s.attr("tes.task.id") == task:
			attempts = append(attempts, s)
		case s.Kind == 3:
			calls[s.ParentSpanID] = s
		}
	}
	require.Equal(t, askedTrace, request.TraceID, what)
	require.Equal(t, askedSpan, request.ParentSpanID, what)
	require.Len(t, attempts, 3, what)
	slices.SortFunc(attempts, func(a, b span) int { return strings.Compare(a.attr("tes.task.attempt"), b.attr("tes.task.attempt")) })
	var outcomes, told []string
	for i, a := range attempts {
		require.Equal(t, askedTrace, a.TraceID, what)
		require.Equal(t, request.SpanID, a.ParentSpanID, what)
		outcomes = append(outcomes, a.attr("tes.task.outcome"))
		if i > 0 {
			require.Len(t, a.Links, 1, what)
			require.Equal(t, attempts[i-1].SpanID, a.Links[0].SpanID, what)
		}
		call, found := calls[a.SpanID]
		require.True(t, found, "%s: the call of attempt %d", what, i+1)
		require.Equal(t, askedTrace, call.TraceID, what)
		told = append(told, "00-"+askedTrace+"-"+call.SpanID+"-01")
	}
	require.Equal(t, []string{"FAILED", "FAILED", "COMPLETED"}, outcomes, what)
	require.Equal(t, told, heard, "%s: what the called service heard", what)
	for _, header := range events {
		require.Equal(t, "00-"+askedTrace+"-"+request.SpanID+"-01", header, what)
	}
}

// Whatever the Observability Service does, tasks go on, and what it does not take is
// counted.
func TestTracingCostsATaskNothing(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{peertest.ModeHang, peertest.ModeSlow, peertest.ModeGone, peertest.ModeError} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			b := setupServe(t, false)
			b.peers.Steer(peertest.Observability, peertest.Steering{Mode: mode, DelayMs: map[string]int{peertest.ModeSlow: 60_000}[mode]})
			p := start(t, append(b.env, "OTEL_BSP_MAX_QUEUE_SIZE=8", "OTEL_BSP_SCHEDULE_DELAY=1"), "serve", "--http", "127.0.0.1:0")
			api := serving(t, p)
			orchestrator := b.peers.Token("workflow-orchestrator")
			var batch []object
			for range 100 {
				batch = append(batch, noop("w"))
			}
			made := must(t, http.StatusOK, "POST", api+tasksPath+"/batch", orchestrator, object{"tasks": batch}, "traceparent", traceparent)
			require.Len(t, made["results"], 100)
			eventually(t, patience, func() error {
				if n := number(t, b.dsn, "SELECT count(*)::int FROM task WHERE status = 'COMPLETED'"); n != 100 {
					return fmt.Errorf("%d are COMPLETED", n)
				}
				return nil
			})
			_, err := b.peers.Await(t.Context(), peertest.Observability, 1)
			require.NoError(t, err, "it was asked")
			require.Equal(t, exitOK, p.stop(t))
			dropped := 0
			for line := range strings.Lines(p.stderr.String()) {
				var said struct {
					Msg, To string
					Since   int `json:"since_start"`
				}
				if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "spans were dropped; tasks are not affected" {
					require.Equal(t, "observability", said.To)
					dropped = said.Since
				}
			}
			require.GreaterOrEqual(t, dropped, 101, "attempts and the request: all of them, whether they found the queue full or were not taken")
		})
	}
}

// Nobody asked for spans: nobody gets any, and a caller's own goes on.
func TestTracingOff(t *testing.T) {
	t.Parallel()
	for _, off := range []string{"TES_OBSERVABILITY_URL=off", "OTEL_SDK_DISABLED=true"} {
		t.Run(off, func(t *testing.T) {
			t.Parallel()
			b := setupServe(t, false)
			p := start(t, append(b.env, off), "serve", "--http", "127.0.0.1:0")
			api := serving(t, p)
			orchestrator := b.peers.Token("workflow-orchestrator")
			task := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, noop("w"), "traceparent", traceparent)
			reaches(t, api, orchestrator, task["taskId"], "COMPLETED")
			own := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, noop("w"))
			reaches(t, api, orchestrator, own["taskId"], "COMPLETED")
			require.Equal(t, 1, number(t, b.dsn, "SELECT count(*)::int FROM task WHERE traceparent = $1", traceparent))
			require.Equal(t, 1, number(t, b.dsn, "SELECT count(*)::int FROM task WHERE traceparent IS NULL"))
			require.Equal(t, exitOK, p.stop(t))
			require.Empty(t, b.peers.Requests(peertest.Observability))
		})
	}
}

// The sampler is OpenTelemetry's to choose, where it is told one.
func TestTracingObeysTheSampler(t *testing.T) {
	t.Parallel()
	b := setupServe(t, false)
	p := startProcess(t, append(b.env, "OTEL_TRACES_SAMPLER=always_off"), "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	task := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, noop("w"), "traceparent", traceparent)
	reaches(t, api, orchestrator, task["taskId"], "COMPLETED")
	p.end(t, nil)
	require.Equal(t, exitOK, p.code)
	require.Empty(t, b.peers.Requests(peertest.Observability))
	require.Equal(t, 1, number(t, b.dsn, "SELECT count(*)::int FROM task WHERE traceparent LIKE $1", "00-"+askedTrace+"-%-00"))
}

func TestOTelVariables(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"OTEL_TRACES_EXPORTER=zipkin", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_SDK_DISABLED=yes", "OTEL_TRACES_SAMPLER=some",
		"OTEL_BSP_MAX_QUEUE_SIZE=many", "OTEL_BSP_SCHEDULE_DELAY=-1",
	} {
		name, _, _ := strings.Cut(bad, "=")
		says(t, exitUsage, environ(bad), []string{"version"}, name)
	}
	for env, want := range map[string]bool{
		"": false, "OTEL_TRACES_EXPORTER=otlp": true, "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318": true,
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://c/v1": true, "OTEL_EXPORTER_OTLP_ENDPOINT=http://c OTEL_TRACES_EXPORTER=none": false,
		"OTEL_WHATEVER=1": false,
	} {
		cfg, err := readConfig(strings.Fields(env))
		require.NoError(t, err)
		require.Equal(t, want, cfg.otlp(), env)
	}
}
