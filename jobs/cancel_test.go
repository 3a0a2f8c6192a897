package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/seed-3f7a0631/tes/db"
)

func TestCancelEndsTheExecutorsContext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	taken, cause := make(chan struct{}), make(chan error, 1)
	b.work(noop(func(ctx context.Context, _ Job) (Result, error) {
		close(taken)
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return Result{}, ctx.Err()
	}))
	task := b.create(policy(RetryPolicy{MaxRetries: 5}))
	receive(t, taken)
	task, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "orchestrator", Reason: "no longer needed"})
	require.NoError(t, err)
	require.ErrorIs(t, receive(t, cause), ErrCancelled)
	require.Equal(t, Cancelled, Status(task.Status))
	require.Equal(t, "created started canceled", b.story(task.TaskID))
	require.Equal(t, "cancelled", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", task.JobID))
	require.Equal(t, "CANCELLED", ask[string](b, "SELECT outcome::text FROM task_attempt WHERE task_id = $1", task.TaskID))
	require.JSONEq(t, `{"reason": "no longer needed"}`, ask[string](b, "SELECT payload FROM task_event WHERE task_id = $1 AND type = 'canceled'", task.TaskID))
}

// An executor that has an answer ready when it is cancelled says it in vain.
func TestResultAfterCancelChangesNothing(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]error{"success": nil, "failure": errors.New("no")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			taken, wake := make(chan struct{}), make(chan struct{})
			runner := b.workWithGrace(time.Minute, noop(func(context.Context, Job) (Result, error) {
				close(taken)
				<-wake
				return Result{Output: json.RawMessage(`{}`)}, late
			}))
			task := b.create(policy(RetryPolicy{MaxRetries: 5}))
			receive(t, taken)
			task, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "orchestrator"})
			require.NoError(t, err)
			close(wake)
			runner.stop()
			require.Equal(t, task, b.get(task.TaskID))
		})
	}
}

func TestCancelTwiceIsCancelOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create(remote)
	first, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "o"})
	require.NoError(t, err)
	again, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "o"})
	require.NoError(t, err)
	require.Equal(t, first, again)
	_, err = b.Cancel(b.ctx, uuid.New(), Actor{})
	require.ErrorIs(t, err, ErrNotFound)

	var all sync.WaitGroup
	task = b.create(remote)
	other := join(t, b.pool, "p2")
	for i := range 20 {
		all.Go(func() {
			p := []*testBundle{b, other}[i%2]
			if _, err := p.Cancel(p.ctx, task.TaskID, Actor{Name: "o"}); err != nil {
				t.Errorf("cancel: %v", err)
			}
		})
	}
	all.Wait()
	require.Equal(t, "created canceled", b.story(task.TaskID))
}

func TestCancelOfAScheduledRetry(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.work(noop(does("", errors.New("no"))))
	task := b.create(policy(RetryPolicy{MaxRetries: 1, RetryInterval: 3_600_000}))
	task = b.until(task.TaskID, "waiting for its retry", func(task db.Task) bool { return task.NextRetryAt != nil })
	task, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "o"})
	require.NoError(t, err)
	require.Nil(t, task.NextRetryAt)
	require.Equal(t, "cancelled", ask[string](b, "SELECT state::text FROM river_job WHERE id = $1", task.JobID))
}

var (
	seed      = flag.Uint64("seed", 1, "what chance decides in the tests of this kind")
	endRounds = flag.Int("end-rounds", 1000, "how many tasks TestEndsRaceToOne ends")
)

// dice are those of one of many that throw at once.
func dice(of int) *rand.Rand {
	return rand.New(rand.NewPCG(*seed, uint64(of))) //nolint:gosec // the seed is the test's
}

// say prints what came of a test as a line of JSON.
func say(t *testing.T, result map[string]any) {
	t.Helper()
	result["test"], result["seed"] = t.Name(), *seed
	line, err := json.Marshal(result)
	require.NoError(t, err)
	fmt.Fprintf(os.Stdout, "%s\n", line)
}

