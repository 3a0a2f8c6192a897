package jobs

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// The connection of the session that listens goes silent, as when a router forgets it: no
// byte passes, and neither side is told. The process notices by asking, listens again, and
// reads what it was told meanwhile. Field case F12h.
func TestSilentListenerIsNoticed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	wire := dbtest.NewEndpoint(t, dbtest.URL(b.pool))
	pool, err := pgpool.Open(t.Context(), wire.URL(t, dbtest.URL(b.pool)), pgpool.Config{Engine: true, Name: "behind a router", MaxConns: 20})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	told := make(chan ShutdownOrder, 8)
	far := join(t, pool, "far/1/aa", func(cfg *Config) { cfg.Shutdown = func(o ShutdownOrder) { told <- o } })
	far.work(noop(does(`{}`, nil)), stalled, func(cfg *RunnerConfig) { cfg.ListenPing = 50 * time.Millisecond })
	waitFor(t, "it to be there", func() bool {
		return ask[int](b, "SELECT count(*) FROM executor WHERE executor_id = 'far/1/aa'") == 1
	})
	require.True(t, b.order("first", "far"))
	require.Equal(t, "first", receive(t, told).EventID)

	require.Equal(t, 1, wire.MuteListeners())
	require.True(t, b.order("while it was silent", "far"))
	require.Equal(t, "while it was silent", receive(t, told).EventID)
	waitFor(t, "the silence to be noticed", func() bool { return strings.Contains(far.log.String(), "the listening session does not answer") })

	require.True(t, b.order("after", "far"))
	require.Equal(t, "after", receive(t, told).EventID)
}
