package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/spans"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/integration"
	"github.com/seed-3f7a0631/tes/outbox/callback"
	"github.com/seed-3f7a0631/tes/outbox/inbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/relay"
	"github.com/seed-3f7a0631/tes/outbox/retry"
	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// service is a running tes, as serve, dev, demo and bench start it.
type service struct {
	cfg      Config
	log      *slog.Logger
	bus      *natsbus.Bus
	files    *renewals     // nil: no file is read again
	engine   jobs.Pool     // for transitions; leads through the pooler where there is one
	sessions *pgxpool.Pool // to the server itself
	tasks    *jobs.Tasks
	runner   *jobs.Runner
	relay    *relay.Relay
	spans    *spans.Spans // nil without tracing
	calls    *callback.Dispatcher
	http     *http.Server
	handler  atomic.Pointer[http.Handler] // answers requests: api.Starting, then the API
	url      string

	draining atomic.Bool
	ordered  chan jobs.ShutdownOrder // capacity 1: an event ordered the process to stop

	breakers     []*retry.Breaker
	integrations *peer.Integrations            // nil before executors are made
	closers      []func(context.Context) error // in the order of starting
}

// deps are what a service runs in.
type deps struct {
	bus *natsbus.Bus
	// sharedBus leaves closing the bus to the caller; default: the service closes it.
	sharedBus bool
	log       *slog.Logger
	files     *renewals // nil: plain HTTP at the listener, and no file is read again
}

