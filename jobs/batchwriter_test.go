package jobs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// production joins a process with the engine's own pool, whose statements wait for a
// lock as long as in production.
func (b *testBundle) production(name string) *testBundle {
	b.t.Helper()
	return join(b.t, enginePool(b.t, b.pool), name)
}

// ended waits until so many tasks are in that status.
func (b *testBundle) ended(n int, status Status) {
	b.t.Helper()
	waitFor(b.t, fmt.Sprintf("%d tasks to be %s", n, status), func() bool {
		return ask[int](b, "SELECT count(*) FROM task WHERE status = $1::task_status", status) >= n
	})
}

// held is a result that comes in while another session has a row of its task.
type heldCase struct {
	pure bool
	err  error
	to   Status
	lock string // with the task's id
}

var heldCases = map[string]heldCase{
	"a success":               {to: Completed, lock: "SELECT FROM task WHERE task_id = $1 FOR UPDATE"},
	"a success in one commit": {pure: true, to: Completed, lock: "SELECT FROM task WHERE task_id = $1 FOR UPDATE"},
	"a failure":               {err: errors.New("no"), to: Failed, lock: "SELECT FROM task WHERE task_id = $1 FOR UPDATE"},
	"its job is locked":       {to: Completed, lock: "SELECT FROM river_job WHERE id = (SELECT job_id FROM task WHERE task_id = $1) FOR UPDATE"},
	"its lease is locked":     {to: Completed, lock: "SELECT FROM lease WHERE task_id = $1 FOR UPDATE"},
	"its attempt is locked":   {to: Completed, lock: "SELECT FROM task_attempt WHERE task_id = $1 FOR UPDATE"},
}

// SELECT … FOR UPDATE in another session on one task whose result comes in: the others,
// which share its batch and which come after it, are written meanwhile.
func TestOneLockedRowHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	for name, tc := range heldCases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const others = 100
			b := setup(t)
			p := b.production("p2")
			entered, release := make(chan uuid.UUID, others+1), make(chan struct{})
			p.work(map[string]Registration{"noop": {Pure: tc.pure, Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
				entered <- job.TaskID
				<-release
				return Result{}, tc.err
			})}})
			held := b.create()
			for range others / 2 {
				b.create()
			}
			for range 1 + others/2 {
				receive(t, entered)
			}
			if !tc.pure {
				b.ended(1+others/2, Running)
			}

			lock := b.lock(tc.lock, held.TaskID)
			close(release) // all at once: they share a batch
			b.ended(others/2, tc.to)
			for range others / 2 {
				b.create() // they come behind
			}
			b.ended(others, tc.to)
			require.NotEqual(t, tc.to, Status(b.get(held.TaskID).Status))

			lock.letGo()
			b.becomes(held.TaskID, tc.to)
			require.EqualValues(t, 1, b.get(held.TaskID).Attempt)
		})
	}
}

// Whoever asks for a task that is locked waits, and nobody else does.
func TestOneLockedRowHoldsUpNoOtherCaller(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.production("p2")
	held := b.create(remote)
	lock := b.hold(held)
	done := make(chan error, 1)
	go func() {
		_, err := p.Cancel(p.ctx, held.TaskID, Actor{Name: "o"})
		done <- err
	}()
	b.waiting(1)
	for range 20 {
		task := b.create(remote)
		_, err := p.Cancel(p.ctx, task.TaskID, Actor{Name: "o"})
		require.NoError(t, err)
	}
	require.Empty(t, done)
	lock.letGo()
	require.NoError(t, receive(t, done))
	require.Equal(t, "created canceled", b.story(held.TaskID))
}

