package outbox_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

func TestOnceIsOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	acts := 0
	act := func(context.Context) (string, error) { acts++; return "completed", nil }
	for range 3 {
		// Another process each time, as it were: nothing is kept in memory.
		require.NoError(t, outbox.NewInbox(b.pool).Once(b.ctx, "integration.response_received", "event-1", act))
	}
	require.NoError(t, outbox.NewInbox(b.pool).Once(b.ctx, "integration.response_received", "event-2", act))
	require.Equal(t, 2, acts)
	require.Equal(t, "integration.response_received completed", ask[string](b, "SELECT subject || ' ' || outcome FROM inbox WHERE event_id = 'event-1'"))
}

func TestActThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	inbox := outbox.NewInbox(b.pool)
	refused := errors.New("not yet")
	err := inbox.Once(b.ctx, "s", "event-1", func(context.Context) (string, error) { return "", refused })
	require.ErrorIs(t, err, refused)
	require.Zero(t, ask[int](b, "SELECT count(*) FROM inbox"))
	acted := false
	require.NoError(t, inbox.Once(b.ctx, "s", "event-1", func(context.Context) (string, error) { acted = true; return "done", nil }))
	require.True(t, acted)
}

func TestOnceWithoutADatabaseDoesNotAct(t *testing.T) {
	t.Parallel()
	b := setup(t)
	gone, cancel := context.WithCancel(b.ctx)
	cancel()
	require.Error(t, outbox.NewInbox(b.pool).Once(gone, "s", "e", func(context.Context) (string, error) {
		t.Error("acted without knowing whether it had")
		return "", nil
	}))
}
