package callback_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/callback"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
)

// Workflow Orchestrator: store status updates locally and retry. It is away for a
// while, with 503 and then not answering at all, while tasks go on, two processes try
// and one of them restarts. When it is back each task's updates arrive in order, each
// once.
func TestOrchestratorAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := newOrchestrator(t)
	tries := make(chan struct{}, 10_000)
	away := func(status int) func(*http.Request, string, string) int {
		return func(*http.Request, string, string) int { tries <- struct{}{}; return status }
	}
	o.answers(away(503))
	caller := b.caller(o.secret, loopback...)
	_, stop := b.dispatch(caller)
	b.dispatch(caller)

	var tasks []uuid.UUID
	for n := range 30 {
		task := b.called(fmt.Sprintf("%s/callbacks/%d?key=1", o.URL, n))
		b.moves(task, 0, "created", "started")
		tasks = append(tasks, task)
	}
	for range 20 {
		outboxtest.Receive(t, tries)
	}
	stop()
	for _, task := range tasks {
		b.moves(task, 0, "retry", "released", "started")
	}
	o.answers(away(0))
	for range 5 {
		outboxtest.Receive(t, tries)
	}
	b.dispatch(caller)
	for _, task := range tasks {
		b.moves(task, 0, "completed")
	}
	require.Equal(t, len(tasks), ask[int](b, "SELECT count(*) FROM report.callback WHERE state = 'WAITING'"), "one row a task, however much it waits for")
	o.answers(func(*http.Request, string, string) int { return 204 })
	b.allTold()

	for _, task := range tasks {
		var want []string
		for _, seq := range []int32{2, 3, 5, 6} { // not what is for the audit trail
			want = append(want, outbox.EventID(task, seq).String())
		}
		require.Equal(t, want, o.taken(task))
	}
	bodies := map[string]string{}
	for _, p := range o.seen() {
		require.NoError(t, p.valid)
		if was, again := bodies[p.id]; again {
			require.Equal(t, was, string(p.body), "a repetition is equal to the byte")
		}
		bodies[p.id] = string(p.body)
	}
	require.JSONEq(t, fmt.Sprintf(`{"taskId": %q, "workflowId": "wf", "stepId": "s-1", "status": "PENDING", "correlationId": "c"}`, tasks[0]),
		bodies[outbox.EventID(tasks[0], 3).String()])
	require.Zero(t, ask[int](b, "SELECT count(*) FROM callback_given_up"))
}

// stuck is a process that is killed between the call and the mark: its call is made,
// and it never comes back from it.
type stuck struct {
	callback.Caller
	called chan string
	let    chan struct{}
}

func (s *stuck) Call(ctx context.Context, address, id string, body []byte) error {
	err := s.Caller.Call(ctx, address, id, body)
	s.called <- id
	<-s.let
	return err
}

// Workflow Orchestrator: store status updates locally and retry. A process is killed
// after it has posted and before it has written so: another repeats it, under the same
// id and with the same body, and only then goes on.
func TestKilledBetweenCallAndMark(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := newOrchestrator(t)
	task := b.called(o.URL)
	b.moves(task, 0, "created", "started", "completed")
	quick := func(cfg *callback.Config) { cfg.Timeout = 200 * time.Millisecond }
	dead := &stuck{b.caller(o.secret, loopback...), make(chan string, 10), make(chan struct{})}
	awake := sync.OnceFunc(func() { close(dead.let) })
	t.Cleanup(awake)
	_, bury := b.dispatch(dead, quick, func(cfg *callback.Config) { cfg.Slots = 1 })
	first := outboxtest.Receive(t, dead.called)
	require.Equal(t, outbox.EventID(task, 2).String(), first)

	b.dispatch(b.caller(o.secret, loopback...))
	b.allTold()
	third := outbox.EventID(task, 3).String()
	require.Equal(t, []string{first, first, third}, o.taken(task))
	posts := o.seen()
	require.Equal(t, posts[0].body, posts[1].body)

	// It was only asleep, and wakes while the next update is on its way, in a row that
	// looks like the one it had: its claim is over and changes nothing.
	entered, let := make(chan struct{}), make(chan struct{})
	free := sync.OnceFunc(func() { close(let) })
	t.Cleanup(free)
	o.answers(func(*http.Request, string, string) int { entered <- struct{}{}; <-let; return 200 })
	b.moves(task, 0, "redriven", "started")
	outboxtest.Receive(t, entered)
	row := "SELECT format('%s %s %s %s', told, upto, claim, due_at) FROM callback"
	before := ask[string](b, row)
	awake()
	bury()
	require.Equal(t, before, ask[string](b, row))
	free()
	b.allTold()
	require.Equal(t, []string{first, first, third, outbox.EventID(task, 5).String()}, o.taken(task))
	require.Zero(t, ask[int](b, "SELECT count(*) FROM callback_given_up"))
}

// scripted answers calls from a script, without a network.
type scripted func(ctx context.Context, address, id string) error

func (s scripted) Call(ctx context.Context, address, id string, _ []byte) error {
	return s(ctx, address, id)
}

