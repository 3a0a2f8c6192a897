// Package api is the HTTP API and the bus consumer of the service. It authenticates requests,
// validates them, and calls package jobs.
//
// Reads may query the database directly, as a role that row-level security restricts to the
// caller's tenant. Every write is a transition made by package jobs.
//
// A request passes these steps: observe (id, log line, time limit, panics), admit (token, scope,
// rate limit), takeBody (size, time, JSON guard), huma (schema), write (idempotency key), the
// handler. api.go lists the routes; each handler has a file of its own.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// Config configures New. Tasks, Reads and Verifier must be set; the zero value of every other field
// is right for production.
type Config struct {
	// Tasks makes the transitions.
	Tasks *jobs.Tasks
	// Reads is a pool of its own, so that readers cannot delay transitions. Its login must be able to
	// become tes_read: see pgpool.ReadAs.
	Reads Reads
	// Verifier verifies service tokens. The caller closes it.
	Verifier *auth.Verifier
	// UserTokens verifies people's own tokens; default: every such token is refused.
	UserTokens UserTokens
	// RequireUserToken refuses requests on behalf of a person without that person's token; default:
	// the service's token is enough.
	RequireUserToken bool
	// Ready returns nil if requests should be sent to this process; default: if the database answers.
	Ready func(context.Context) error
	// Breakers returns the circuit breakers of this process, for the metrics and for the why
	// operation; default: none.
	Breakers func() []retry.Status
	// Draining returns true when the process is about to stop and is no longer ready; default: never.
	Draining func() bool
	// Bus returns the state of the bus (ok, away or failing) and the reason in words, for /readyz;
	// default: omitted.
	Bus func() (state, reason string)
	// Relay returns the state of this process's relay: leading, standing by, silent or failing;
	// default: omitted.
	Relay func() string
	// MaxBody is the largest request body in bytes. A batch may have eight times as many. Default: 1
	// MiB.
	MaxBody int64
	// RequestTimeout bounds a request, except for mounts; default: 10 s.
	RequestTimeout time.Duration
	// Limits are the rate limits of callers; default: none.
	Limits Limits
	// AnswerTime is the time in which a client must read a response, for each started MiB; default: 5
	// s.
	AnswerTime time.Duration
	// Mounts are further handlers; default: none.
	Mounts []Mount
	// Version of the program, for the Server header; default: no such header.
	Version string
	// Tracer makes a span for each request; default: nil, no spans.
	Tracer trace.Tracer
	// Logger gets one line for each request; default: slog.Default.
	Logger *slog.Logger
}

// Reads is a pool for reading: a *pgxpool.Pool or a *pgpool.Pooled.
type Reads interface {
	db.DBTX
	BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error)
	Ping(ctx context.Context) error
	Reset()
}

// Mount adds a handler behind the API's log, panic handler and request ids. Cross-origin requests
// of browsers are refused.
type Mount struct {
	// Prefix begins with a slash and ends without a slash, such as /riverui.
	Prefix string
	// Handler gets the whole path, including Prefix.
	Handler http.Handler
	// Scope that a service token must have; empty: Handler checks for itself.
	Scope string
	// Login lets people log in with a browser; default: none, and the handler is open to everybody.
	Login *Login
	// RiverUI marks River UI, whose actions on jobs become operations on their tasks; default: false.
	RiverUI bool
}

// API is the API server.
type API struct {
	cfg        Config
	log        *slog.Logger
	across     *db.Queries // for reads over all tenants: see API.read
	router     *chi.Mux
	huma       huma.API
	reader     reader
	limits     *limits
	yaml, json []byte                      // the OpenAPI document
	events     struct{ yaml, json []byte } // the AsyncAPI document
	server     []string                    // the Server header; nil: no such header
}

// New makes the API server.
func New(cfg Config) (*API, error) {
	if cfg.Tasks == nil || cfg.Reads == nil || cfg.Verifier == nil {
		return nil, errors.New("api: Tasks, Reads and Verifier must be set")
	}
	if cfg.Ready == nil {
		cfg.Ready = cfg.Reads.Ping
	}
	return build(cfg)
}

// Handler serves every request.
func (a *API) Handler() http.Handler { return a.router }