// A request whose key another session is about to write waits until that is known, and
// no other request does.
func TestOneKeyInDoubtHoldsUpNoOtherCreate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.production("p2")
	lock := b.lock("INSERT INTO task_request (tenant_id, request_key, task_id, created_at, body_hash) VALUES ('', 'k', gen_random_uuid(), now(), '')")
	done := make(chan error, 1)
	go func() {
		_, created, err := p.Create(p.ctx, request(remote, key("k")))
		if err == nil && !created {
			err = errors.New("somebody else made it")
		}
		done <- err
	}()
	b.waiting(1)
	for i := range 20 {
		_, _, err := p.Create(p.ctx, request(remote, key(fmt.Sprint(i))))
		require.NoError(t, err)
	}
	require.Empty(t, done)
	lock.letGo()
	require.NoError(t, receive(t, done))
}

// A caller that is gone is not waited for, and what it asked for is not done behind its
// back for ever.
func TestACallerOfALockedRowMayLeave(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.production("p2")
	held := b.create(remote)
	lock := b.hold(held)
	ctx, leave := context.WithCancel(p.ctx)
	done := make(chan error, 1)
	go func() {
		_, err := p.Cancel(ctx, held.TaskID, Actor{Name: "o"})
		done <- err
	}()
	waitFor(t, "it to wait apart", func() bool { return p.log.says("waits: another session has locked its row") })
	leave()
	require.ErrorIs(t, receive(t, done), ErrUnavailable)
	p.Drain(p.ctx) // nothing waits any more
	lock.letGo()
	require.Equal(t, "created", b.story(held.TaskID))
}

// One lease that is locked costs no other lease a heartbeat, nor the attempt its context.
func TestOneLockedLeaseStopsNoHeartbeat(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.production("p2")
	entered, release := make(chan uuid.UUID, 9), make(chan struct{})
	p.work(noop(func(ctx context.Context, job Job) (Result, error) {
		entered <- job.TaskID
		select {
		case <-release:
			return Result{}, nil
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	}))
	held, other := b.create(visibility(time.Second)), b.create(visibility(time.Second))
	receive(t, entered)
	receive(t, entered)
	b.ended(2, Running)
	lock := b.lock("SELECT FROM lease WHERE task_id = $1 FOR UPDATE", held.TaskID)
	const until = "SELECT expires_at FROM lease WHERE task_id = $1"
	first := ask[time.Time](b, until, other.TaskID)
	waitFor(t, "the other lease to be extended", func() bool {
		return ask[time.Time](b, until, other.TaskID).After(first.Add(1500 * time.Millisecond))
	})
	lock.letGo()
	close(release)
	b.becomes(other.TaskID, Completed)
	require.Equal(t, "created started completed", b.story(other.TaskID))
	b.becomes(held.TaskID, Completed)
}

// A worker's heartbeat of several leases, one of which is locked: the others are extended,
// and of the locked one the worker is told to try again.
func TestOneLockedLeaseStopsNoHeartbeatOfAWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.production("p2")
	for range 3 {
		b.create(remote)
	}
	leases := b.dequeue("w", func(req *LeaseRequest) { req.Most = 3 })
	require.Len(t, leases, 3)
	lock := b.lock("SELECT FROM lease WHERE task_id = $1 FOR UPDATE", leases[1].TaskID)
	var beats []Heartbeat
	for _, l := range leases {
		beats = append(beats, Heartbeat{Token: l.Token, Extend: time.Hour})
	}
	out, err := p.Leases.Heartbeat(p.ctx, "", beats)
	require.NoError(t, err)
	for i, one := range out {
		if i == 1 {
			require.ErrorIs(t, one.Err, ErrUnavailable)
			continue
		}
		require.NoError(t, one.Err)
		require.True(t, one.ExpiresAt.After(leases[i].ExpiresAt))
	}
	lock.letGo()
	require.NoError(t, b.beat(leases[1].Token).Err)
}

