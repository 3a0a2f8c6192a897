package natsbus

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A relay wakes with a round in its hands that its successor has published, and more,
// long ago: the stream's memory of ids is over. Nothing of it is stored.
func TestStalePublisherIsRefused(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]int{"a message": 1, "some": 5, "a batch": 50, "batches": 2*embeddedBatchMessages + 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := setup(t, listening)
			stale := setup(t, func(cfg *Config) { cfg.URL = host.ClientURL() })
			_, _, err := stale.Tail(stale.ctx)
			require.NoError(t, err)
			_, _, err = host.Tail(host.ctx)
			require.NoError(t, err)
			_, err = host.Publish(host.ctx, messages(1, 3))
			require.NoError(t, err)
			_, err = host.Publish(host.ctx, messages(4, 20))
			require.NoError(t, err)

			_, err = stale.Publish(stale.ctx, messages(100_000, n))
			require.ErrorIs(t, err, ErrMoved)
			last, _, err := stale.Tail(stale.ctx)
			require.NoError(t, err)
			require.EqualValues(t, 23, last)
			_, err = stale.Publish(stale.ctx, messages(100_000, n))
			require.NoError(t, err, "it knows the end now")
			_, err = host.Publish(host.ctx, messages(24, 2))
			require.ErrorIs(t, err, ErrMoved)
		})
	}
}

// Fences move on over everything that a publication may meet.
func TestFenceMovesOn(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"with batches", "without batches"} {
		t.Run(server, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.streams.batches.Store(server == "with batches")
			_, _, err := b.Tail(b.ctx)
			require.NoError(t, err)
			for _, n := range []int{1, 7, 30, 60, 30} { // the last are known
				_, err = b.Publish(b.ctx, messages(1, n))
				require.NoError(t, err)
				require.True(t, b.publisher.fence.armed)
			}
			_, err = b.Publish(b.ctx, messages(1, 100)) // some are known
			require.NoError(t, err)
			require.Equal(t, fence{true, 100}, b.publisher.fence)
			require.Equal(t, ids(messages(1, 100)), b.stored(t))
		})
	}
}

// Where others publish to the stream too, the fence is not armed, or gives way.
func TestFenceDoesNotStopUs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for try := range maxFenceRefusals + 1 {
		_, _, err := b.Tail(b.ctx)
		require.NoError(t, err)
		require.NoError(t, b.Send(b.ctx, "task.created", nil, nil))
		_, err = b.Publish(b.ctx, messages(1, 10))
		if try < maxFenceRefusals {
			require.ErrorIs(t, err, ErrMoved)
			continue
		}
		require.NoError(t, err)
	}
	cfg := b.streams.events.CachedInfo().Config
	cfg.Subjects = append(cfg.Subjects, "job.>")
	_, err := b.conn.js.UpdateStream(b.ctx, cfg)
	require.NoError(t, err)
	_, _, err = b.Tail(b.ctx)
	require.NoError(t, err)
	require.False(t, b.publisher.fence.armed)
}