// routes registers every route.
func (a *API) routes() {
	const tasks, definitions, letters = "/api/internal/tasks", "/api/internal/task-definitions", "/api/internal/dead-letters"

	route(a, "POST", tasks, by("tasks:create", orchestrator), createTaskDoc, a.createTask)
	route(a, "POST", tasks+"/batch", by("tasks:create", orchestrator), createTasksDoc, a.createTasks)
	route(a, "GET", tasks+"/{taskId}", by("tasks:read", orchestrator, ui), getTaskDoc, a.getTask)
	route(a, "PUT", tasks+"/{taskId}/status", by("tasks:update", orchestrator), updateTaskStatusDoc, a.updateTaskStatus)
	route(a, "POST", tasks+"/{taskId}/cancel", by("tasks:cancel", orchestrator), cancelTaskDoc, a.cancelTask)
	route(a, "GET", tasks+"/workflow/{workflowId}", by("tasks:read", orchestrator, ui), listTasksByWorkflowDoc, a.listTasksByWorkflow)
	route(a, "POST", tasks+"/{taskId}/reassign", by("tasks:reassign", ui), reassignTaskDoc, a.reassignTask)
	route(a, "POST", tasks+"/{taskId}/claim", by("tasks:update", ui), claimTaskDoc, a.claimTask)
	route(a, "POST", tasks+"/{taskId}/unclaim", by("tasks:update", ui), unclaimTaskDoc, a.unclaimTask)
	route(a, "POST", tasks+"/{taskId}/complete", by("tasks:update", ui), completeTaskDoc, a.completeTask)
	route(a, "POST", tasks+"/claim-next", by("tasks:update", ui), claimNextTaskDoc, a.claimNextTask)
	route(a, "GET", tasks+"/user/{userId}", by("tasks:read", ui), listTasksByUserDoc, a.listTasksByUser)
	route(a, "GET", tasks+"/metrics", by("tasks:metrics", monitoring), getTaskMetricsDoc, a.getTaskMetrics)

	route(a, "GET", tasks+"/{taskId}/why", anyone("tasks:read"), whyTaskDoc, a.whyTask)
	route(a, "GET", tasks+"/{taskId}/events", anyone("tasks:read"), listTaskEventsDoc, a.listTaskEvents)
	route(a, "GET", tasks+"/{taskId}/attempts", anyone("tasks:read"), listTaskAttemptsDoc, a.listTaskAttempts)

	route(a, "PUT", definitions+"/{id}", by("tasks:define", orchestrator), putTaskDefinitionDoc, a.putTaskDefinition)
	route(a, "GET", definitions+"/{id}", anyone("tasks:read"), getTaskDefinitionDoc, a.getTaskDefinition)
	route(a, "GET", definitions, anyone("tasks:read"), listTaskDefinitionsDoc, a.listTaskDefinitions)

	work := access{scope: "tasks:work", or: "tasks:deadletter"}
	route(a, "POST", leasesPath, work, dequeueTasksDoc, a.dequeueTasks)
	route(a, "POST", leasesPath+"/heartbeats", work, heartbeatsDoc, a.heartbeats)
	route(a, "POST", leasesPath+"/{leaseToken}/heartbeat", work, heartbeatDoc, a.heartbeat)
	route(a, "POST", leasesPath+"/{leaseToken}/complete", work, completeLeaseDoc, a.completeLease)
	route(a, "POST", leasesPath+"/{leaseToken}/fail", work, failLeaseDoc, a.failLease)
	route(a, "POST", leasesPath+"/{leaseToken}/release", work, releaseLeaseDoc, a.releaseLease)

	route(a, "GET", "/api/internal/workers", anyone("tasks:read"), listWorkersDoc, a.listWorkers)

	route(a, "GET", letters, desk, listDeadLettersDoc, a.listDeadLetters)
	route(a, "POST", letters+"/redrive", desk, redriveDoc, a.redriveDeadLetters)
	route(a, "GET", letters+"/operations/{operationId}", desk, getRedriveDoc, a.getRedrive)
	route(a, "POST", letters+"/operations/{operationId}/stop", desk, stopRedriveDoc, a.stopRedrive)
	route(a, "POST", letters+"/operations/{operationId}/undo", desk, undoRedriveDoc, a.undoRedrive)
	route(a, "POST", letters+"/{taskId}/discard", desk, discardDoc, a.discardDeadLetter)

	const queues, pauses = "/api/internal/queues", "/api/internal/pauses"
	route(a, "POST", queues+"/{queue}/pause", anyone(scopePause), pauseQueueDoc, a.pauseQueue)
	route(a, "POST", queues+"/{queue}/resume", anyone(scopePause), resumeQueueDoc, a.resumeQueue)
	route(a, "POST", definitions+"/{id}/pause", anyone(scopePause), pauseDefinitionDoc, a.pauseDefinition)
	route(a, "POST", definitions+"/{id}/resume", anyone(scopePause), resumeDefinitionDoc, a.resumeDefinition)
	route(a, "POST", tasks+"/{taskId}/pause", anyone(scopePause), pauseTaskDoc, a.pauseTask)
	route(a, "POST", tasks+"/{taskId}/resume", anyone(scopePause), resumeTaskDoc, a.resumeTask)
	route(a, "GET", pauses, anyone("tasks:read"), listPausesDoc, a.listPauses)

	// Open to everybody, and not part of the document: these routes only return public facts.
	a.router.Get("/livez", a.livez)
	a.router.Get("/readyz", a.readyz)
	a.router.Get("/openapi.yaml", a.openapiYAML)
	a.router.Get("/openapi.json", a.openapiJSON)
	a.router.Get("/asyncapi.yaml", a.asyncapiYAML)
	a.router.Get("/asyncapi.json", a.asyncapiJSON)
	for _, m := range a.cfg.Mounts {
		a.mount(m)
	}
}

