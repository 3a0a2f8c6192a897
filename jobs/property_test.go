package jobs

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// believed is what the model thinks of a task.
type believed struct {
	ended                      Status // by hand; empty: not, or not yet
	id                         uuid.UUID
	kind                       string // see kinds
	status                     Status
	version                    int32
	attempt, failures, crashes int32
	retries                    int
	later                      bool // its retries are an hour away
	inside                     bool // an executor, which waits for its order
	waiting                    bool // for a response
}

// machine drives the engine and a model side by side. Executors say that they were
// called, and wait to be told what to come to.
type machine struct {
	*testBundle
	entered chan Job
	orders  chan order
	tasks   []*believed
}

type order struct {
	result Result
	err    error
}

func newMachine(t *testing.T) *machine {
	m := &machine{testBundle: setup(t), entered: make(chan Job, 1), orders: make(chan order, 1)}
	obey := ExecutorFunc(func(ctx context.Context, job Job) (Result, error) {
		m.entered <- job
		select {
		case o := <-m.orders:
			if o.err != nil && o.err.Error() == "panic" {
				panic("as ordered")
			}
			if o.err != nil && o.err.Error() == "goexit" {
				runtime.Goexit()
			}
			return o.result, o.err
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	})
	m.work(map[string]Registration{"noop": {Executor: obey}, "integration": {Executor: obey}, "manual": assigning("ann")["manual"]})
	return m
}

// Random sequences of everything that can be asked of a task; after each step the
// row is where the model says, and after all of them the books are right.
func TestEngineFollowsTheModel(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	rapid.Check(t, func(r *rapid.T) {
		m.tasks = nil
		// One task at a time may be in an executor: orders then need no address.
		defer m.quiet()
		for range rapid.IntRange(4, 16).Draw(r, "steps") {
			m.step(r)
			for _, task := range m.tasks {
				m.agree(r, task)
			}
		}
	})
}

func (m *machine) step(r *rapid.T) {
	if len(m.tasks) == 0 || (len(m.tasks) < 3 && !m.busy() && rapid.IntRange(0, 3).Draw(r, "create") == 0) {
		m.add(r)
		return
	}
	task := m.tasks[rapid.IntRange(0, len(m.tasks)-1).Draw(r, "task")]
	verb := rapid.SampledFrom([]string{"return", "return", "return", "expire", "respond", "cancel", "status", "status", "reassign"}).Draw(r, "verb")
	switch verb {
	case "return":
		m.ordered(r, task)
	case "expire":
		m.expired(task)
	case "respond":
		m.responded(r, task)
	case "cancel":
		_, err := m.Cancel(m.ctx, task.id, Actor{Name: "o"})
		m.byHand(r, task, Cancelled, err)
	case "status":
		to := rapid.SampledFrom(Statuses).Draw(r, "to")
		if m.busy() && !task.inside && to == Pending {
			return // it might enter an executor, where another task is
		}
		_, err := m.SetStatus(m.ctx, task.id, Actor{Name: "o"}, Update{Status: to})
		m.byHand(r, task, to, err)
	case "reassign":
		_, err := m.Worklist.Reassign(m.ctx, task.id, Actor{Name: "o"}, Reassignment{AssigneeID: "bob"})
		m.reassigned(r, task, err)
	}
}

func (m *machine) busy() bool {
	return slices.ContainsFunc(m.tasks, func(task *believed) bool { return task.inside })
}

// add creates a task, and waits until it has come to rest.
func (m *machine) add(r *rapid.T) {
	task := &believed{status: Pending, version: 1}
	task.kind = rapid.SampledFrom([]string{"noop", "noop", "integration", "manual", "worker"}).Draw(r, "kind")
	task.retries = rapid.IntRange(0, 2).Draw(r, "retries")
	task.later = rapid.Bool().Draw(r, "later")
	p := RetryPolicy{MaxRetries: task.retries}
	if task.later {
		p.RetryInterval = 3_600_000
	}
	shape := map[string]func(*Request){"noop": func(*Request) {}, "integration": elsewhere, "manual": manual, "worker": remote}[task.kind]
	task.id = m.create(shape, callsBack, policy(p)).TaskID
	m.tasks = append(m.tasks, task)
	m.lane(task)
}

// lane is what becomes of a task whose job may be taken now.
func (m *machine) lane(task *believed) {
	switch task.kind {
	case "manual":
		task.status, task.version = Assigned, task.version+1
		m.until(task.id, "assigned", func(db db.Task) bool { return db.Version >= task.version })
	case "noop", "integration":
		require.Equal(m.t, task.id, receive(m.t, m.entered).TaskID)
		task.status, task.version, task.attempt, task.inside = Running, task.version+1, task.attempt+1, true
	}
}

func (m *machine) ordered(r *rapid.T, task *believed) {
	if !task.inside {
		return
	}
	word := rapid.SampledFrom([]string{"done", "fail", "final", "panic", "goexit", "outage", "await"}).Draw(r, "result")
	switch word {
	case "done":
		m.orders <- order{result: Result{Output: []byte(`{"n": 1}`)}}
		task.status, task.version = Completed, task.version+1
		m.settled(task)
	case "fail":
		m.orders <- order{err: errors.New("no")}
		m.failed(task, true)
	case "final":
		m.orders <- order{err: &Failure{Code: "E", Retryable: ptr(false)}}
		m.failed(task, false)
	case "panic", "goexit":
		m.orders <- order{err: errors.New(word)}
		m.failed(task, false)
	case "outage":
		m.orders <- order{err: &Outage{PeerService: "n", Err: errors.New("away")}}
		task.status, task.version = Pending, task.version+1
		m.settled(task)
		task.attempt-- // it has not been
		m.exec("UPDATE river_job SET scheduled_at = now() WHERE id = $1", m.get(task.id).JobID)
		m.lane(task)
	case "await":
		m.orders <- order{result: Result{Await: &Await{InvocationID: "i"}}}
		m.untilAwaiting(db.Task{TaskID: task.id})
		waitFor(m.t, "the run to end", func() bool { return m.running(db.Task{TaskID: task.id}) == nil })
		task.inside, task.waiting = false, true
	}
}

// settled waits until the attempt is over, here as in the table.
func (m *machine) settled(task *believed) {
	m.until(task.id, fmt.Sprintf("at version %d", task.version), func(db db.Task) bool { return db.Version >= task.version })
	waitFor(m.t, "the run to end", func() bool {
		r := m.running(db.Task{TaskID: task.id})
		return r == nil || r.attempt() > task.attempt
	})
	task.inside, task.waiting = false, false
}

func (m *machine) failed(task *believed, retryable bool) {
	retry := retryable && int(task.failures) < task.retries
	task.failures++
	task.version++
	task.status = Failed
	if retry {
		task.status = Pending
	}
	m.settled(task)
	if retry && !task.later {
		m.lane(task)
	}
}

func (m *machine) expired(task *believed) {
	if task.status != Running || task.kind == "manual" || task.kind == "worker" || (m.busy() && !task.inside) || !m.ours(task) {
		return
	}
	if task.waiting {
		// The deadline of a response: a timeout, which is a failure.
		m.exec("UPDATE lease SET expires_at = now(), deadline_at = now() WHERE task_id = $1", task.id)
		retry := int(task.failures) < task.retries
		m.failed(task, true)
		if !retry {
			task.status = TimedOut
		}
		return
	}
	m.expire(task.id)
	task.crashes++
	task.version++
	task.status = Failed
	if task.crashes < poisonAfter {
		task.status = Pending
	}
	m.settled(task)
	if task.status == Pending {
		m.lane(task)
	}
}

// ours says whether an executor of ours has it, or had it: a person may have taken
// an automated task.
func (m *machine) ours(task *believed) bool { return task.waiting || task.inside }

func (m *machine) responded(r *rapid.T, task *believed) {
	in := outbox.IntegrationResponse{TaskID: task.id.String(), InvocationID: "i", Status: rapid.SampledFrom([]string{"SUCCESS", "FAILED"}).Draw(r, "status")}
	if in.Status == "FAILED" {
		in.Error = &outbox.Problem{Code: rapid.SampledFrom([]string{"SERVICE_UNAVAILABLE", "VALIDATION_ERROR"}).Draw(r, "code")}
	}
	if m.busy() && !task.inside {
		return // its retry would enter an executor, where another task is
	}
	// Not begun, or put back without a failure: the next attempt will ask.
	begins := task.status == Pending && m.get(task.id).NextRetryAt == nil
	said, err := m.Respond(m.ctx, in)
	switch {
	case task.inside, begins:
		require.ErrorIs(r, err, ErrNotYet)
	case !task.waiting || task.status != Running:
		require.NoError(r, err, "%+v", task)
		require.Equal(r, "late", said)
	case in.Status == "SUCCESS":
		require.Equal(r, "completed", said)
		task.status, task.version, task.waiting = Completed, task.version+1, false
	default:
		require.Equal(r, "failed", said)
		m.failed(task, in.Error.Code == "SERVICE_UNAVAILABLE")
	}
}

// byHand is an update by somebody outside.
func (m *machine) byHand(r *rapid.T, task *believed, to Status, err error) {
	from := task.status
	if from.Terminal() && from == to && (to == Cancelled || task.ended == to) {
		require.NoError(r, err, "the same end from the same mouth")
		return
	}
	if from.Terminal() || !slices.Contains(Legal(from), to) {
		var illegal *IllegalTransition
		require.ErrorAs(r, err, &illegal)
		return
	}
	if to == Assigned && task.kind != "manual" {
		var bad *Invalid
		require.ErrorAs(r, err, &bad, "nobody is named")
		return
	}
	require.NoError(r, err)
	task.version++
	begins := from != Running && (to == Running || to == Completed || to == Failed || to == TimedOut)
	if begins {
		task.attempt++
	}
	if to == Failed || to == TimedOut {
		task.failures++
	}
	task.status = to
	if to.Terminal() {
		task.ended = to
	}
	if to.Terminal() || to == Pending || to == Assigned {
		m.settled(task)
	}
	if to == Pending {
		m.lane(task)
	}
}

func (m *machine) reassigned(r *rapid.T, task *believed, err error) {
	switch {
	case task.kind != "manual":
		var conflict *Conflict
		require.ErrorAs(r, err, &conflict)
	case task.status.Terminal():
		var illegal *IllegalTransition
		require.ErrorAs(r, err, &illegal)
	default:
		require.NoError(r, err)
		task.status, task.version = Assigned, task.version+1
	}
}

func (m *machine) agree(r *rapid.T, want *believed) {
	task := m.get(want.id)
	require.Equal(r, want.status, Status(task.Status), "status of %s task %s", want.kind, want.id)
	require.Equal(r, []int32{want.version, want.attempt, want.failures, want.crashes}, []int32{task.Version, task.Attempt, task.Failures, task.Crashes},
		"version, attempts, failures, crashes of %s task %s: %s", want.kind, want.id, m.story(want.id))
	require.Equal(r, ask[string](m.testBundle, `
		SELECT coalesce(string_agg(type::text, ' ' ORDER BY seq) FILTER (WHERE type NOT IN ('created', 'released', 'redriven')), '')
		FROM task_event WHERE task_id = $1`, want.id), m.owed(want.id), "nobody has told the callback anything yet")
	require.Equal(r, task.Status == db.TaskStatusPENDING && want.later && want.failures > 0 && want.kind != "worker" && want.kind != "manual", task.NextRetryAt != nil)
}

// quiet ends what is open, so that the next sequence has the executors for itself.
func (m *machine) quiet() {
	for _, task := range m.tasks {
		_, err := m.Cancel(m.ctx, task.id, Actor{Name: "o"})
		require.NoError(m.t, lostRace(err))
		waitFor(m.t, "the run to end", func() bool { return m.running(db.Task{TaskID: task.id}) == nil })
	}
	for len(m.entered) > 0 {
		<-m.entered
	}
	for len(m.orders) > 0 {
		<-m.orders
	}
}
