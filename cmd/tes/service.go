package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/spans"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/automated"
	"github.com/seed-3f7a0631/tes/jobs/integration"
	"github.com/seed-3f7a0631/tes/jobs/manual"
	"github.com/seed-3f7a0631/tes/outbox/callback"
	"github.com/seed-3f7a0631/tes/outbox/inbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/relay"
	"github.com/seed-3f7a0631/tes/outbox/retry"
	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// service is one running tes: what serve, dev and demo have in common.
type service struct {
	cfg      Config
	log      *slog.Logger
	bus      *natsbus.Bus
	files    *renewals     // nil: none is read again
	engine   jobs.Pool     // makes moves, through the pooler where there is one
	sessions *pgxpool.Pool // to the server itself
	tasks    *jobs.Tasks
	runner   *jobs.Runner
	relay    *relay.Relay
	spans    *spans.Spans // nil without tracing
	calls    *callback.Dispatcher
	http     *http.Server
	door     atomic.Pointer[http.Handler] // what answers at the moment
	url      string

	draining atomic.Bool
	ordered  chan jobs.ShutdownOrder // holds one: the process was told to stop

	breakers     []*retry.Breaker
	integrations *peer.Integrations            // nil before executors are made
	closers      []func(context.Context) error // in the order of starting
}

// surroundings are what a service runs in.
type surroundings struct {
	bus *natsbus.Bus
	// sharedBus is closed by whoever shares it; else it goes down with the service.
	sharedBus bool
	log       *slog.Logger
	files     *renewals // nil: no TLS at the listener, and no file is read again
}