// One task of a dead process that cannot be reaped keeps none of the others from it.
func TestOneLockedTaskStopsNoReaper(t *testing.T) {
	t.Parallel()
	for name, lockTask := range map[string]string{
		"its row":   "SELECT FROM task WHERE task_id = $1 FOR UPDATE",
		"its lease": "SELECT FROM lease WHERE task_id = $1 FOR UPDATE",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			p := b.production("p2")
			held := b.create(remote)
			lease := b.dequeueOne("w")
			require.Equal(t, held.TaskID, lease.TaskID)
			b.expire(held.TaskID)
			lock := b.lock(lockTask, held.TaskID)
			p.work(nil)
			for range 3 { // one after the other: the reaper comes round
				task := b.create(remote)
				require.Equal(t, task.TaskID, b.dequeueOne("w").TaskID)
				b.expire(task.TaskID)
				b.until(task.TaskID, "given back", func(task db.Task) bool { return task.Crashes == 1 })
				_, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "o"})
				require.NoError(t, err)
			}
			require.Zero(t, b.get(held.TaskID).Crashes)
			lock.letGo()
			b.until(held.TaskID, "given back", func(task db.Task) bool { return task.Crashes == 1 })
		})
	}
}

// A process stops although a row is locked that it has a result for.
func TestStopWhileAResultWaitsApart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.production("p2")
	taken, release := make(chan struct{}), make(chan struct{})
	w := p.work(noop(func(context.Context, Job) (Result, error) {
		close(taken)
		<-release
		return Result{}, nil
	}), stalled)
	task := b.create()
	receive(t, taken)
	b.becomes(task.TaskID, Running)
	lock := b.hold(task)
	close(release)
	waitFor(t, "its result to wait apart", func() bool { return p.log.says("waits: another session has locked its row") })
	w.stop()

	lock.letGo()
	b.expire(task.TaskID)
	b.work(noop(does(`{}`, nil)))
	require.EqualValues(t, 2, b.becomes(task.TaskID, Completed).Attempt)
}

// A definition that somebody is writing keeps no connection for longer than a lock may
// take, and no other definition from being written.
func TestADefinitionThatIsBeingWrittenHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.production("p2")
	b.lock(`
		INSERT INTO task_definition (definition_id, revision, type, timeout_ms, version, name, description, created_by, execution_config)
		VALUES ($1, 1, 'AUTOMATED', 1000, '1.0.0', 'n', '', 'x', '{}')`, calculate().ID)
	_, _, err := p.Definitions.Put(p.ctx, "o", 0, calculate())
	require.ErrorIs(t, err, ErrUnavailable)
	other := calculate()
	other.ID = "another"
	_, _, err = p.Definitions.Put(p.ctx, "o", 0, other)
	require.NoError(t, err)
}

// deadlocks counts the statements that the server ended for one.
type deadlocks struct{ n atomic.Int64 }

func (d *deadlocks) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (d *deadlocks) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if isSerializationFailure(data.Err) {
		d.n.Add(1)
	}
}

// watched joins a process whose deadlocks are counted.
func (b *testBundle) watched(name string, seen *deadlocks) *testBundle {
	b.t.Helper()
	cfg := b.pool.Config()
	cfg.ConnConfig.Tracer = seen
	pool, err := pgxpool.NewWithConfig(b.ctx, cfg)
	require.NoError(b.t, err)
	b.t.Cleanup(pool.Close)
	return join(b.t, pool, name)
}

