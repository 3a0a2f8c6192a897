package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// behindProxy is a process that talks to the test's database through a proxy.
func behindProxy(t *testing.T) (direct, far *testBundle, p *proxy) {
	t.Helper()
	direct = setup(t)
	p = newProxy(t, direct.pool)
	return direct, join(t, p.pool(t, direct.pool), "far"), p
}

// Whatever becomes of a connection, a create ends in the truth, and the same key
// asked again in the same task.
func TestLostAnswerOfACreate(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string][]fault{
		"committed, not told":         {loseAnswer},
		"in flight":                   {hangUp},
		"never arrived":               {loseQuestion},
		"twice":                       {loseAnswer, loseAnswer},
		"never arrived, then no word": {loseQuestion, loseAnswer},
	} {
		for keyed, change := range map[string][]func(*Request){" with a key": {key("k")}, " without a key": nil} {
			t.Run(name+keyed, func(t *testing.T) {
				t.Parallel()
				b, far, p := behindProxy(t)
				define(t, far)
				p.next("TaskCreate", faults...)
				var ids []uuid.UUID
				unavailable := 0
				for range len(faults) + 1 {
					task, _, err := far.Create(far.ctx, request(change...))
					if err != nil {
						require.ErrorIs(t, err, ErrUnavailable)
						unavailable++
						continue
					}
					require.Equal(t, db.TaskStatusPENDING, task.Status)
					ids = append(ids, task.TaskID)
				}
				require.True(t, p.spent())
				made := ask[int](b, "SELECT count(*) FROM task")
				if change != nil {
					require.Equal(t, 1, made)
					for _, id := range ids {
						require.Equal(t, ids[0], id)
					}
				}
				// Every yes is there. A no may have happened too, for the server may have
				// been about to commit when we asked it.
				require.GreaterOrEqual(t, made, 1)
				for _, id := range ids {
					b.get(id)
				}
				if faults[0] == loseAnswer {
					require.Zero(t, unavailable, "what was committed is found")
				}
			})
		}
	}
}

// A flush of many whose answer is lost is a yes to each of them.
func TestLostAnswerOfAFlush(t *testing.T) {
	t.Parallel()
	b, far, p := behindProxy(t)
	p.next("TaskCreate", loseAnswer)
	one, two, twin := prepared(far), prepared(far, key("k")), prepared(far, key("k"))
	answers := []chan error{one.answer, two.answer, twin.answer}
	far.creates.Add(one, two, twin)
	for _, answer := range answers {
		require.NoError(t, receive(t, answer))
	}
	far.creates.Drain()
	require.True(t, p.spent())
	require.Equal(t, []bool{true, true, false}, []bool{one.created, two.created, twin.created})
	require.Equal(t, 2, ask[int](b, "SELECT count(*) FROM task"))
}

// The work behind a result is done, so it is written whatever it takes, and once.
func TestLostAnswerOfAResult(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		query string
		pure  bool
		err   error
		story string
	}{
		"fused success": {"TaskComplete", true, nil, "created started completed"},
		"success":       {"TaskComplete", false, nil, "created started completed"},
		"start":         {"TaskMove", false, nil, "created started completed"},
		"failure":       {"TaskMove", true, errors.New("no"), "created started failed"},
		"claim":         {"LaneClaim", false, nil, "created started completed"},
	} {
		for lost, f := range map[string]fault{" committed, not told": loseAnswer, " in flight": hangUp, " never arrived": loseQuestion} {
			t.Run(name+lost, func(t *testing.T) {
				t.Parallel()
				b, far, p := behindProxy(t)
				ran := make(chan int, 9)
				task := b.create()
				p.next(tc.query, f, f)
				far.work(map[string]Registration{"noop": {Pure: tc.pure, Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
					ran <- job.Attempt
					return Result{Output: json.RawMessage(`{"n": 1}`)}, tc.err
				})}}, func(cfg *RunnerConfig) { cfg.Silence = time.Second })
				if tc.query == "LaneClaim" {
					// The sweep looks for claims that are not young any more.
					waitFor(t, "a claim to be struck", func() bool { return len(p.struck) > 0 })
					b.exec("UPDATE river_job SET attempted_at = now() - interval '1 hour' WHERE state = 'running'")
				}
				task = b.until(task.TaskID, "over", func(task db.Task) bool { return Status(task.Status).Terminal() })
				waitFor(t, "the faults to strike", p.spent)
				require.Equal(t, tc.story, b.story(task.TaskID))
				require.Equal(t, 1, receive(t, ran))
				require.Empty(t, ran, "it ran once")
			})
		}
	}
}

