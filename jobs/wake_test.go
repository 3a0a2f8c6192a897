package jobs

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// soon is generous, and yet far from the poll of a minute: who is quicker than that
// was woken.
const soon = 2 * time.Second

func deaf(cfg *RunnerConfig) { cfg.Poll = time.Minute }

// The second of two inserts a few milliseconds apart is the one that a NOTIFY saved
// would leave to the poll.
func TestInsertsWakeTheLaneAndNotThePoll(t *testing.T) {
	t.Parallel()
	for _, from := range []string{"this process", "another process"} {
		for gap, wait := range map[string]time.Duration{"together": 0, "4 ms apart": 4 * time.Millisecond, "15 ms apart": 15 * time.Millisecond} {
			t.Run("from "+from+" "+gap, func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				ran := make(chan uuid.UUID, 2)
				b.work(noop(func(_ context.Context, job Job) (Result, error) {
					ran <- job.TaskID
					return Result{}, nil
				}), deaf)
				source := b
				if from != "this process" {
					source = join(t, b.pool, "p2")
					b.listens()
				}
				for range 5 {
					source.create()
					between := time.NewTimer(wait)
					<-between.C
					source.create()
					for range 2 {
						at := time.Now()
						receive(t, ran)
						require.Less(t, time.Since(at), soon)
					}
				}
			})
		}
	}
}

func TestOrphanIsTakenWithoutAPoll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create()
	b.claimedBy("dead", task, time.Hour)
	at := time.Now()
	b.work(noop(does(`{}`, nil)), deaf)
	b.becomes(task.TaskID, Completed)
	require.Less(t, time.Since(at), soon+5*time.Second)
}

func TestCancelReachesAnExecutorInAnotherProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	taken, cause := make(chan struct{}), make(chan error, 1)
	b.work(noop(func(ctx context.Context, _ Job) (Result, error) {
		close(taken)
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return Result{}, ctx.Err()
	}), stalled)
	b.listens()
	task := b.create()
	receive(t, taken)
	at := time.Now()
	_, err := join(t, b.pool, "p2").Cancel(b.ctx, task.TaskID, Actor{Name: "orchestrator"})
	require.NoError(t, err)
	require.ErrorIs(t, receive(t, cause), ErrCancelled)
	require.Less(t, time.Since(at), soon)
}

func TestChangedDefinitionIsHeardInAnotherProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(nil)
	b.listens()
	other := join(t, b.pool, "p2")
	define(t, other, func(d *Definition) { d.Version = "1.0.0" })
	task := b.create(of("calculate"))
	require.EqualValues(t, 1, task.Revision)
	define(t, other, func(d *Definition) { d.Version = "2.0.0" })
	// The cache alone would forget after two seconds.
	b.defs.mu.Lock()
	if hit, ok := b.defs.newest["calculate"][""]; ok {
		hit.until = time.Now().Add(time.Hour)
		b.defs.newest["calculate"][""] = hit
	}
	b.defs.mu.Unlock()
	waitFor(t, "the change to be heard", func() bool { return b.create(of("calculate")).Revision == 2 })
}

// listens waits until the runner hears what other processes tell.
func (b *testBundle) listens() {
	b.t.Helper()
	waitFor(b.t, "the runner to listen", func() bool {
		return ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN tes_definition' AND state = 'idle'") > 0
	})
}
