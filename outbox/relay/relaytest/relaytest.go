// Package relaytest runs relays for tests.
package relaytest

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/relay"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// Running is a relay in its own goroutine.
type Running struct {
	*relay.Relay
	// RequestStop asks the relay to stop and does not wait.
	RequestStop func()
	// Stop asks the relay to stop and waits until Run has returned.
	Stop func()
}

// Run runs a relay on the bundle's pool until the test ends, with intervals of milliseconds.
func Run(b *outboxtest.Bundle, bus relay.Publisher, change ...func(*relay.Config)) *Running {
	b.T.Helper()
	return RunOn(b, b.Pool, bus, change...)
}

// RunOn runs a relay on another pool.
func RunOn(b *outboxtest.Bundle, pool *pgxpool.Pool, bus relay.Publisher, change ...func(*relay.Config)) *Running {
	b.T.Helper()
	cfg := relay.Config{
		PollInterval: 5 * time.Millisecond, ElectInterval: 20 * time.Millisecond,
		Retry:  retry.Policy{Backoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, OpenFor: 20 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(b.Log, nil)),
	}

	for _, fn := range change {
		fn(&cfg)
	}

	r := &Running{Relay: relay.New(pool, bus, cfg)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx) }()

	r.RequestStop = cancel
	r.Stop = sync.OnceFunc(func() {
		cancel()
		outboxtest.Receive(b.T, ended)
	})

	b.T.Cleanup(r.Stop)
	return r
}
