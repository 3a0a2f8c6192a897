package callback

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// Pool runs statements: a *pgxpool.Pool, or a *pgpool.Pooled.
type Pool interface {
	db.DBTX
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Caller posts to callback addresses.
type Caller interface {
	// Call posts one message. A nil error means that the host acknowledged the message. An
	// *outbox.Refused is an answer of the host; any other error means no answer, or the
	// answer of a host that is not working.
	Call(ctx context.Context, address, id string, body []byte) error
}

// Config tunes a Dispatcher. The zero value is right for production.
type Config struct {
	// Slots is how many tasks are in flight at a time, and SlotsPerHost the limit for a single
	// host, so that a slow host leaves slots for other hosts; default 64 and 16.
	Slots, SlotsPerHost int
	// Timeout bounds a post; default 10 s. A process without a settled claim after three
	// timeouts is taken for dead, and another process posts again.
	Timeout time.Duration
	// PollInterval is how often due rows are looked for without a Wake; default 1 s.
	PollInterval time.Duration
	// Backoff and BackoffMax are the first and the longest pause between posts to a host that is
	// away; default 200 ms and 60 s, which the interface document demands. RefusedMax is the
	// longest pause after an error answer; default 1 h.
	Backoff, BackoffMax, RefusedMax time.Duration
	// OpenFor is how long no post goes to a host whose breaker has opened; default 10 s.
	OpenFor time.Duration
	// AbandonAfter is the age from which a failed update is abandoned; default three days.
	AbandonAfter time.Duration
	// Logger; default slog.Default.
	Logger *slog.Logger
}

// Dispatcher posts the status updates of all tasks. Run a Dispatcher in every process.
type Dispatcher struct {
	pool   Pool
	caller Caller
	cfg    Config

	wake      chan struct{} // has room for one; a commit left an update
	delivered atomic.Int64
}

// New returns a dispatcher that reads updates with pool and posts them with caller.
func New(pool Pool, caller Caller, cfg Config) *Dispatcher {
	for _, one := range []struct {
		setting  *time.Duration
		standard time.Duration
	}{
		{&cfg.Timeout, 10 * time.Second},
		{&cfg.PollInterval, time.Second},
		{&cfg.Backoff, 200 * time.Millisecond},
		{&cfg.BackoffMax, time.Minute},
		{&cfg.RefusedMax, time.Hour},
		{&cfg.OpenFor, 10 * time.Second},
		{&cfg.AbandonAfter, 72 * time.Hour},
	} {
		if *one.setting == 0 {
			*one.setting = one.standard
		}
	}

	if cfg.Slots == 0 {
		cfg.Slots = 64
	}
	if cfg.SlotsPerHost == 0 {
		cfg.SlotsPerHost = 16
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}

	return &Dispatcher{pool: pool, caller: caller, cfg: cfg, wake: make(chan struct{}, 1)}
}

// Wake makes the dispatcher look for due rows at once. Call Wake after a commit with updates.
func (d *Dispatcher) Wake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Delivered counts the updates that were acknowledged to this process.
func (d *Dispatcher) Delivered() int64 { return d.delivered.Load() }