// startService starts a service. stop takes down what was started, also when starting fails
// half-way.
func startService(ctx context.Context, cfg Config, in deps) (*service, error) {
	s := &service{cfg: cfg, log: in.log, bus: in.bus, files: in.files, ordered: make(chan jobs.ShutdownOrder, 1)}
	if err := s.start(ctx, in); err != nil {
		return nil, errors.Join(err, s.stop(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// start starts each part after the parts that it needs, and stop runs in the opposite order.
func (s *service) start(ctx context.Context, in deps) error {
	// The id of this process in claims, in the relay's lead, and in spans.
	process := jobs.NewProcessID()

	// The address first: if another process listens there, nothing else may have happened.
	if err := s.startListener(); err != nil {
		return err
	}

	reads, riverPool, err := s.connect(ctx)
	if err != nil {
		return err
	}

	if err := s.checkDatabase(ctx, reads, riverPool); err != nil {
		return err
	}

	// Tracing before the parts that make spans, so that the last spans are exported.
	if err := s.startTracing(ctx, process); err != nil {
		return err
	}

	// The bus stops after the relay, which publishes the last events while it stops.
	if !in.sharedBus {
		s.onStop(s.bus.Close)
	}

	// The relay before the runner: the events of the last attempts are published too.
	s.makeTasks(process)
	s.startRelay(ctx, process)
	s.startCallbacks(ctx)
	if err := s.startRunner(); err != nil {
		return err
	}

	river, err := s.startRiver(ctx, riverPool)
	if err != nil {
		return err
	}

	// Requests and messages last: their handlers need the other parts.
	if err := s.startAPI(ctx, reads, river); err != nil {
		return err
	}

	s.startInbox()

	// The first step of stop: /readyz says 503 before anything is taken down.
	s.onStop(s.drain)
	return nil
}

// startListener listens and answers every request with "starting" until startAPI. Probes of a
// starting process get an answer, and a taken address is an error before anything else has begun.
func (s *service) startListener() error {
	listener, err := listen(s.cfg.HTTP)
	if err != nil {
		return err
	}

	s.url = "http://" + listener.Addr().String()
	if secure := s.files.listenerTLS(); secure != nil {
		s.url, listener = "https://"+listener.Addr().String(), tls.NewListener(listener, secure)
	}

	s.listen(listener)
	return nil
}

// checkDatabase refuses the schema of another version, and a login that cannot read as a tenant.
func (s *service) checkDatabase(ctx context.Context, reads api.Reads, riverPool *pgxpool.Pool) error {
	if err := migrated(ctx, s.cfg.direct(), riverPool); err != nil {
		return err
	}
	if err := pgpool.ReadAs(ctx, reads, "", func(pgx.Tx) error { return nil }); err != nil {
		return fmt.Errorf("%w (the login must be a member of tes_app)", err)
	}
	return nil
}

// makeTasks makes the engine. The hooks wake parts that start later; the first commit comes after
// their start.
func (s *service) makeTasks(process string) {
	s.tasks = jobs.New(s.engine, jobs.Config{
		ProcessID: process, Sessions: s.sessions, Tracer: s.spans.Tracer("jobs"), ManualDue: s.cfg.due, Logger: s.log, OnEventsCommitted: func() { s.relay.Wake() },
		CheckDefinition: checkDefinition, ResponseMapper: integration.ResponseMapper{}, Shutdown: s.order,
		OnCallbacksCommitted: func() { s.calls.Wake() }, CheckCallback: s.cfg.checkCallback,
	})
}

// busPatience is how long a start waits for the bus. Then the start goes on without the bus, and
// the outbox keeps the events.
const busPatience = 500 * time.Millisecond

func (s *service) startRelay(ctx context.Context, process string) {
	s.bus.Await(ctx, busPatience)

	s.relay = relay.New(s.sessions, s.bus, relay.Config{
		Holder: process, Tracer: s.spans.Tracer("outbox"), Logger: s.log, OnBreaker: s.changed,
	})
	s.breakers = append(s.breakers, s.relay.Breaker())
	s.bus.OnReconnect(s.relay.Recheck)
	s.background(func(ctx context.Context) { s.relay.Run(ctx) })
}

func (s *service) startRunner() error {
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
		if err := s.runner.Run(ctx, s.cfg.grace); err != nil {
			s.log.Error("the queues' runner stopped", "error", err)
		}
	})

	return nil
}

// startRiver starts River's client: it elects a leader, works the notices and cleans up jobs.
func (s *service) startRiver(ctx context.Context, pool *pgxpool.Pool) (*river.Client[pgx.Tx], error) {
	notices, err := s.notices()
	if err != nil {
		return nil, err
	}

	client, err := jobs.NewRiver(pool, s.tasks.ProcessID(), s.log, notices)
	if err != nil {
		return nil, err
	}

	// River would stop as soon as its context ends, and so before the runner.
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return nil, fmt.Errorf("start river: %w", err)
	}

	s.onStop(client.Stop)
	return client, nil
}

// startAPI makes the API server and lets it answer from here on.
func (s *service) startAPI(ctx context.Context, reads api.Reads, river *river.Client[pgx.Tx]) error {
	verifier, err := s.verifier()
	if err != nil {
		return err
	}

	page, err := s.riverUI(ctx, river)
	if err != nil {
		return err
	}

	authPeer, err := s.newPeers("auth", s.cfg.AuthURL)
	if err != nil {
		return err
	}

	s.breakers = append(s.breakers, authPeer.Auth.Breaker())

	server, err := api.New(api.Config{
		Tasks: s.tasks, Reads: reads, Verifier: verifier,
		UserTokens: authPeer.userTokens(), RequireUserToken: s.cfg.RequireUserToken == "true",
		Tracer: s.spans.Tracer("api"), Logger: s.log, Version: version(), Breakers: s.states,
		Mounts: []api.Mount{{
			Prefix: "/riverui", Handler: page, RiverUI: true, Login: &api.Login{Viewer: "tasks:metrics", Operator: "tasks:cancel", ViewerStyle: viewerStyle},
		}},
		Ready: s.ready(reads), Draining: s.draining.Load, Bus: s.bus.Health,
		Relay:  func() string { return s.relay.Status().State },
		Limits: s.cfg.limits,
	})
	if err != nil {
		return err
	}

	s.serve(server.Handler())
	return nil
}

// verifier checks service tokens. It fetches the Auth Service's keys in the background.
func (s *service) verifier() (*auth.Verifier, error) {
	verifier, err := auth.NewVerifier(auth.Config{
		JWKS: strings.TrimSuffix(s.cfg.orElse(s.cfg.AuthURL), "/") + "/.well-known/jwks.json", MaxLife: s.cfg.tokenLife, Logger: s.log,
		Transport: s.files.keysTransport(),
	})
	if err != nil {
		return nil, err
	}

	s.onStop(func(context.Context) error { verifier.Close(); return nil })
	return verifier, nil
}

// startInbox consumes the bus.
func (s *service) startInbox() {
	inbox := inbox.New(s.engine)
	s.bus.OnDeadLetter(inbox.Dead)
	s.background(func(ctx context.Context) { s.consume(ctx, inbox) })
}

// consume handles the messages of every subscription until ctx ends.
func (s *service) consume(ctx context.Context, inbox *inbox.Inbox) {
	var all sync.WaitGroup
	for _, sub := range api.Subscriptions(api.EventsConfig{Tasks: s.tasks, Inbox: inbox, Logger: s.log}) {
		all.Go(func() {
			if err := s.bus.Consume(ctx, sub.Durable, sub.Subject, sub.Handle); err != nil {
				s.log.Error("a subject is not consumed", "subject", sub.Subject, "error", err)
			}
		})
	}

	all.Wait()
}

// order is called when an event orders the process to stop.
func (s *service) order(o jobs.ShutdownOrder) {
	select {
	case s.ordered <- o:
		s.log.Info("ordered to stop", "event", o.EventID, "by", o.By, "target", o.Target, "reason", o.Reason)
	default: // an earlier order is already known
	}
}

// migrated refuses a database with the schema of another version.
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

// drain makes /readyz answer 503 and gives load balancers TES_DRAIN_DELAY to notice.
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

// onStop adds a step to stop. The last added step runs first.
func (s *service) onStop(stop func(context.Context) error) { s.closers = append(s.closers, stop) }

// background runs work until stop. stop cancels the context of work, and waits for its return.
func (s *service) background(work func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { work(ctx) })
	s.onStop(func(context.Context) error { cancel(); done.Wait(); return nil })
}

// stop takes everything down in the opposite order of start: not ready any more; no new
// messages and requests; no new work; the last events; the bus; the last spans; the connections.
func (s *service) stop(ctx context.Context) error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i](ctx))
	}
	s.closers = nil
	return errors.Join(errs...)
}
