package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// halfWell is an Integration Service that is away for its first invocations, and for some
// later ones: it cuts the connection, or answers 503 and no document. Otherwise it answers
// every second one with an error, and remembers how often it did so to each task.
type halfWell struct {
	next http.Handler

	mu     sync.Mutex
	calls  int            // guarded by mu
	failed map[string]int // by task; guarded by mu
}

// awayAtFirst is enough for the breaker to open.
const awayAtFirst = 24

func (h *halfWell) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		h.next.ServeHTTP(w, r)
		return
	}
	task, _, _ := strings.Cut(r.Header.Get("Idempotency-Key"), ":")
	h.mu.Lock()
	h.calls++
	away, cut := h.calls <= awayAtFirst || h.calls%16 == 3, h.calls%32 < 16
	fails := !away && h.calls%2 == 1
	if fails {
		h.failed[task]++
	}
	h.mu.Unlock()
	switch {
	case away && cut:
		panic(http.ErrAbortHandler)
	case away:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case !fails:
		h.next.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = fmt.Fprint(w, `{"error": {"code": "SERVICE_UNAVAILABLE", "message": "not this time"}}`)
}

func (h *halfWell) times(task string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed[task]
}

// requested are the tasks that the orchestrator asks for, in turn: what each is, and
// how its story goes after created and as many failures as there were.
var requested = []struct {
	definition string
	input      object
	story      []string
}{
	{"noop", object{"n": 1}, []string{"task.started", "task.completed"}},
	{"twice", object{"n": 21}, []string{"task.started", "task.completed"}},
	{"invoice", object{"contact_id": "CONT-1"}, []string{"task.started", "task.completed"}},
	{"email", object{"to_address": "a@example.com"}, []string{"task.started", "task.completed"}},
	{"review", object{}, []string{"task.manual.assigned"}},
	{"refused", object{"contact_id": "CONT-REJECTED"}, []string{"task.started", "task.failed"}},
}

