package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

// wanted is what requests.json promises, entry by entry.
var wanted = []struct {
	definition, lane, status string
	attempts, events         int
}{
	{"calculate-order-total", "automated", "COMPLETED", 1, 3},
	{"review-high-value-order", "manual", "COMPLETED", 1, 3},
	{"review-term-sheet", "manual", "COMPLETED", 1, 3},
	{"create-invoice", "retry", "COMPLETED", 2, 5},
	{"send-email", "integration", "COMPLETED", 1, 3},
	{"create-invoice", "deadletter", "FAILED", 1, 3},
}

// demoRow is what --json prints of each task.
type demoRow struct {
	Definition string  `json:"task"`
	ID         string  `json:"taskId"`
	Lane       string  `json:"lane"`
	Attempts   int     `json:"attempts"`
	Status     string  `json:"status"`
	Seconds    float64 `json:"seconds"`
	Events     int     `json:"events"`
	Wrong      string  `json:"wrong"`
}

func TestDemoAsJSON(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := tes(t, environ(), "demo", "--json")
	require.Equal(t, exitOK, code, "%s\n%s", stdout, stderr)
	require.Empty(t, stderr)
	var rows []demoRow
	require.NoError(t, json.Unmarshal([]byte(stdout), &rows), "JSON, and nothing else: %s", stdout)
	require.Len(t, rows, len(wanted))
	for i, row := range rows {
		want := wanted[i]
		require.Equal(t, want.definition, row.Definition)
		require.Equal(t, want.status, row.Status)
		require.Equal(t, want.lane, row.Lane)
		require.Equal(t, want.attempts, row.Attempts, row.Definition)
		require.Equal(t, want.events, row.Events, row.Definition)
		require.Empty(t, row.Wrong)
		require.Len(t, row.ID, 36)
		require.Positive(t, row.Seconds)
	}
}

// The demo as a newcomer has it, but into a pipe, and with the PG* variables that
// a developer's shell is full of.
func TestDemo(t *testing.T) {
	t.Parallel()
	temp := openDir(t)
	p := startProcess(t, environ("TMPDIR="+temp,
		"PGSERVICE=nosuch", "PGTARGETSESSIONATTRS=read-only", "PGCONNECT_TIMEOUT=x", "PGHOST=127.0.0.1", "PGPORT=1", "PGOPTIONS=-c nonsense"), "demo")
	require.Equal(t, exitOK, p.wait(t, 2*time.Minute), "%s\n%s", p.stdout, p.stderr)
	require.Empty(t, p.stderr.String())
	said := p.stdout.String()
	require.NotContains(t, said, "\x1b", "no colours in a pipe")
	for _, text := range []string{
		"6 task definitions registered.", "task.created", "task.started", "task.manual.assigned", "task.retry", "task.completed", "task.failed",
		"SERVICE_UNAVAILABLE: the accounting system is being restarted; again in", "VALIDATION_ERROR: contact CONT-REJECTED",
		"to reviewer-john-doe, due ", `"total":50.73`,
	} {
		require.Contains(t, said, text)
	}
	_, table, found := strings.Cut(said, "\ntask  ")
	require.True(t, found, said)
	lines := strings.Split(strings.TrimSpace(table), "\n")
	require.Len(t, lines, len(wanted)+3)
	require.Equal(t, []string{"lane", "attempts", "events", "status", "time"}, strings.Fields(lines[0]))
	for i, want := range wanted {
		fields := strings.Fields(lines[i+1])
		require.Equal(t, []string{want.definition, want.lane, fmt.Sprint(want.attempts), fmt.Sprint(want.events), want.status}, fields[:5])
		require.Equal(t, "ok", fields[len(fields)-1])
	}
	require.Equal(t, "6 of 6 tasks did what was expected.", lines[len(lines)-1])
	require.Empty(t, names(t, temp))
	nothingRuns(t, temp)
}

// An Integration Service that does something else than the demo expects: the
// table says so of each task, and the exit code of them all.
func TestDemoFailsWhenAnExpectationDoes(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	other := serveWeb(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			Method     string
			Parameters struct {
				ContactID string `json:"contact_id"`
			}
		}
		_ = json.NewDecoder(r.Body).Decode(&asked)
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Method == http.MethodGet: // how its connection stands; the invocation will tell
			w.WriteHeader(http.StatusNotFound)
		case asked.Method == "send_email":
			fmt.Fprint(w, `{"status": "SUCCESS", "data": {"status": "SENT"}}`)
		case asked.Parameters.ContactID == "CONT-REJECTED":
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"error": {"code": "INTEGRATION_ERROR", "message": "not what was expected"}, "retryable": false}`)
		case calls.Add(1) == 1: // as the demo would have it
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"error": {"code": "SERVICE_UNAVAILABLE", "message": "later"}, "retryable": true}`)
		default: // and then an invoice without a number
			fmt.Fprint(w, `{"status": "SUCCESS", "data": {}}`)
		}
	}))

	code, stdout, stderr := tes(t, environ("TES_INTEGRATION_URL="+other.URL), "demo", "--json")
	require.Equal(t, exitError, code, stdout)
	var rows []demoRow
	require.NoError(t, json.Unmarshal([]byte(stdout), &rows), stdout)
	require.Len(t, rows, len(wanted))
	for i, row := range rows {
		if row.Definition != "create-invoice" {
			require.Empty(t, row.Wrong, row.Definition)
			continue
		}
		require.Equal(t, "FAILED", row.Status)
		text := []string{3: "expected COMPLETED, it is FAILED", 5: "expected error VALIDATION_ERROR, got "}[i]
		require.Contains(t, row.Wrong, text)
		require.Contains(t, stderr, "create-invoice: "+text)
	}
}

// demoInTheMiddle is a demo one of whose tasks waits for a peer service that is not
// there.
func demoInTheMiddle(t *testing.T, temp string) *program {
	t.Helper()
	p := startProcess(t, environ("TMPDIR="+temp, "TES_INTEGRATION_URL=http://"+nobodysPort(t)), "demo")
	eventually(t, patience, func() error {
		for line := range strings.Lines(p.stdout.String()) {
			if fields := strings.Fields(line); len(fields) > 2 && fields[1] == outbox.SubjectStarted && fields[2] == "create-invoice" {
				return nil
			}
		}
		return errors.New("no invoice is being made")
	})
	return p
}

func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	temp := openDir(t)
	p := demoInTheMiddle(t, temp)
	p.signal(t, syscall.SIGINT)
	require.Equal(t, exitError, p.wait(t, 20*time.Second), "%s\n%s", p.stdout, p.stderr)
	require.NotContains(t, p.stderr.String(), "goroutine ")
	require.Empty(t, names(t, temp))
	nothingRuns(t, temp)
}

// Kill -9 of the demo leaves nothing either.
func TestDemoKilled(t *testing.T) {
	t.Parallel()
	temp := openDir(t)
	p := demoInTheMiddle(t, temp)
	require.NotEmpty(t, processesOf(temp))
	require.NoError(t, p.cmd.Process.Kill())
	require.Equal(t, -1, p.wait(t, 10*time.Second))
	nothingRuns(t, temp)
	nothingIn(t, temp)
}