// Results that are handed in from the last task to the first, and moves of the same tasks
// in another process: the second waits for the first, and neither for the other.
func TestResultsAndMovesLockInOneOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var seen deadlocks
	p1, p2 := b.watched("p1", &seen), b.watched("p2", &seen)
	first, last := b.create(remote), b.create(remote)
	require.Less(t, first.TaskID.String(), last.TaskID.String())

	lock := b.hold(first)
	cancelled := make(chan []transitionResult, 1)
	go func() {
		var all []*transition
		for _, task := range []db.Task{first, last} {
			all = append(all, &transition{
				task: task.TaskID, expect: atVersion(0, Pending), to: Cancelled, event: db.TaskEventTypeCanceled,
				actor: "o", endJob: db.RiverJobStateCancelled,
			})
		}
		cancelled <- p2.applyAll(all)
	}()
	b.waiting(1) // for the first task, which is theirs as soon as we let go
	settled := make(chan bool, 2)
	var results []*completion
	for _, task := range []db.Task{last, first} {
		results = append(results, &completion{
			task: task.TaskID, job: task.JobID, attempt: 1, combined: true, started: time.Now(), ended: time.Now(),
			onWritten: func(ok bool, _ error) { settled <- ok },
		})
	}
	p1.completes.Add(results...)
	b.waiting(2)
	lock.letGo()

	for _, out := range receive(t, cancelled) {
		require.NoError(t, out.err)
		require.True(t, out.applied)
	}
	require.False(t, receive(t, settled))
	require.False(t, receive(t, settled))
	require.Zero(t, seen.n.Load(), "deadlocks")
}

// Two processes are asked for the same keys, in opposite order.
func TestCreatesTakeKeysInOneOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var seen deadlocks
	p1, p2 := b.watched("p1", &seen), b.watched("p2", &seen)
	lock := b.lock("INSERT INTO task_request (tenant_id, request_key, task_id, created_at, body_hash) VALUES ('', 'm', gen_random_uuid(), now(), '')")
	var answers []<-chan error
	for i, p := range []*testBundle{p1, p2} {
		keys := []string{"a", "m", "b"}
		if i == 1 {
			slices.Reverse(keys)
		}
		var all []*creation
		for _, k := range keys {
			all = append(all, prepared(p, remote, key(k)))
			answers = append(answers, all[len(all)-1].answer)
		}
		p.creates.Add(all...)
		b.waiting(i + 1)
	}
	lock.letGo()
	for _, answer := range answers {
		require.NoError(t, receive(t, answer))
	}
	require.Equal(t, 3, ask[int](b, "SELECT count(*) FROM task"))
	require.Zero(t, seen.n.Load(), "deadlocks")
}

// Whatever rows are locked and for how long: what a caller does to a task, one move after
// the other, is its history.
func TestLocksLeaveTheOrderOfATaskAlone(t *testing.T) {
	t.Parallel()
	const tasks, moves = 6, 8
	b := setup(t)
	processes := []*testBundle{b.production("p2"), b.production("p3")}
	all := make([]db.Task, tasks)
	for i := range all {
		all[i] = b.create(remote)
	}
	done := make(chan struct{})
	var holders, callers sync.WaitGroup
	for i := range 3 {
		dice := rand.New(rand.NewPCG(uint64(i), 7))
		holders.Go(func() {
			for {
				lock := b.hold(all[dice.IntN(tasks)])
				select {
				case <-done:
					lock.letGo()
					return
				case <-time.After(time.Duration(dice.IntN(1500)) * time.Millisecond): // longer than a lock is waited for, at times
					lock.letGo()
				}
			}
		})
	}
	want := make([]string, tasks)
	var failed atomic.Pointer[error]
	for i, task := range all {
		callers.Go(func() {
			want[i] = "created"
			for n := range moves {
				to, word := Running, " started"
				if n%2 == 1 {
					to, word = Pending, " released"
				}
				for { // a caller who is told that the database is not available asks again
					_, err := processes[n%2].SetStatus(b.ctx, task.TaskID, Actor{Name: "o"}, Update{Status: to})
					if err == nil {
						break
					}
					if !errors.Is(err, ErrUnavailable) {
						failed.Store(&err)
						return
					}
				}
				want[i] += word
			}
		})
	}
	callers.Wait()
	close(done)
	holders.Wait()
	require.Nil(t, failed.Load())
	for i, task := range all {
		require.Equal(t, want[i], b.story(task.TaskID))
		_, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "o"})
		require.NoError(t, err)
	}
}