// The orchestrator has the bus and nothing else. It asks for two hundred tasks, ten of
// them twice, five of them impossible, while half of the integrations fail, some
// get no answer, and the User and the Notification Service are gone; and hears of each task exactly its
// story, by subject and schema, under its own correlation id.
func TestOrchestratorOverTheBusAlone(t *testing.T) {
	t.Parallel()
	const tasks, twice, poison = 200, 10, 5
	b := setupServe(t, true)
	b.peers.Steer(peertest.User, peertest.Steering{Mode: peertest.ModeGone})
	b.peers.Steer(peertest.Notification, peertest.Steering{Mode: peertest.ModeGone})
	behind, err := url.Parse(b.peers.URL())
	require.NoError(t, err)
	integrations := &halfWell{next: httputil.NewSingleHostReverseProxy(behind), failed: map[string]int{}}
	front := serveWeb(t, integrations)
	p := start(t, append(b.env, "TES_INTEGRATION_URL="+front.URL), "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	define(t, api, b.peers.Token("workflow-orchestrator"))

	document := readAsyncAPI(t, api)
	ears := newRecorder()
	var mu sync.Mutex
	stories := map[string][]string{} // subjects by correlation id
	ids := map[string]string{}       // task by correlation id
	var wrong []error
	var reasons []string
	hear := func(d outbox.Delivery, seq uint64) {
		ears.hear(d, seq)
		mu.Lock()
		defer mu.Unlock()
		var event outbox.Envelope[struct{ TaskID string }]
		wrong = append(wrong, document.check(d), json.Unmarshal(d.Body, &event))
		story := event.Metadata.CorrelationID
		stories[story] = append(stories[story], d.Subject)
		if before := ids[story]; before != "" && before != event.Data.TaskID {
			wrong = append(wrong, fmt.Errorf("%s has the tasks %s and %s", story, before, event.Data.TaskID))
		}
		ids[story] = event.Data.TaskID
	}
	require.NoError(t, b.bus.Subscribe(t.Context(), "task.>", natsbus.All, hear))
	require.NoError(t, b.bus.Subscribe(t.Context(), "deadletter.>", natsbus.All, func(d outbox.Delivery, _ uint64) {
		mu.Lock()
		defer mu.Unlock()
		reasons = append(reasons, d.Header[natsbus.ReasonHeader])
	}))

	say := func(body []byte) { require.NoError(t, b.bus.Send(t.Context(), outbox.SubjectTaskRequested, nil, body)) }
	for i := range tasks - poison {
		kind := requested[i%len(requested)]
		body := taskRequested(fmt.Sprintf("c-%d", i), object{
			"requestId": fmt.Sprintf("r-%d", i), "workflowId": "wf", "taskDefinitionId": kind.definition, "input": kind.input,
		})
		say(body)
		switch {
		case i < twice/2: // the bus repeats it
			say(body)
		case i < twice: // the orchestrator does, under another id
			say(taskRequested(fmt.Sprintf("c-%d", i), object{
				"requestId": fmt.Sprintf("r-%d", i), "workflowId": "wf", "taskDefinitionId": kind.definition, "input": kind.input,
			}))
		}
	}
	for _, bad := range [][]byte{
		[]byte("{"),
		taskRequested("p-1", object{"workflowId": "wf", "taskDefinitionId": "unheard-of", "input": object{}}),
		taskRequested("p-2", object{"taskDefinitionId": "noop", "input": object{}}),
		taskRequested("p-3", object{"workflowId": "wf", "taskDefinitionId": "noop", "priority": "SOON", "input": object{}}),
		taskRequested("p-4", object{"requestId": "r-0", "workflowId": "another", "taskDefinitionId": "noop", "input": object{}}),
	} {
		say(bad)
	}

	// What each story must be is known once its task is: from how often it failed.
	told := func(i int) error {
		story := fmt.Sprintf("c-%d", i)
		want := []string{"task.created"}
		for range integrations.times(ids[story]) {
			want = append(want, "task.started", "task.retry")
		}
		// An attempt that was given back for an outage begins again, and that is all.
		heard := slices.Compact(slices.Clone(stories[story]))
		if want = append(want, requested[i%len(requested)].story...); !slices.Equal(want, heard) {
			return fmt.Errorf("%s (%s): heard %v, not %v", story, requested[i%len(requested)].definition, heard, want)
		}
		return nil
	}
	// Each time its breaker opens, the Integration Service is left alone for ten seconds.
	eventually(t, 5*patience, func() error {
		mu.Lock()
		defer mu.Unlock()
		for i := range tasks - poison {
			if err := told(i); err != nil {
				return err
			}
		}
		if len(reasons) < poison {
			return fmt.Errorf("%d of %d dead letters", len(reasons), poison)
		}
		return nil
	})
	mu.Lock()
	again := 0
	for _, story := range stories {
		again += len(story) - len(slices.Compact(slices.Clone(story)))
	}
	require.Positive(t, again)
	require.Equal(t, number(t, b.dsn, "SELECT count(*) FROM task_event WHERE type = 'released'"), again, "each beginning is told")
	require.Zero(t, number(t, b.dsn, "SELECT count(*) FROM task WHERE type = 'INTEGRATION' AND status = 'COMPLETED' AND attempt <> failures + 1"), "no attempt is spent on an outage")
	require.Contains(t, p.stderr.String(), `"msg":"a breaker is open: what needs it waits, or goes on with its fallback","breaker":"integration"`)
	require.NoError(t, errors.Join(wrong...))
	require.Len(t, stories, tasks-poison, "nobody else is told of")
	require.Len(t, reasons, poison)
	require.NotContains(t, reasons, "")
	mu.Unlock()
	require.Equal(t, tasks-poison, number(t, b.dsn, "SELECT count(*) FROM task"))
	eventually(t, patience, func() error {
		metrics := must(t, http.StatusOK, "GET", api+tasksPath+"/metrics", b.peers.Token("monitoring-service"), nil)
		for _, one := range metrics["inbound"].([]any) {
			if of := one.(object); of["subject"] == outbox.SubjectTaskRequested {
				if of["acted"] != float64(tasks-poison) || of["repeated"] != float64(twice) || of["dead"] != float64(poison) {
					return fmt.Errorf("counted: %v", of)
				}
				return nil
			}
		}
		return errors.New("nothing is counted")
	})
	holdTold(t, b.dsn, ears)
}

func taskRequested(correlation string, data object) []byte {
	text, _ := json.Marshal(object{
		"type": outbox.SubjectTaskRequested, "id": uuid.NewString(), "timestamp": "2026-01-15T10:30:00Z", "data": data,
		"metadata": object{"correlationId": correlation, "source": "workflow-orchestrator"},
	})
	return text
}

// define registers what the orchestrator will ask for.
func define(t *testing.T, api, token string) {
	t.Helper()
	retry := object{"maxRetries": 50, "retryInterval": 20, "backoffMultiplier": 1}
	invoke := func(method string) object {
		return object{"integration": object{"type": "REST", "method": method, "instance": "peer", "async": method == "send_email"}}
	}
	for id, definition := range map[string]object{
		"noop":    {"type": "AUTOMATED", "executionConfig": object{"executor": "noop"}},
		"twice":   {"type": "AUTOMATED", "executionConfig": object{"executor": "expression", "expression": []object{{"name": "twice", "value": "input.n + input.n"}}}},
		"invoice": {"type": "INTEGRATION", "retryPolicy": retry, "executionConfig": invoke("create_invoice")},
		"email":   {"type": "INTEGRATION", "retryPolicy": retry, "executionConfig": invoke("send_email")},
		"refused": {"type": "INTEGRATION", "retryPolicy": retry, "executionConfig": invoke("create_invoice")},
		"review": {"type": "MANUAL", "executionConfig": object{
			"assignmentRules": object{"role": "reviewer", "defaultGroup": "back-office"}, "notifications": object{"channels": []any{"email", "in-app"}},
		}},
	} {
		definition["name"], definition["version"] = id, "1.0.0"
		must(t, http.StatusCreated, "PUT", api+definitionsPath+"/"+id, token, definition)
	}
}
