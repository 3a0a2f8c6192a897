package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/jobs"
)

// readyTime bounds the checks of /readyz.
const readyTime = 2 * time.Second

// probes serve /livez and /readyz.
type probes struct {
	across   *db.Queries // not bound to a tenant: see core.read
	ready    func(context.Context) error
	draining func() bool                   // nil: never
	bus      func() (state, reason string) // nil: omitted
	relay    func() string                 // nil: omitted
}

// livez reports that the process runs, without any check: orchestrators kill processes that fail this
// probe, and an unavailable database is no reason to kill a process.
func (p *probes) livez(w http.ResponseWriter, r *http.Request) {
	callOf(r.Context()).route = "/livez"
	writeText(w, "application/json", []byte(`{"status":"ok"}`+"\n"))
}

// readyz reports whether requests should be sent to this process.
func (p *probes) readyz(w http.ResponseWriter, r *http.Request) {
	c := callOf(r.Context())
	c.route = "/readyz"
	ctx, cancel := context.WithTimeout(r.Context(), readyTime)
	defer cancel()
	// A stopping process answers at once, without a query.
	if p.draining != nil && p.draining() {
		writeProblem(c, unavailable("the process is stopping"))
		return
	}

	err := p.ready(ctx)
	var maintained []db.MaintenanceInForceRow
	if err == nil {
		maintained, err = p.across.MaintenanceInForce(ctx)
	}
	if err != nil {
		writeProblem(c, unavailable(notReady(err)).because(err))
		return
	}

	// Unknown events do not make a process unready: every process would be, and nothing could be done
	// by stopping to serve.
	unknown, err := p.across.EventUnknownCount(ctx)
	if err != nil {
		writeProblem(c, unavailable(notReady(err)).because(err))
		return
	}

	answer := readiness{Status: "ok", Database: "ok", Maintenance: make([]maintainedLane, len(maintained))}
	for i, m := range maintained {
		answer.Maintenance[i] = maintainedLane{Lane: string(m.Lane), Since: m.Since.UTC(), Until: utc(m.Until), Reason: m.Reason}
	}

	if unknown > 0 {
		answer.Status, answer.UnknownEvents = "degraded", unknown
	}
	if p.bus != nil {
		answer.Bus, answer.BusReason = p.bus()
	}
	if p.relay != nil {
		answer.Relay = p.relay()
	}

	text, err := json.Marshal(answer)
	if err != nil {
		writeProblem(c, problem(http.StatusInternalServerError, codeInternal, internalText).because(err))
		return
	}

	writeText(w, "application/json", append(text, '\n'))
}

// notReady describes why the database cannot be used. The endpoint is open to everybody, so the
// text reveals no addresses.
func notReady(err error) string {
	var refuses *jobs.NotWritable
	if errors.As(err, &refuses) {
		return refuses.Error()
	}
	if errors.Is(err, pgpool.ErrReadOnly) {
		return "the database is a standby"
	}
	return "the database does not respond"
}

// readiness is the body of a 200. An unavailable bus does not make a process unready: the outbox
// keeps the events.
type readiness struct {
	Status   string `json:"status"` // ok, or degraded where there are unknown events
	Database string `json:"database"`
	// UnknownEvents is the number of events on the bus that the database lacks because it was restored
	// to an earlier state.
	UnknownEvents int64            `json:"unknownEvents,omitempty"`
	Bus           string           `json:"bus,omitempty"` // ok, away or failing
	BusReason     string           `json:"busReason,omitempty"`
	Relay         string           `json:"relay,omitempty"` // leading, standing by, silent or failing
	Maintenance   []maintainedLane `json:"maintenance"`
}

type maintainedLane struct {
	Lane   string     `json:"lane"`
	Since  time.Time  `json:"since"`
	Until  *time.Time `json:"until,omitempty"`
	Reason string     `json:"reason,omitempty"`
}

// Starting is the handler until the API exists: /livez is ok, /readyz is not.
func Starting() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{ResponseWriter: w, id: requestID(r), path: r.URL.Path}
		c.expects(r.WithContext(r.Context()))
		header := w.Header()
		header["X-Request-Id"], header["X-Content-Type-Options"], header["Cache-Control"] = []string{c.id}, noSniff, noStore
		if c.path == "/livez" {
			writeText(c, "application/json", []byte(`{"status":"ok"}`+"\n"))
			return
		}
		writeProblem(c, unavailable("the process is starting"))
	})
}

func writeText(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(body)
}