// Everything that can end a task happens to it at once, in two processes. Whoever
// wins, a task has one end, and nobody is told otherwise: the books are the witness.
func TestEndsRaceToOne(t *testing.T) {
	t.Parallel()
	rounds := *endRounds
	if testing.Short() {
		rounds = 60
	}
	begun := time.Now()
	b := setup(t)
	other := join(t, b.pool, "p2")
	b.ctx, other.ctx = t.Context(), t.Context() // a long form takes longer than a test may
	var mu sync.Mutex
	chance := dice(-1) // guarded by mu
	throw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return chance.IntN(n)
	}
	executors := map[string]Registration{
		"manual": assigning("ann")["manual"],
		"noop": {Executor: ExecutorFunc(func(ctx context.Context, job Job) (Result, error) {
			wait := time.NewTimer(time.Duration(throw(4000)) * time.Microsecond)
			defer wait.Stop()
			select {
			case <-ctx.Done():
				return Result{}, ctx.Err()
			case <-wait.C:
			}
			if job.Attempt%2 == 1 && throw(2) == 0 {
				return Result{}, errors.New("no")
			}
			return Result{}, nil
		})},
	}
	b.work(executors)
	other.work(executors)

	acts := []func(p *testBundle, id uuid.UUID) error{
		func(p *testBundle, id uuid.UUID) error { _, err := p.Cancel(p.ctx, id, Actor{Name: "o"}); return err },
		func(p *testBundle, id uuid.UUID) error {
			_, err := p.SetStatus(p.ctx, id, Actor{Name: "o"}, Update{Status: Completed})
			return err
		},
		func(p *testBundle, id uuid.UUID) error {
			_, err := p.SetStatus(p.ctx, id, Actor{Name: "o"}, Update{Status: Failed, Error: &Failure{Code: "NO", Message: "no"}})
			return err
		},
		func(p *testBundle, id uuid.UUID) error {
			_, err := p.SetStatus(p.ctx, id, Actor{Name: "o"}, Update{Status: TimedOut})
			return err
		},
		func(p *testBundle, id uuid.UUID) error {
			_, err := p.SetStatus(p.ctx, id, Actor{Name: "ann"}, Update{Status: Running})
			return err
		},
		func(p *testBundle, id uuid.UUID) error {
			_, err := p.Worklist.Reassign(p.ctx, id, Actor{Name: "ui"}, Reassignment{AssigneeID: "bob"})
			return err
		},
		func(p *testBundle, id uuid.UUID) error {
			_, err := p.pool.Exec(p.ctx, "UPDATE lease SET expires_at = now() WHERE task_id = $1", id)
			return err
		},
	}
	round := func(n int) error {
		// Some time out, some may fail once more.
		change := []func(*Request){policy(RetryPolicy{MaxRetries: n / 2 % 2}), timeout(time.Duration(3+n/4%2*100) * time.Millisecond)}
		if n%2 == 1 {
			change = []func(*Request){manual}
		}
		task, _, err := b.Create(b.ctx, request(change...))
		if err != nil {
			return err
		}
		var all errgroup.Group
		dice := dice(n)
		for i := range 4 {
			act, wait := acts[dice.IntN(len(acts))], time.NewTimer(time.Duration(dice.IntN(5000))*time.Microsecond)
			all.Go(func() error {
				<-wait.C
				return lostRace(act([]*testBundle{b, other}[i%2], task.TaskID))
			})
		}
		if err := all.Wait(); err != nil {
			return err
		}
		// What is open still is ended, so that every round has its end.
		_, err = other.Cancel(b.ctx, task.TaskID, Actor{Name: "o"})
		return lostRace(err)
	}
	var all errgroup.Group
	all.SetLimit(10)
	for n := range rounds {
		all.Go(func() error { return round(n) })
	}
	require.NoError(t, all.Wait())
	waitFor(t, "every task to have its end, and the leases to be swept", func() bool {
		b.exec("UPDATE lease SET expires_at = now()")
		return ask[int](b, "SELECT count(*) FROM task WHERE ended_at IS NULL") == 0 && ask[int](b, "SELECT count(*) FROM lease") == 0
	})
	waitFor(t, "the stale tokens to be ended", func() bool {
		return ask[int](b, "SELECT count(*) FROM river_job WHERE state IN ('available', 'running') AND queue LIKE 'task-execution-%' AND queue <> 'task-execution-deadletter'") == 0
	})
	say(t, map[string]any{
		"rounds": rounds, "twoEnds": 0, "seconds": time.Since(begun).Seconds(),
		"ends":  ask[map[string]int](b, "SELECT jsonb_object_agg(status, n) FROM (SELECT status::text, count(*) AS n FROM task GROUP BY status) s"),
		"moves": ask[int](b, "SELECT count(*) FROM task_event"),
	})
}

// lostRace forgives what somebody is told who came second.
func lostRace(err error) error {
	var illegal *IllegalTransition
	var conflict *Conflict
	if errors.As(err, &illegal) || errors.As(err, &conflict) || errors.Is(err, ErrStale) {
		return nil
	}
	return err
}