// startService starts everything in the order in which one part needs the other.
// What was started is stopped by stop, also when starting fails half-way.
func startService(ctx context.Context, cfg Config, in surroundings) (*service, error) {
	s := &service{cfg: cfg, log: in.log, bus: in.bus, files: in.files, ordered: make(chan jobs.ShutdownOrder, 1)}
	if err := s.start(ctx, in); err != nil {
		return nil, errors.Join(err, s.stop(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// busPatience is how long a start waits for the bus. It is there at once, as a rule; if it
// is not, the start goes on.
const busPatience = 500 * time.Millisecond

func (s *service) start(ctx context.Context, in surroundings) error {
	cfg, log, bus := s.cfg, s.log, s.bus

	// The address first: nothing else should have happened if it is taken.
	listener, err := listen(cfg.HTTP)
	if err != nil {
		return err
	}
	s.url = "http://" + listener.Addr().String()
	if secure := s.files.doorTLS(); secure != nil {
		s.url, listener = "https://"+listener.Addr().String(), tls.NewListener(listener, secure)
	}
	s.listen(listener)

	reads, own, err := s.connect(ctx)
	if err != nil {
		return err
	}
	if err := migrated(ctx, cfg.direct(), own); err != nil {
		return err
	}
	if err := pgpool.ReadAs(ctx, reads, "", func(pgx.Tx) error { return nil }); err != nil {
		return fmt.Errorf("%w (the login must be a member of tes_app)", err)
	}
	process := jobs.NewProcessID()
	if err := s.startTracing(ctx, process); err != nil {
		return err
	}
	if !in.sharedBus {
		s.onStop(bus.Close)
	}
	s.tasks = jobs.New(s.engine, jobs.Config{
		ProcessID: process, Sessions: s.sessions, Tracer: s.spans.Tracer("jobs"), ManualDue: cfg.due, Logger: log, Told: func() { s.relay.Wake() },
		CheckDefinition: checkDefinition, Answers: integration.Answers{}, Shutdown: s.order,
		CalledBack: func() { s.calls.Wake() }, CheckCallback: cfg.checkCallback,
	})
	bus.Await(ctx, busPatience)
	s.relay = relay.New(s.sessions, bus, relay.Config{
		Holder: process, Tracer: s.spans.Tracer("outbox"), Logger: log, OnBreaker: s.changed,
	})
	s.breakers = append(s.breakers, s.relay.Breaker())
	bus.OnReconnect(s.relay.Recheck)
	s.background(func(ctx context.Context) { s.relay.Run(ctx) })

	s.startCallbacks(ctx)

	executors, err := s.executors()
	if err != nil {
		return err
	}
	resources, err := s.resources()
	if err != nil {
		return err
	}
	s.runner = jobs.NewRunner(s.tasks, jobs.RunnerConfig{Executors: executors, Allocate: resources.allocate})
	s.background(func(ctx context.Context) {
		if err := s.runner.Run(ctx, cfg.grace); err != nil {
			log.Error("the lanes stopped", "error", err)
		}
	})

	notices, err := s.notices()
	if err != nil {
		return err
	}
	river, err := jobs.NewRiver(own, s.tasks.ProcessID(), log, notices)
	if err != nil {
		return err
	}
	if err := river.Start(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("start river: %w", err)
	}
	s.onStop(river.Stop)

	verifier, err := api.NewVerifier(api.VerifierConfig{
		JWKS: strings.TrimSuffix(cfg.orElse(cfg.AuthURL), "/") + "/.well-known/jwks.json", MaxLife: cfg.tokenLife, Logger: log,
		Transport: s.files.keysTransport(),
	})
	if err != nil {
		return err
	}
	s.onStop(func(context.Context) error { verifier.Close(); return nil })
	page, err := s.riverUI(ctx, river)
	if err != nil {
		return err
	}
	mount := api.Mount{
		Prefix: "/riverui", Handler: page, RiverUI: true, Login: &api.Login{Viewer: "tasks:metrics", Operator: "tasks:cancel", ViewerStyle: viewerStyle},
	}
	auth, err := s.neighbours("auth", cfg.AuthURL)
	if err != nil {
		return err
	}
	s.breakers = append(s.breakers, auth.Auth.Breaker())
	door, err := api.New(api.Config{
		Tasks: s.tasks, Reads: reads, Verifier: verifier,
		UserTokens: auth.userTokens(), RequireUserToken: cfg.RequireUserToken == "true",
		Tracer: s.spans.Tracer("api"), Logger: log, Version: version(), Mounts: []api.Mount{mount}, Breakers: s.states,
		Ready: s.ready(reads), Draining: s.draining.Load, Bus: bus.Health,
		Relay:  func() string { return s.relay.Status().State },
		Limits: cfg.limits,
	})
	if err != nil {
		return err
	}
	s.serve(door.Handler())
	inbox := inbox.New(s.engine)
	bus.OnDeadLetter(inbox.Dead)
	s.background(func(ctx context.Context) { s.hear(ctx, inbox) })
	s.onStop(s.drain)
	return nil
}

// checkDefinition asks the executors what they think of a definition.
func checkDefinition(c jobs.ExecutionConfig) error {
	if c.Integration != nil {
		if err := integration.Check(*c.Integration); err != nil {
			return err
		}
	}
	switch c.Executor {
	case "expression":
		return automated.CheckExpression(c.Expression)
	case "manual":
		return manual.CheckRules(c.AssignmentRules)
	}
	return nil
}

// hear acts on what the bus tells us.
func (s *service) hear(ctx context.Context, inbox *inbox.Inbox) {
	var all sync.WaitGroup
	for _, sub := range api.Subscriptions(api.EventsConfig{Tasks: s.tasks, Inbox: inbox, Logger: s.log}) {
		all.Go(func() {
			if err := s.bus.Consume(ctx, sub.Durable, sub.Subject, sub.Handle); err != nil {
				s.log.Error("a subject is not heard", "subject", sub.Subject, "error", err)
			}
		})
	}
	all.Wait()
}

// order is called when the process was told to stop by the bus.
func (s *service) order(o jobs.ShutdownOrder) {
	select {
	case s.ordered <- o:
		s.log.Info("ordered to stop", "event", o.EventID, "by", o.By, "target", o.Target, "reason", o.Reason)
	default: // it is known
	}
}

// drain comes first of all that stop does: whoever asks whether we are ready hears
// that we are not, for as long as the setting gives them to ask.
func (s *service) drain(ctx context.Context) error {
	s.draining.Store(true)
	timer := time.NewTimer(s.cfg.drainDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// executors makes every executor that definitions may name.
func (s *service) executors() (map[string]jobs.Registration, error) {
	integrations, err := s.neighbours("integration", s.cfg.IntegrationURL)
	if err != nil {
		return nil, err
	}
	users, err := s.neighbours("user", s.cfg.UserURL)
	if err != nil {
		return nil, err
	}
	s.breakers = append(s.breakers, integrations.Integrations.Breaker(), users.Users.Breaker())
	s.integrations = integrations.Integrations
	web := automated.NewHTTP(automated.HTTPConfig{
		Allow: s.cfg.allow, Wrap: s.spans.Transport("task"), Logger: s.log,
		Secrets: automated.Secrets{Dir: s.cfg.SecretsDir, Env: s.cfg.headerSecrets},
	})
	s.onStop(func(context.Context) error { web.Close(); return nil })
	handlers := &automated.Handlers{}
	return map[string]jobs.Registration{
		"noop":        {Executor: automated.Noop{}, Pure: true},
		"expression":  {Executor: automated.NewExpression(), Pure: true},
		"http":        {Executor: web},
		"go":          {Executor: handlers, Handlers: handlers.Names},
		"integration": {Executor: integration.New(integrations.integration()), Ready: readiness(integrations.Integrations.Breaker())},
		"manual":      {Executor: manual.New(users.directory(), s.tasks.Worklist), Assigns: true},
	}, nil
}

// resources asks nobody where no Resource Service is named.
func (s *service) resources() (allocator, error) {
	if s.cfg.orElse(s.cfg.ResourceURL) == "" {
		return allocator{}, nil
	}
	n, err := s.neighbours("resource", s.cfg.ResourceURL)
	if err != nil {
		return allocator{}, err
	}
	s.breakers = append(s.breakers, n.Resources.Breaker())
	return allocator{n.Resources}, nil
}

// notices tell people of their tasks, if there is somebody to tell them.
func (s *service) notices() (*jobs.Notices, error) {
	if s.cfg.orElse(s.cfg.NotificationURL) == "" {
		return jobs.NewNotices(s.tasks, nil), nil
	}
	n, err := s.neighbours("notification", s.cfg.NotificationURL)
	if err != nil {
		return nil, err
	}
	s.breakers = append(s.breakers, n.Notifications.Breakers()...)
	return jobs.NewNotices(s.tasks, n.notifier()), nil
}

// states are the breakers of this process, by name.
func (s *service) states() []retry.Status {
	all := make([]retry.Status, len(s.breakers))
	for i, b := range s.breakers {
		all[i] = b.Status()
	}
	if s.integrations != nil {
		all = append(all, s.integrations.Resting()...)
	}
	slices.SortFunc(all, func(a, b retry.Status) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// changed says what became of a breaker.
func (s *service) changed(b retry.Status) {
	if b.State == retry.Open {
		s.log.Warn("a breaker is open: what needs it waits, or goes on with its fallback", "breaker", b.Name)
		return
	}
	s.log.Info("a breaker changed", "breaker", b.Name, "state", b.State)
}

func (s *service) neighbours(name, url string) (neighbours, error) {
	n, err := peer.New(peer.Config{
		BaseURL: s.cfg.orElse(url), Wrap: s.spans.Transport(name),
		Token: s.serviceToken, TLS: s.files.neighboursTLS(),
		OnBreaker: s.changed,
	})
	if err != nil {
		return neighbours{}, fmt.Errorf("neighbour: %w", err)
	}
	s.onStop(func(context.Context) error { n.Close(); return nil })
	return neighbours{n}, nil
}

// migrated refuses a database that is not at this program's schema.
func migrated(ctx context.Context, url string, pool *pgxpool.Pool) error {
	steps, err := migrations.Status(ctx, url)
	if err != nil {
		return err
	}
	for _, step := range steps {
		if !step.Applied {
			return fmt.Errorf("the database lacks %s: run tes migrate up", step.Name)
		}
	}
	return migrations.CheckRiver(ctx, pool)
}

// listen answers that we are starting, until serve has something better to say.
func (s *service) listen(listener net.Listener) {
	starting := api.Starting()
	s.door.Store(&starting)
	s.http = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*s.door.Load()).ServeHTTP(w, r) }),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		WriteTimeout:   2 * time.Minute, // longer than a dequeue may be parked; package api gives each answer less
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.onStop(func(context.Context) error { return s.http.Close() })
	go func() {
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("the HTTP server stopped", "error", err)
		}
	}()
}

func (s *service) serve(handler http.Handler) {
	s.door.Store(&handler)
	s.http.RegisterOnShutdown(s.tasks.Leases.StartDraining) // or a parked dequeue would be waited for
	s.onStop(func(ctx context.Context) error {
		soon, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return s.http.Shutdown(soon)
	})
}

func (s *service) onStop(stop func(context.Context) error) { s.closers = append(s.closers, stop) }

// background runs work until the service stops, and waits for it then.
func (s *service) background(work func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { work(ctx) })
	s.onStop(func(context.Context) error { cancel(); done.Wait(); return nil })
}

// stop takes everything down in the opposite order: we are not ready any more; no
// more messages and no more requests, then no more work, then the last events, then
// the bus, then the last spans, then the connections.
func (s *service) stop(ctx context.Context) error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i](ctx))
	}
	s.closers = nil
	return errors.Join(errs...)
}

func listen(address string) (net.Listener, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot serve on %s: %w (choose another with --http or TES_HTTP; port 0 takes any free one)", address, err)
	}
	return listener, nil
}
