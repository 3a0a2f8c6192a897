package relay

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/once"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// Publisher is the bus.
type Publisher interface {
	// Publish stores the batch in order and returns the stream sequence of its last message.
	// A nil error means that every message is on disk. An error with a method MessageID names
	// a message that the bus can never take.
	Publish(ctx context.Context, batch []outbox.Message) (last uint64, err error)
	// Stored returns the id of the message at a sequence; empty if missing.
	Stored(ctx context.Context, seq uint64) (id string, err error)
	// IDs returns the sequence of each message id between two sequences, both included.
	IDs(ctx context.Context, from, to uint64) (map[string]uint64, error)
	// Tail returns the stream's last sequence and the time of its creation.
	Tail(ctx context.Context) (last uint64, created time.Time, err error)
}

// Config tunes a Relay. The zero value is right for production.
type Config struct {
	// RangesPerBatch is how many outbox rows, of one to a thousand events each, make a batch;
	// default 16.
	RangesPerBatch int32
	// PollInterval is how often the leader reads the outbox without being woken, and how long
	// a loaded leader lets events collect. The interval bounds the delay of events from other
	// processes. Default 25 ms.
	PollInterval time.Duration
	// ElectInterval is how often a process that stands by asks for the lead; default 1 s.
	ElectInterval time.Duration
	// RequeuePage is how many lost rows of outbox_published go back into the outbox with a
	// statement; default 10,000.
	RequeuePage int32
	// HeartbeatTimeout is how old a leader's last heartbeat must be before another process
	// takes the lead. A leader sends five heartbeats in this time. Default 5 s.
	HeartbeatTimeout time.Duration
	// Holder is the name of this process in the table relay_leader; default the host's name
	// and the process id.
	Holder string
	// Retry is the policy of retries and of the breaker while the bus is away; default for each
	// field: retry.EventPublishing.
	Retry retry.Policy
	// OnBreaker is called with each change of the breaker and must not block; default nil.
	OnBreaker func(retry.Status)
	// Tracer makes a span for each batch; default nil: no spans.
	Tracer trace.Tracer
	// Logger; default slog.Default.
	Logger *slog.Logger
}

// Relay publishes the events of the outbox. Run a Relay in every process: the leader publishes,
// the rest stand by.
type Relay struct {
	pool *pgxpool.Pool
	bus  Publisher
	cfg  Config

	breaker *retry.Breaker
	wake    chan struct{} // has room for one; the outbox has new events
	busBack chan struct{} // has room for one; the bus was reconnected

	recheck   atomic.Bool // the bus was reconnected: reconcile before the next batch
	leads     atomic.Bool
	failing   atomic.Bool // the last session of this process failed, and no batch was published since
	outage    once.Errors // the errors since failing
	status    atomic.Pointer[Status]
	published atomic.Int64
	failures  atomic.Int64
}

// New returns a relay that reads the outbox with pool and publishes to bus.
func New(pool *pgxpool.Pool, bus Publisher, cfg Config) *Relay {
	if cfg.RangesPerBatch == 0 {
		cfg.RangesPerBatch = 16
	}
	if cfg.PollInterval == 0 {
		cfg.PollInterval = 25 * time.Millisecond
	}
	if cfg.ElectInterval == 0 {
		cfg.ElectInterval = time.Second
	}
	if cfg.RequeuePage == 0 {
		cfg.RequeuePage = 10_000
	}
	if cfg.HeartbeatTimeout == 0 {
		cfg.HeartbeatTimeout = 5 * time.Second
	}
	if cfg.Holder == "" {
		cfg.Holder = defaultHolder()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}

	cfg.Retry = cfg.Retry.Or(retry.EventPublishing)

	return &Relay{
		pool: pool, bus: bus, cfg: cfg, wake: make(chan struct{}, 1), busBack: make(chan struct{}, 1),
		breaker: retry.NewBreaker("bus", cfg.Retry, cfg.OnBreaker),
	}
}

// Wake makes the leader of this process read the outbox at once. Call Wake after a commit.
func (r *Relay) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Recheck makes the leader compare the stream with the publications before it publishes
// anything else. Call Recheck after a reconnect of the bus.
func (r *Relay) Recheck() {
	r.recheck.Store(true)
	r.Wake()
	select {
	case r.busBack <- struct{}{}:
	default:
	}
}

// Leads reports whether the process publishes.
func (r *Relay) Leads() bool { return r.leads.Load() }

// Published counts the events this process has published.
func (r *Relay) Published() int64 { return r.published.Load() }

// Failures counts the leader sessions of this process that ended with an error.
func (r *Relay) Failures() int64 { return r.failures.Load() }

// Breaker returns the breaker of the bus. While it is open the process publishes nothing, and
// events wait in the outbox.
func (r *Relay) Breaker() *retry.Breaker { return r.breaker }

// Run relays until ctx ends, publishes the committed events for at most drainTimeout more, and
// returns.
func (r *Relay) Run(ctx context.Context) {
	failed := 0 // sessions in a row that ended with an error
	for {
		before := r.published.Load()
		err := r.lead(ctx)
		// The session has published events, so the failure is the first of a new outage.
		if r.published.Load() > before {
			failed = 0
		}
		if ctx.Err() != nil {
			return
		}

		pause := r.cfg.ElectInterval
		if err != nil {
			failed++
			pause = r.recordFailure(err, failed)
		}

		select {
		case <-ctx.Done():
			return
		case <-r.busBack:
			// An open breaker would refuse the next batch until its pause is over.
			r.breaker.Probe()
		case <-time.After(pause):
		}
	}
}

// recordFailure counts and logs a session that ended with an error, the failed-th in a row. It
// returns the pause before the next session.
func (r *Relay) recordFailure(err error, failed int) time.Duration {
	r.failures.Add(1)
	r.failing.Store(true)

	pause := r.cfg.Retry.Pause(failed)
	var bus *busError
	switch {
	case !errors.As(err, &bus):
		pause = min(pause, r.cfg.ElectInterval) // a database that is away is tried as often as by a standby
	case failed > r.cfg.Retry.Retries:
		r.breaker.Trip()
	}

	// An open breaker refuses the next session's batch even if the database failed last.
	pause = max(pause, r.breaker.RemainingOpen())

	level := slog.LevelDebug
	if r.outage.Note(err) { // the first of its kind in this outage
		level = slog.LevelWarn
	}

	r.cfg.Logger.Log(context.Background(), level, "relay: publishing failed, events wait in the outbox", "error", err, "again_in", pause, "breaker", r.breaker.Status().State)
	return pause
}

// recordSuccess ends the outage: a batch was published, or the outbox was read and is empty.
func (r *Relay) recordSuccess() {
	if !r.failing.Swap(false) {
		return
	}
	if n, lasted := r.outage.Over(); n > 0 {
		r.cfg.Logger.Warn("relay: publishing works again", "failures", n, "after", lasted.Round(time.Millisecond))
	}
}