// Many processes, moves that go on meanwhile, and answers of every kind: each update is
// acknowledged once or given up once, and in order.
func TestCallbackOrderUnderAnything(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rapid.Check(t, func(r *rapid.T) {
		tasks := make([]uuid.UUID, rapid.IntRange(1, 4).Draw(r, "tasks"))
		seqs := make([]int32, len(tasks))
		want := map[uuid.UUID][]string{}
		var mu sync.Mutex
		got, inside := map[string][]string{}, map[string]bool{}
		answers := rapid.SliceOfN(rapid.SampledFrom([]string{"yes", "yes", "yes", "no", "away", "final"}), 40, 40).Draw(r, "answers")
		caller := scripted(func(_ context.Context, address, id string) error {
			mu.Lock()
			defer mu.Unlock()
			require.False(t, inside[address], "two of one task on their way")
			inside[address] = true
			answer := "yes"
			if len(answers) > 0 {
				answer, answers = answers[0], answers[1:]
			}
			mu.Unlock()
			runtime.Gosched()
			mu.Lock()
			inside[address] = false
			switch answer {
			case "no":
				return &outbox.Refused{Reason: "no"}
			case "away":
				return errors.New("away")
			case "final":
				got[address] = append(got[address], id)
				return &outbox.Refused{Reason: "final", Final: true}
			}
			got[address] = append(got[address], id)
			return nil
		})
		for i := range tasks {
			tasks[i] = b.called(fmt.Sprintf("https://example.org/%d", i))
		}
		var stops []func()
		for range rapid.IntRange(1, 3).Draw(r, "processes") {
			_, stop := b.dispatch(caller)
			stops = append(stops, stop)
		}
		for range rapid.IntRange(1, 12).Draw(r, "moves") {
			i := rapid.IntRange(0, len(tasks)-1).Draw(r, "task")
			types := rapid.SliceOfN(rapid.SampledFrom([]string{"started", "retry", "released", "completed"}), 1, 3).Draw(r, "types")
			for _, kind := range types {
				if seqs[i]++; kind != "released" {
					want[tasks[i]] = append(want[tasks[i]], outbox.EventID(tasks[i], seqs[i]).String())
				}
			}
			b.moves(tasks[i], 0, types...)
		}
		b.allTold()
		for _, stop := range stops {
			stop()
		}
		for i, task := range tasks {
			require.Equal(r, want[task], got[fmt.Sprintf("https://example.org/%d", i)])
		}
		b.Exec("DELETE FROM callback_given_up")
	})
}

// A database that is away loses nothing: what came back is written when it answers.
func TestSettledWhenTheDatabaseAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.called("https://example.org/")
	b.moves(task, 0, "started")
	called, let := make(chan struct{}, 10), make(chan struct{})
	b.dispatch(scripted(func(context.Context, string, string) error {
		called <- struct{}{}
		<-let
		return nil
	}))
	outboxtest.Receive(t, called)
	holder, err := b.Pool.Begin(b.Ctx)
	require.NoError(t, err)
	defer holder.Rollback(b.Ctx)
	_, err = holder.Exec(b.Ctx, "SELECT FROM callback FOR UPDATE")
	require.NoError(t, err)
	close(let)
	outboxtest.WaitFor(t, "the mark to wait", func() bool {
		return ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 1
	})
	b.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
	outboxtest.WaitFor(t, "the failure to be noticed", func() bool { return b.Log.Says("the database keeps the updates") })
	require.NoError(t, holder.Rollback(b.Ctx))
	b.allTold()
	require.Empty(t, called, "it was called once")
}

// One row that somebody has locked keeps no other callback from being made or settled,
// and is settled without a second call when the lock is gone.
func TestOneLockedCallbackHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	near := &testBundle{&outboxtest.Bundle{T: b.T, Ctx: b.Ctx, Log: b.Log}} // with the engine's own patience for locks
	var err error
	near.Pool, err = pgpool.Open(t.Context(), dbtest.URL(b.Pool), pgpool.Config{Engine: true, Name: "engine"})
	require.NoError(t, err)
	t.Cleanup(near.Pool.Close)
	held := b.called("https://example.org/held")
	b.moves(held, 0, "started")
	called, let := make(chan string, 99), make(chan struct{})
	near.dispatch(scripted(func(_ context.Context, address, _ string) error {
		called <- address
		if address == "https://example.org/held" {
			<-let
		}
		return nil
	}))
	require.Equal(t, "https://example.org/held", outboxtest.Receive(t, called))
	holder, err := b.Pool.Begin(b.Ctx)
	require.NoError(t, err)
	defer holder.Rollback(b.Ctx)
	_, err = holder.Exec(b.Ctx, "SELECT FROM callback WHERE task_id = $1 FOR UPDATE", held)
	require.NoError(t, err)
	close(let)
	for range 3 { // one after the other
		other := b.called("https://example.org/other")
		b.moves(other, 0, "started", "completed")
		outboxtest.WaitFor(t, "another to be settled", func() bool {
			return ask[int](b, "SELECT count(*) FROM callback WHERE task_id = $1", other) == 0
		})
	}
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM callback"))
	require.NoError(t, holder.Rollback(b.Ctx))
	b.allTold()
	require.Len(t, called, 6, "nobody was called twice")
}
