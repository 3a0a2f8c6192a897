// Package api is the HTTP API and the bus consumer of the service. It authenticates requests,
// validates them, and calls package jobs.
//
// Reads may query the database directly, as a role that row-level security restricts to the
// caller's tenant. Every write is a transition made by package jobs.
//
// A request passes these steps: observe (id, log line, time limit, panics), admit (token, scope,
// rate limit), takeBody (size, time, JSON guard), keyed (idempotency key), huma (schema), the handler.
// observe is a method of observer, admit of gate, keyed of idempotency.
//
// api.go lists the routes. The handlers are methods of taskHandlers, worklistHandlers,
// leaseHandlers, definitionHandlers, deadLetterHandlers, pauseHandlers and metricsHandlers, which
// share core; each operation has a file of its own. The bus consumer is in events.go.
package api

import (
	"cmp"
	"context"
	"errors"
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

// API is the API server: the router, and the steps that every operation shares. The handlers of the
// operations are types of their own, one for each resource.
type API struct {
	router    *chi.Mux
	huma      huma.API
	maxBody   int64
	gate      *gate
	keys      *idempotency
	documents *documents
	mounts    mounts
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

// withDefaults fills the unset fields.
func (cfg Config) withDefaults() Config {
	cfg.MaxBody = cmp.Or(cfg.MaxBody, 1<<20)
	cfg.RequestTimeout = cmp.Or(cfg.RequestTimeout, 10*time.Second)
	cfg.AnswerTime = cmp.Or(cfg.AnswerTime, answerTime)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	// Interfaces and functions: their zero value would have to be checked at every call.
	if cfg.UserTokens == nil {
		cfg.UserTokens = noUserTokens{}
	}
	if cfg.Breakers == nil {
		cfg.Breakers = func() []retry.Status { return nil }
	}
	return cfg
}

// build makes the server and its documents without opening a connection, so that the documents can
// be printed without a database.
func build(cfg Config) (*API, error) {
	cfg = cfg.withDefaults()
	counts := &refusals{}
	g := &gate{
		verifier: cfg.Verifier, userTokens: cfg.UserTokens, requireUserToken: cfg.RequireUserToken,
		limits: newLimits(cfg.Limits), refusals: counts,
	}

	a := &API{
		router: chi.NewMux(), maxBody: cfg.MaxBody, gate: g, keys: &idempotency{cfg.Tasks, g}, documents: &documents{}, mounts: cfg.Mounts,
	}
	if err := a.mounts.validate(); err != nil {
		return nil, err
	}

	a.router.Use(newObserver(cfg, counts).observe, headAsGet)
	// chi's own responses are plain text.
	a.router.NotFound(a.notFound)
	a.router.MethodNotAllowed(a.notAllowed)
	a.huma = humachi.New(a.router, describe())
	// limit registers the types first, so the routes may follow.
	schemas := a.huma.OpenAPI().Components.Schemas
	limit(schemas)
	a.routes(newHandlers(cfg, g, counts, reader{schemas}))
	a.openRoutes(&probes{
		across: db.New(cfg.Reads), ready: cfg.Ready, draining: cfg.Draining, bus: cfg.Bus, relay: cfg.Relay,
	})
	for _, m := range a.mounts {
		a.mount(m, cfg.Tasks)
	}

	// Last, because the document lists the operations that are registered by now.
	if err := a.documents.print(a.huma.OpenAPI()); err != nil {
		return nil, err
	}
	return a, nil
}

// handlers are the handlers of the operations, by resource.
type handlers struct {
	tasks       *taskHandlers
	worklist    *worklistHandlers
	leases      *leaseHandlers
	definitions *definitionHandlers
	deadLetters *deadLetterHandlers
	pauses      *pauseHandlers
	metrics     *metricsHandlers
}

func newHandlers(cfg Config, g *gate, counts *refusals, r reader) *handlers {
	shared := &core{tasks: cfg.Tasks, reads: cfg.Reads}
	return &handlers{
		tasks:       &taskHandlers{core: shared, gate: g, reader: r, breakers: cfg.Breakers},
		worklist:    &worklistHandlers{core: shared, gate: g},
		leases:      &leaseHandlers{core: shared, gate: g},
		definitions: &definitionHandlers{core: shared},
		deadLetters: &deadLetterHandlers{core: shared},
		pauses:      &pauseHandlers{core: shared},
		metrics:     &metricsHandlers{tasks: cfg.Tasks, across: db.New(cfg.Reads), breakers: cfg.Breakers, refusals: counts},
	}
}

// routes registers every operation: its path, its callers, its documentation and its handler.
func (a *API) routes(h *handlers) {
	const tasks, definitions, letters = "/api/internal/tasks", "/api/internal/task-definitions", "/api/internal/dead-letters"

	route(a, "POST", tasks, by("tasks:create", orchestrator), createTaskDoc, h.tasks.createTask)
	route(a, "POST", tasks+"/batch", by("tasks:create", orchestrator), createTasksDoc, h.tasks.createTasks)
	route(a, "GET", tasks+"/{taskId}", by("tasks:read", orchestrator, ui), getTaskDoc, h.tasks.getTask)
	route(a, "PUT", tasks+"/{taskId}/status", by("tasks:update", orchestrator), updateTaskStatusDoc, h.tasks.updateTaskStatus)
	route(a, "POST", tasks+"/{taskId}/cancel", by("tasks:cancel", orchestrator), cancelTaskDoc, h.tasks.cancelTask)
	route(a, "GET", tasks+"/workflow/{workflowId}", by("tasks:read", orchestrator, ui), listTasksByWorkflowDoc, h.tasks.listTasksByWorkflow)
	route(a, "POST", tasks+"/{taskId}/reassign", by("tasks:reassign", ui), reassignTaskDoc, h.worklist.reassignTask)
	route(a, "POST", tasks+"/{taskId}/claim", by("tasks:update", ui), claimTaskDoc, h.worklist.claimTask)
	route(a, "POST", tasks+"/{taskId}/unclaim", by("tasks:update", ui), unclaimTaskDoc, h.worklist.unclaimTask)
	route(a, "POST", tasks+"/{taskId}/complete", by("tasks:update", ui), completeTaskDoc, h.worklist.completeTask)
	route(a, "POST", tasks+"/claim-next", by("tasks:update", ui), claimNextTaskDoc, h.worklist.claimNextTask)
	route(a, "GET", tasks+"/user/{userId}", by("tasks:read", ui), listTasksByUserDoc, h.tasks.listTasksByUser)
	route(a, "GET", tasks+"/metrics", by("tasks:metrics", monitoring), getTaskMetricsDoc, h.metrics.getTaskMetrics)

	route(a, "GET", tasks+"/{taskId}/why", anyone("tasks:read"), whyTaskDoc, h.tasks.whyTask)
	route(a, "GET", tasks+"/{taskId}/events", anyone("tasks:read"), listTaskEventsDoc, h.tasks.listTaskEvents)
	route(a, "GET", tasks+"/{taskId}/attempts", anyone("tasks:read"), listTaskAttemptsDoc, h.tasks.listTaskAttempts)

	route(a, "PUT", definitions+"/{id}", by("tasks:define", orchestrator), putTaskDefinitionDoc, h.definitions.putTaskDefinition)
	route(a, "GET", definitions+"/{id}", anyone("tasks:read"), getTaskDefinitionDoc, h.definitions.getTaskDefinition)
	route(a, "GET", definitions, anyone("tasks:read"), listTaskDefinitionsDoc, h.definitions.listTaskDefinitions)

	// The handlers distinguish tasks from dead letters: see mayWork.
	work := access{scope: "tasks:work", or: "tasks:deadletter"}
	route(a, "POST", leasesPath, work, dequeueTasksDoc, h.leases.dequeueTasks)
	route(a, "POST", leasesPath+"/heartbeats", work, heartbeatsDoc, h.leases.heartbeats)
	route(a, "POST", leasesPath+"/{leaseToken}/heartbeat", work, heartbeatDoc, h.leases.heartbeat)
	route(a, "POST", leasesPath+"/{leaseToken}/complete", work, completeLeaseDoc, h.leases.completeLease)
	route(a, "POST", leasesPath+"/{leaseToken}/fail", work, failLeaseDoc, h.leases.failLease)
	route(a, "POST", leasesPath+"/{leaseToken}/release", work, releaseLeaseDoc, h.leases.releaseLease)

	route(a, "GET", "/api/internal/workers", anyone("tasks:read"), listWorkersDoc, h.leases.listWorkers)

	route(a, "GET", letters, deadLetterAccess, listDeadLettersDoc, h.deadLetters.listDeadLetters)
	route(a, "POST", letters+"/redrive", deadLetterAccess, redriveDoc, h.deadLetters.redriveDeadLetters)
	route(a, "GET", letters+"/operations/{operationId}", deadLetterAccess, getRedriveDoc, h.deadLetters.getRedrive)
	route(a, "POST", letters+"/operations/{operationId}/stop", deadLetterAccess, stopRedriveDoc, h.deadLetters.stopRedrive)
	route(a, "POST", letters+"/operations/{operationId}/undo", deadLetterAccess, undoRedriveDoc, h.deadLetters.undoRedrive)
	route(a, "POST", letters+"/{taskId}/discard", deadLetterAccess, discardDoc, h.deadLetters.discardDeadLetter)

	const queues, pauses = "/api/internal/queues", "/api/internal/pauses"
	route(a, "POST", queues+"/{queue}/pause", anyone(scopePause), pauseQueueDoc, h.pauses.pauseQueue)
	route(a, "POST", queues+"/{queue}/resume", anyone(scopePause), resumeQueueDoc, h.pauses.resumeQueue)
	route(a, "POST", definitions+"/{id}/pause", anyone(scopePause), pauseDefinitionDoc, h.pauses.pauseDefinition)
	route(a, "POST", definitions+"/{id}/resume", anyone(scopePause), resumeDefinitionDoc, h.pauses.resumeDefinition)
	route(a, "POST", tasks+"/{taskId}/pause", anyone(scopePause), pauseTaskDoc, h.pauses.pauseTask)
	route(a, "POST", tasks+"/{taskId}/resume", anyone(scopePause), resumeTaskDoc, h.pauses.resumeTask)
	route(a, "GET", pauses, anyone("tasks:read"), listPausesDoc, h.pauses.listPauses)
}

// openRoutes registers the probes and the documents. They are open to everybody and not part of the
// OpenAPI document: the probes reveal no addresses, and the documents are public.
func (a *API) openRoutes(p *probes) {
	a.router.Get("/livez", p.livez)
	a.router.Get("/readyz", p.readyz)
	a.router.Get("/openapi.yaml", a.documents.openapiYAML)
	a.router.Get("/openapi.json", a.documents.openapiJSON)
	a.router.Get("/asyncapi.yaml", a.documents.asyncapiYAML)
	a.router.Get("/asyncapi.json", a.documents.asyncapiJSON)
}

func (a *API) notFound(_ http.ResponseWriter, r *http.Request) {
	writeProblem(callOf(r.Context()), problem(http.StatusNotFound, codeNotFound, "no such path"))
}

func (a *API) notAllowed(_ http.ResponseWriter, r *http.Request) {
	// chi matches the escaped path if there is one.
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

	// chi calls this handler for unknown methods too.
	if allowed == nil {
		a.notFound(nil, r)
		return
	}

	writeProblem(callOf(r.Context()), problem(http.StatusMethodNotAllowed, codeMethod, "the path accepts "+strings.Join(allowed, ", ")).
		with("Allow", strings.Join(allowed, ", ")))
}