// build makes the server and its documents. It calls nothing outside, so that the documents can be
// printed without a database.
func build(cfg Config) (*API, error) {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 1 << 20
	}

	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = 10 * time.Second
	}
	if cfg.AnswerTime == 0 {
		cfg.AnswerTime = answerTime
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}

	if cfg.UserTokens == nil {
		cfg.UserTokens = noUserTokens{}
	}
	if cfg.Breakers == nil {
		cfg.Breakers = func() []retry.Status { return nil }
	}

	for _, m := range cfg.Mounts {
		if !strings.HasPrefix(m.Prefix, "/") || strings.HasSuffix(m.Prefix, "/") || strings.HasPrefix(m.Prefix, "/api") || m.Handler == nil {
			return nil, fmt.Errorf("api: cannot mount at %q", m.Prefix)
		}
	}

	a := &API{cfg: cfg, log: cfg.Logger, across: db.New(cfg.Reads), router: chi.NewMux(), limits: newLimits(cfg.Limits)}
	if cfg.Version != "" {
		a.server = []string{"tes/" + cfg.Version}
	}

	a.router.Use(a.observe, headAsGet)
	a.router.NotFound(a.notFound)
	a.router.MethodNotAllowed(a.notAllowed)
	a.huma = humachi.New(a.router, describe())
	limit(a.huma.OpenAPI().Components.Schemas)
	a.routes()
	a.reader = reader{a.huma.OpenAPI().Components.Schemas}
	var err error
	if a.yaml, err = a.huma.OpenAPI().YAML(); err != nil {
		return nil, fmt.Errorf("print openapi.yaml: %w", err)
	}

	if a.json, err = a.huma.OpenAPI().MarshalJSON(); err != nil {
		return nil, fmt.Errorf("print openapi.json: %w", err)
	}
	if a.events.json, err = asyncJSON(); err != nil {
		return nil, err
	}
	if a.events.yaml, err = AsyncAPI(); err != nil {
		return nil, err
	}

	return a, nil
}

func (a *API) mount(m Mount) {
	h := m.Handler
	if m.RiverUI {
		h = a.operated(m, h)
	}

	if m.Login != nil {
		h = a.withLogin(m, h)
	}

	h = unframed(http.NewCrossOriginProtection().Handler(h))
	if m.Scope != "" {
		h = a.guarded(anyone(m.Scope), h)
	}

	named := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		callOf(r.Context()).route = m.Prefix + "/*"
		h.ServeHTTP(w, r)
	})
	a.router.Handle(m.Prefix, named)
	a.router.Handle(m.Prefix+"/*", named)
}

// mounted returns whether a path belongs to a mount.
func (a *API) mounted(path string) bool {
	for _, m := range a.cfg.Mounts {
		if rest, ok := strings.CutPrefix(path, m.Prefix); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

func (a *API) notFound(_ http.ResponseWriter, r *http.Request) {
	writeProblem(callOf(r.Context()), problem(http.StatusNotFound, codeNotFound, "there is nothing at this path"))
}

func (a *API) notAllowed(_ http.ResponseWriter, r *http.Request) {
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.Path
	}

	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
		if a.router.Match(chi.NewRouteContext(), method, path) {
			allowed = append(allowed, method)
			if method == http.MethodGet {
				allowed = append(allowed, http.MethodHead) // headAsGet
			}
		}
	}

	if allowed == nil { // chi calls this handler for unknown methods too
		a.notFound(nil, r)
		return
	}

	writeProblem(callOf(r.Context()), problem(http.StatusMethodNotAllowed, codeMethod, "this path takes "+strings.Join(allowed, ", ")).
		with("Allow", strings.Join(allowed, ", ")))
}