// While the database is away a caller is told so at once; what has been worked is
// kept, and written when it is back.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	b, far, p := behindProxy(t)
	release := make(chan struct{})
	taken := make(chan struct{}, 20)
	far.work(noop(func(_ context.Context, job Job) (Result, error) {
		taken <- struct{}{}
		<-release
		if job.StepID == "bad" {
			return Result{}, errors.New("no")
		}
		return Result{Output: json.RawMessage(`{"n": 1}`)}, nil
	}), stalled)
	var tasks []db.Task
	for i := range 10 {
		tasks = append(tasks, far.create(func(req *Request) {
			if i%2 == 0 {
				req.StepID = "bad"
			}
		}))
	}
	for range tasks {
		receive(t, taken)
	}
	p.away()
	close(release)

	waitFor(t, "the results to wait", func() bool {
		return far.log.says("results wait for the database") && far.log.says("transitions wait for the database")
	})
	_, _, err := far.Create(far.ctx, request())
	require.ErrorIs(t, err, ErrUnavailable)
	_, err = far.Cancel(far.ctx, tasks[0].TaskID, Actor{})
	require.ErrorIs(t, err, ErrUnavailable)
	_, err = far.SetStatus(far.ctx, tasks[0].TaskID, Actor{}, Update{Status: Completed})
	require.ErrorIs(t, err, ErrUnavailable)
	_, _, err = far.Definitions.Put(far.ctx, "o", 0, calculate())
	require.ErrorIs(t, err, ErrUnavailable)
	_, err = far.Get(far.ctx, "", tasks[0].TaskID)
	require.ErrorIs(t, err, ErrUnavailable)
	require.Equal(t, 10, ask[int](b, "SELECT count(*) FROM task WHERE status = 'RUNNING'"))

	p.back()
	for i, task := range tasks {
		task = b.becomes(task.TaskID, []Status{Failed, Completed}[i%2])
		require.EqualValues(t, 1, task.Attempt)
	}
}

// A process that was cut off finishes late: by then somebody else has done it.
func TestProcessThatWasCutOffChangesNothing(t *testing.T) {
	t.Parallel()
	b, far, p := behindProxy(t)
	taken, release := make(chan struct{}), make(chan struct{})
	far.work(noop(func(context.Context, Job) (Result, error) {
		close(taken)
		<-release
		return Result{Output: json.RawMessage(`{"by": "the one cut off"}`)}, nil
	}), stalled)
	task := b.create()
	receive(t, taken)
	p.away()
	close(release)
	waitFor(t, "its result to wait", func() bool { return far.log.says("results wait for the database") })

	b.expire(task.TaskID)
	b.work(noop(does(`{"by": "another"}`, nil)))
	task = b.becomes(task.TaskID, Completed)
	p.back()
	waitFor(t, "it to hear so", func() bool { return far.running(task) == nil })
	require.True(t, far.log.says("result rejected: the lease was lost"))
	require.Equal(t, task, b.get(task.TaskID))
	require.JSONEq(t, `{"by": "another"}`, string(task.Output))
}

func TestStopWhileTheDatabaseIsAwayEnds(t *testing.T) {
	t.Parallel()
	b, far, p := behindProxy(t)
	taken, release := make(chan struct{}), make(chan struct{})
	runner := far.work(noop(func(context.Context, Job) (Result, error) {
		close(taken)
		<-release
		return Result{}, nil
	}), stalled)
	task := b.create()
	receive(t, taken)
	p.away()
	close(release)
	waitFor(t, "its result to wait", func() bool { return far.log.says("results wait for the database") })
	runner.stop()
	p.back()

	// Nobody will write that result; the lease runs out.
	b.expire(task.TaskID)
	b.work(noop(does(`{}`, nil)))
	task = b.becomes(task.TaskID, Completed)
	require.EqualValues(t, 2, task.Attempt)
}
