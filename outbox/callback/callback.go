package callback

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// Pool is what statements are made with: a *pgxpool.Pool, or a *pgpool.Pooled.
type Pool interface {
	db.DBTX
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Caller posts to callback addresses, as Dispatcher needs it.
type Caller interface {
	// Call posts one message and returns nil if it was acknowledged. An *outbox.Refused is an
	// answer; with any other error there was none, or the host is not itself.
	Call(ctx context.Context, address, id string, body []byte) error
}

// Config says how callbacks are made. The zero value is right for production.
type Config struct {
	// Places is how many tasks are on their way at a time, PerHost how many of them to
	// one host, so that a slow one leaves room for the others; default 64 and 16.
	Places, PerHost int
	// Timeout bounds one call; default 10 s. Who does not settle within three of them
	// is taken for dead, and another process repeats the call.
	Timeout time.Duration
	// Poll is how often we look without being woken; default 1 s.
	Poll time.Duration
	// Backoff and BackoffMax space the calls to a host that is away; the interface
	// document says 200 ms to 60 s, the defaults. RefusedMax is the longest pause after
	// an answer that says no; default 1 h.
	Backoff, BackoffMax, RefusedMax time.Duration
	// OpenFor is how long a host that fails is left alone before one call tries it;
	// default 10 s.
	OpenFor time.Duration
	// GiveUp is the age at which an update is given up, once a call was in vain; default
	// three days.
	GiveUp time.Duration
	// Logger; default slog.Default.
	Logger *slog.Logger
}

// Dispatcher posts status updates to the callbackUrl of their tasks: at least once, in
// order for each task, with the same id and the same bytes at every repetition. Run it
// in every process.
type Dispatcher struct {
	pool   Pool
	caller Caller
	cfg    Config

	wake  chan struct{}
	taken atomic.Int64
}

// New makes callbacks that are read with pool and made by caller.
func New(pool Pool, caller Caller, cfg Config) *Dispatcher {
	for _, one := range []struct {
		d   *time.Duration
		def time.Duration
	}{
		{&cfg.Timeout, 10 * time.Second},
		{&cfg.Poll, time.Second},
		{&cfg.Backoff, 200 * time.Millisecond},
		{&cfg.BackoffMax, time.Minute},
		{&cfg.RefusedMax, time.Hour},
		{&cfg.OpenFor, 10 * time.Second},
		{&cfg.GiveUp, 72 * time.Hour},
	} {
		if *one.d == 0 {
			*one.d = one.def
		}
	}
	if cfg.Places == 0 {
		cfg.Places = 64
	}
	if cfg.PerHost == 0 {
		cfg.PerHost = 16
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Dispatcher{pool: pool, caller: caller, cfg: cfg, wake: make(chan struct{}, 1)}
}

// Wake says that a commit left something to tell.
func (c *Dispatcher) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Taken counts the updates that were acknowledged to this process.
func (c *Dispatcher) Taken() int64 { return c.taken.Load() }
