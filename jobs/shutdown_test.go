package jobs

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// obedient is a process that says when it was told to stop.
func (b *testBundle) obedient(name string) (*working, <-chan ShutdownOrder) {
	b.t.Helper()
	told := make(chan ShutdownOrder, 8)
	p := join(b.t, b.pool, name, func(cfg *Config) { cfg.Shutdown = func(o ShutdownOrder) { told <- o } })
	w := p.work(noop(does(`{}`, nil)))
	waitFor(b.t, "it to be there", func() bool {
		return ask[int](b, "SELECT count(*) FROM executor WHERE executor_id = $1", name) == 1
	})
	return w, told
}

func (b *testBundle) order(id, target string, change ...func(*ShutdownOrder)) bool {
	b.t.Helper()
	o := ShutdownOrder{EventID: id, At: time.Now(), Target: target, By: "ops"}
	for _, fn := range change {
		fn(&o)
	}
	ours, err := b.Operators.OrderShutdown(b.ctx, o)
	require.NoError(b.t, err)
	return ours
}

// Every process that an order is for is told, once, and nobody else.
func TestShutdownOrderReachesWhomItIsFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, one := b.obedient("host-1/10/aa")
	_, two := b.obedient("host-1/11/bb")
	_, three := b.obedient("host-10/10/cc")
	require.False(t, b.order("other", "user-service"))
	require.False(t, b.order("part", "host"))
	require.True(t, b.order("by name", "host-1/11/bb"))
	require.Equal(t, "by name", receive(t, two).EventID)
	grace := 1500 * time.Millisecond
	require.True(t, b.order("by host", "host-1", func(o *ShutdownOrder) { o.Grace, o.Reason = &grace, "moved" }))
	got := receive(t, one)
	require.Equal(t, "by host", got.EventID)
	require.Equal(t, grace, *got.Grace)
	require.Equal(t, "moved", got.Reason)
	receive(t, two)
	for _, all := range []string{"", "tes", "task-execution-service"} {
		require.True(t, b.order("all "+all, all))
		receive(t, three)
		require.True(t, b.order("all "+all, all)) // it is the same order
	}
	require.Empty(t, three)
	require.Equal(t, 5, ask[int](b, "SELECT count(*) FROM shutdown_order"))
}

// What was ordered before a process started is not for it; what was ordered while it
// did not listen is.
func TestShutdownOrderIsForWhoWasThere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, one := b.obedient("p-one")
	require.True(t, b.order("first", "tes"))
	receive(t, one)
	_, late := b.obedient("p-late")
	// An order that waited on the bus while nobody was there.
	require.True(t, b.order("old", "p-late", func(o *ShutdownOrder) { o.At = time.Now().Add(-time.Hour) }))

	// Its ears are cut off; what is said meanwhile it reads when they are back.
	cut := "SELECT count(pg_terminate_backend(pid))::int FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN tes_definition' AND state = 'idle'"
	waitFor(t, "both to listen", func() bool {
		return ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN tes_definition' AND state = 'idle'") >= 2
	})
	require.GreaterOrEqual(t, ask[int](b, cut), 2)
	b.exec("INSERT INTO shutdown_order (event_id, said_at, target, reason, actor) VALUES ('unheard', now(), 'p-late', '', 'ops')")
	require.Equal(t, "unheard", receive(t, late).EventID)
	require.Empty(t, late)
}

// An order says how long running work may go on, whatever the setting is.
func TestShutdownOrderOverridesTheGrace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	told := make(chan ShutdownOrder, 8)
	p := join(t, b.pool, "p-patient", func(cfg *Config) { cfg.Shutdown = func(o ShutdownOrder) { told <- o } })
	taken, cause := make(chan struct{}), make(chan error, 1)
	w := p.workWithGrace(time.Hour, noop(func(ctx context.Context, _ Job) (Result, error) {
		close(taken)
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return Result{}, ctx.Err()
	}))
	task := b.create()
	receive(t, taken)
	none := time.Duration(0)
	require.True(t, b.order("now", "p-patient", func(o *ShutdownOrder) { o.Grace = &none }))
	receive(t, told)
	w.stop()
	require.ErrorIs(t, receive(t, cause), ErrStopping)
	require.Equal(t, Pending, Status(b.get(task.TaskID).Status), "it was handed back")
}
