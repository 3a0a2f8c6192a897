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

// Publisher is the bus, as the relay needs it.
type Publisher interface {
	// Publish stores the batch in order and returns the stream sequence of its
	// last message. Without an error every message is on disk. An error with a
	// method MessageID names a message that can never be taken.
	Publish(ctx context.Context, batch []outbox.Message) (last uint64, err error)
	// Stored is the id of the message at a sequence, empty if there is none.
	Stored(ctx context.Context, seq uint64) (id string, err error)
	// IDs are the ids of the messages from one sequence to another, both included, with
	// the sequence of each. A place without a message has none.
	IDs(ctx context.Context, from, to uint64) (map[string]uint64, error)
	// Tail is the stream's last sequence and when the stream was made.
	Tail(ctx context.Context) (last uint64, created time.Time, err error)
}

// Config says how a relay works. The zero value is right for production.
type Config struct {
	// Flushes is how many outbox rows, of one to a thousand events each, go into
	// one round; default 16.
	Flushes int32
	// Poll is how often the leader looks without being woken, and how long it lets
	// events collect under load; it bounds how late another process's events are.
	// Default 25 ms.
	Poll time.Duration
	// Stand is how often a process without the lead asks for it; default 1 s.
	Stand time.Duration
	// Page is how many rows of outbox_published go back into the outbox in one statement
	// when the stream has lost them; default 10,000.
	Page int32
	// Silence is how long a leader's heartbeat may be missing before another process
	// takes the lead; the leader beats five times in it. Default 5 s.
	Silence time.Duration
	// Holder is the name of this process in the table relay_leader; default the host's
	// name and the process number.
	Holder string
	// Retry is how the bus is asked again while it is away; what it leaves open is as
	// in retry.EventPublishing.
	Retry retry.Policy
	// OnBreaker is told each change of the breaker. Default nobody. It must not block.
	OnBreaker func(retry.Status)
	// Tracer makes a span of each round; default nil, and none is made.
	Tracer trace.Tracer
	// Logger; default slog.Default.
	Logger *slog.Logger
}

// Relay publishes what the outbox holds. Run one in every process: one leads,
// the others stand by.
type Relay struct {
	pool *pgxpool.Pool
	bus  Publisher
	cfg  Config

	breaker   *retry.Breaker
	wake      chan struct{}
	back      chan struct{}
	check     atomic.Bool // the bus was reconnected: look at its tail before the next round
	leads     atomic.Bool
	failing   atomic.Bool // the last turn of this process failed, and nothing was published since
	outage    once.Errors // since then
	standing  atomic.Pointer[Standing]
	published atomic.Int64
	failures  atomic.Int64
}

// New makes a relay that reads with pool and publishes to bus.
func New(pool *pgxpool.Pool, bus Publisher, cfg Config) *Relay {
	if cfg.Flushes == 0 {
		cfg.Flushes = 16
	}
	if cfg.Poll == 0 {
		cfg.Poll = 25 * time.Millisecond
	}
	if cfg.Stand == 0 {
		cfg.Stand = time.Second
	}
	if cfg.Page == 0 {
		cfg.Page = 10_000
	}
	if cfg.Silence == 0 {
		cfg.Silence = 5 * time.Second
	}
	if cfg.Holder == "" {
		cfg.Holder = holderName()
	}
	cfg.Retry = cfg.Retry.Or(retry.EventPublishing)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Relay{
		pool: pool, bus: bus, cfg: cfg, wake: make(chan struct{}, 1), back: make(chan struct{}, 1),
		breaker: retry.NewBreaker("bus", cfg.Retry, cfg.OnBreaker),
	}
}

// Wake says that something was committed to the outbox.
func (r *Relay) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Recheck says that the bus was away: before it goes on the relay looks whether
// the stream still holds what was acknowledged.
func (r *Relay) Recheck() {
	r.check.Store(true)
	r.Wake()
	select {
	case r.back <- struct{}{}:
	default:
	}
}

// Leads says whether this process publishes.
func (r *Relay) Leads() bool { return r.leads.Load() }

// Published counts the events this process has published.
func (r *Relay) Published() int64 { return r.published.Load() }

// Failures counts the rounds that did not succeed.
func (r *Relay) Failures() int64 { return r.failures.Load() }

// Breaker is the bus's. While it is open nothing is published here, and what there is
// to tell waits in the outbox.
func (r *Relay) Breaker() *retry.Breaker { return r.breaker }

// Run relays until ctx ends, then publishes what is committed already, for a
// short while, and returns.
func (r *Relay) Run(ctx context.Context) {
	failed := 0 // times in a row
	for {
		before := r.published.Load()
		err := r.lead(ctx)
		if r.published.Load() > before {
			failed = 0 // it had gone well meanwhile
		}
		if ctx.Err() != nil {
			return
		}
		pause := r.cfg.Stand
		if err != nil {
			failed++
			pause = r.fail(err, failed)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.back: // the bus is: no need to wait
			r.breaker.Probe()
		case <-time.After(pause):
		}
	}
}

// fail counts a lead that ended badly and says how long to wait before the next. An
// open breaker is waited for, whatever it was that failed last.
func (r *Relay) fail(err error, failed int) time.Duration {
	r.failures.Add(1)
	r.failing.Store(true)
	pause := r.cfg.Retry.Pause(failed)
	var bus *busError
	switch {
	case !errors.As(err, &bus):
		pause = min(pause, r.cfg.Stand) // the database is tried as often as by everybody
	case failed > r.cfg.Retry.Retries:
		r.breaker.Trip()
	}
	pause = max(pause, r.breaker.Rest())
	level := slog.LevelDebug // the same again
	if r.outage.Note(err) {
		level = slog.LevelWarn
	}
	r.cfg.Logger.Log(context.Background(), level, "relay: nothing is lost, the outbox keeps it", "error", err, "again_in", pause, "breaker", r.breaker.Status().State)
	return pause
}

// well notes that something was published, or that there is nothing to publish.
func (r *Relay) well() {
	if !r.failing.Swap(false) {
		return
	}
	if n, lasted := r.outage.Over(); n > 0 {
		r.cfg.Logger.Warn("relay: publishing goes on", "failures", n, "after", lasted.Round(time.Millisecond))
	}
}
