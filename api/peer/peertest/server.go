// Package peertest fakes the peer services over real HTTP: Auth, Integration, Observability, User,
// Notification, Resource and the Orchestrator.
//
// Each service has its usual responses and can be steered to misbehave, from Go by Steer and from
// outside by PUT {url}/_standin/{service}:
//
//	ok     responds as usual, or with the given status and body
//	error  responds with the given status (503), with body as its error document if there is one
//	slow   waits delayMs (2000), then responds as ok
//	hang   accepts the request and never responds
//	gone   closes the connection without a response
//
// The requests to a service are listed by Requests and by GET {url}/_standin/{service}/requests,
// without secrets. Nothing is stored: a result that must be equal for a repeated request is
// computed from its Idempotency-Key.
package peertest

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// The names of the peer services, as steering knows them.
const (
	Auth          = "auth"
	Integration   = "integration"
	Connection    = "connection" // the Integration Service's endpoint for the state of connections
	Observability = "observability"
	User          = "user"
	Notification  = "notification"
	Resource      = "resource"
	Orchestrator  = "orchestrator"
)

// Services lists every faked peer service.
var Services = []string{Auth, Integration, Connection, Observability, User, Notification, Resource, Orchestrator}

// Config configures Start. The zero value is usable.
type Config struct {
	Listen string            // default: 127.0.0.1:0
	Key    *ecdsa.PrivateKey // signs service tokens; P-256; default: a new one
	Logger *slog.Logger      // default: discards

	// Respond publishes an asynchronous result on the bus. Default: none, and accepted invocations
	// never get a result.
	Respond func(ctx context.Context, subject string, body []byte) error
}

// Server is all the peer services, at one address.
type Server struct {
	respond func(ctx context.Context, subject string, body []byte) error
	logger  *slog.Logger
	url     string
	http    *http.Server
	parts   map[string]*part // fixed by Start
	keys    keyring

	// Ends every hanging request and every result that is still to be published.
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool           // owned by mu; no handler or publication starts once it is set
	busy   sync.WaitGroup // running handlers and publications; added to under mu
}

// Start serves until Close.
func Start(cfg Config) (*Server, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}

	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}

	s := &Server{respond: cfg.Respond, logger: cfg.Logger, parts: map[string]*part{}}
	for _, service := range Services {
		s.parts[service] = newPart(maxRequests)
	}

	s.parts[Observability].most = maxBatches
	if err := s.keys.start(cfg.Key); err != nil {
		return nil, fmt.Errorf("start fake peer services: %w", err)
	}

	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("start fake peer services: %w", err)
	}

	s.url = "http://" + listener.Addr().String()
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s.routes(),
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}

	s.busy.Add(1)
	go func() {
		defer s.busy.Done()
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cfg.Logger.Error("fake peer services stopped listening", "error", err)
		}
	}()
	return s, nil
}

// URL is the base address of every peer service, without a trailing slash.
func (s *Server) URL() string { return s.url }

// Close cuts every connection, ends hanging requests, and waits until no goroutine of the server
// runs or ctx ends.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	// Not Shutdown, which waits for seconds on connections that a client opened and has not used yet.
	if err := s.http.Close(); err != nil {
		return fmt.Errorf("close fake peer services: %w", err)
	}

	idle := make(chan struct{})
	go func() {
		s.busy.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close fake peer services: %w", context.Cause(ctx))
	}
}

// enter counts one more running handler, unless the server is closing.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.busy.Add(1)
	return true
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_standin/{$}", s.getAll)
	mux.HandleFunc("GET /_standin/{service}", s.getSteering)
	mux.HandleFunc("PUT /_standin/{service}", s.putSteering)
	mux.HandleFunc("GET /_standin/{service}/requests", s.getRequests)
	mux.HandleFunc("DELETE /_standin/{service}/requests", s.deleteRequests)

	play := func(service, pattern string, answer answerFunc) { mux.Handle(pattern, s.play(service, answer)) }
	play(Auth, "GET /.well-known/jwks.json", s.jwks)
	play(Auth, "POST /api/auth/validate-token", s.validateToken)
	play(Auth, "/api/auth/", notFound)
	play(Integration, "POST /api/integrations/{id}/invoke", s.invoke)
	mux.Handle("GET /api/integrations/{id}/connection", s.with(Integration, s.play(Connection, connection)))
	play(Integration, "/api/integrations/", notFound)
	play(Observability, "POST /api/tracing/span", accepted)
	play(Observability, "/api/tracing/", notFound)
	play(User, "GET /api/users", usersByRole)
	play(User, "GET /api/users/{id}", userByID)
	play(User, "/api/users/", notFound)
	play(Notification, "POST /api/notifications", notify)
	play(Notification, "/api/notifications/", notFound)
	play(Resource, "POST /api/resources/allocations", allocate)
	play(Resource, "/api/resources/", notFound)
	play(Orchestrator, "POST /api/orchestrator/", callback)
	play(Orchestrator, "POST /callbacks/", callback)
	return mux
}

// writeJSON responds with v. Write errors mean that the client has gone.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// writeError responds with an error document of a permanent error.
func writeError(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, map[string]any{
		"error":     map[string]any{"code": code, "message": message},
		"retryable": false,
	})
}

func notFound(w http.ResponseWriter, r *http.Request, _ Steering) {
	writeError(w, http.StatusNotFound, "NOT_FOUND", "the fake peer services have no "+r.Method+" "+r.URL.EscapedPath())
}
