package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/inbox"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
)

func TestOnceIsOnce(t *testing.T) {
	t.Parallel()
	b := outboxtest.New(t)
	acts := 0
	act := func(context.Context) (outbox.Outcome, error) { acts++; return outbox.Outcome{Result: "completed"}, nil }
	for range 3 {
		// Another process each time, as it were: nothing is kept in memory.
		require.NoError(t, inbox.New(b.Pool).Once(b.Ctx, "integration.response_received", "event-1", act))
	}
	require.NoError(t, inbox.New(b.Pool).Once(b.Ctx, "integration.response_received", "event-2", act))
	require.Equal(t, 2, acts)
	require.Equal(t, "integration.response_received completed", outboxtest.Ask[string](b, "SELECT subject || ' ' || outcome FROM inbox WHERE event_id = 'event-1'"))
}

func TestActThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := outboxtest.New(t)
	in := inbox.New(b.Pool)
	refused := errors.New("not yet")
	err := in.Once(b.Ctx, "s", "event-1", func(context.Context) (outbox.Outcome, error) { return outbox.Outcome{}, refused })
	require.ErrorIs(t, err, refused)
	require.Zero(t, outboxtest.Ask[int](b, "SELECT count(*) FROM inbox"))
	acted := false
	require.NoError(t, in.Once(b.Ctx, "s", "event-1", func(context.Context) (outbox.Outcome, error) {
		acted = true
		return outbox.Outcome{Result: "done"}, nil
	}))
	require.True(t, acted)
}

func TestOnceWithoutADatabaseDoesNotAct(t *testing.T) {
	t.Parallel()
	b := outboxtest.New(t)
	gone, cancel := context.WithCancel(b.Ctx)
	cancel()
	require.Error(t, inbox.New(b.Pool).Once(gone, "s", "e", func(context.Context) (outbox.Outcome, error) {
		t.Error("acted without knowing whether it had")
		return outbox.Outcome{}, nil
	}))
}

// Many at once share their statements; each is one act, one note and one count.
func TestInboxCountsWhatBecameOfMessages(t *testing.T) {
	t.Parallel()
	b := outboxtest.New(t)
	in := inbox.New(b.Pool)
	words := []string{"done", outbox.Late, outbox.Unknown, outbox.Elsewhere, outbox.Repeated}
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			subject := fmt.Sprintf("subject-%d", i%2)
			assert.NoError(t, in.Once(b.Ctx, subject, fmt.Sprintf("event-%d", i), func(context.Context) (outbox.Outcome, error) {
				return outbox.Outcome{Result: words[i/2%5], Detail: "d"}, nil
			}))
		})
		all.Go(func() { assert.NoError(t, in.Dead(b.Ctx, fmt.Sprintf("dead-%d", i%10), "subject-1", "bad")) })
	}
	all.Wait()
	read := "SELECT concat_ws(' ', acted, ignored, repeated, dead) FROM inbound WHERE subject = $1"
	require.Equal(t, "20 60 20 0", outboxtest.Ask[string](b, read, "subject-0"))
	require.Equal(t, "20 60 20 10", outboxtest.Ask[string](b, read, "subject-1"))
	require.Equal(t, 210, outboxtest.Ask[int](b, "SELECT count(*) FROM inbox"))

	// The same event from two sides at once is noted once, whoever acts.
	for range 8 {
		all.Go(func() {
			assert.NoError(t, in.Once(b.Ctx, "twice", "event-twice", func(context.Context) (outbox.Outcome, error) { return outbox.Outcome{Result: "done"}, nil }))
		})
	}
	all.Wait()
	require.Equal(t, "1 0 7 0", outboxtest.Ask[string](b, read, "twice"))
}

// Two deliveries are acted upon side by side: one does it, and the other, which finds it
// done, is the first to say so.
func TestWhoActedHasTheLastWord(t *testing.T) {
	t.Parallel()
	b := outboxtest.New(t)
	in := inbox.New(b.Pool)
	acting, told := make(chan struct{}), make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() {
		assert.NoError(t, in.Once(b.Ctx, "s", "event-1", func(context.Context) (outbox.Outcome, error) {
			close(acting)
			<-told
			return outbox.Outcome{Result: "created", Detail: "7"}, nil
		}))
	})
	outboxtest.Receive(t, acting)
	require.NoError(t, in.Once(b.Ctx, "s", "event-1", func(context.Context) (outbox.Outcome, error) {
		return outbox.Outcome{Result: outbox.Repeated}, nil
	}))
	close(told)
	both.Wait()
	require.Equal(t, "created 7", outboxtest.Ask[string](b, "SELECT concat_ws(' ', outcome, detail) FROM inbox"))
	require.Equal(t, "1 0 1 0", outboxtest.Ask[string](b, "SELECT concat_ws(' ', acted, ignored, repeated, dead) FROM inbound"))
}
