package callback_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox/callback"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
)

// A host that never answers holds its own places and no others.
func TestSlowHostDoesNotHoldUpAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	slow, brisk := newOrchestrator(t), newOrchestrator(t)
	slow.answers(func(r *http.Request, _, _ string) int { <-r.Context().Done(); return 0 })
	for range 50 {
		b.moves(b.called(slow.URL), 0, "started")
	}
	c, stop := b.dispatch(b.caller(brisk.secret, loopback...), func(cfg *callback.Config) { cfg.Slots, cfg.SlotsPerHost, cfg.Timeout = 8, 4, time.Minute })
	outboxtest.WaitFor(t, "the slow host's places to be taken", func() bool { return ask[int](b, "SELECT count(*) FROM callback WHERE claim > 0") == 4 })
	var tasks []uuid.UUID
	for range 50 {
		task := b.called(brisk.URL)
		b.moves(task, 0, "started", "completed")
		tasks = append(tasks, task)
	}
	c.Wake()
	outboxtest.WaitFor(t, "the brisk host to be told all", func() bool { return ask[int](b, "SELECT count(*) FROM callback") == 50 })
	for _, task := range tasks {
		require.Len(t, brisk.taken(task), 2)
	}
	require.EqualValues(t, 100, c.Delivered())
	require.Equal(t, 4, ask[int](b, "SELECT count(*) FROM callback WHERE claim > 0"))

	// Who is asked to stop hangs up, and what it had is free at once, without a mark.
	slow.CloseClientConnections()
	slow.answers(func(*http.Request, string, string) int { return 200 })
	stop()
	b.dispatch(b.caller(slow.secret, loopback...))
	b.allTold()
}

// A host that is away is left alone, but for one call now and then, however many
// tasks wait for it.
func TestHostThatIsAwayIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for n := range 200 {
		b.moves(b.called(fmt.Sprintf("http://away.example.org/%d", n)), 0, "started")
	}
	var mu sync.Mutex
	calls, back := 0, false
	tried := make(chan struct{}, 10_000)
	_, stop := b.dispatch(scripted(func(context.Context, string, string) error {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if back {
			return nil
		}
		tried <- struct{}{}
		return errors.New("no answer")
	}), func(cfg *callback.Config) { cfg.OpenFor = time.Hour })
	for range 10 {
		outboxtest.Receive(t, tried)
	}
	outboxtest.WaitFor(t, "all to be back", func() bool {
		return b.Log.Says("now=open") && ask[int](b, "SELECT count(*) FROM callback WHERE due_at > now() + interval '1 s'") == 0
	})
	stop()
	require.LessOrEqual(t, calls, 10+16, "those that were on their way")
	mu.Lock()
	back = true
	mu.Unlock()
	b.dispatch(scripted(func(context.Context, string, string) error { return nil }))
	b.allTold()
}
