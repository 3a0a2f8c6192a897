package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

// Causes with which an executor's context ends.
var (
	// ErrStopping: the process stops, and the grace for running attempts is over.
	ErrStopping = errors.New("the process is stopping")
	errTimeout  = fmt.Errorf("the attempt's timeout: %w", context.DeadlineExceeded)
)

// startGrace is the time for a pure executor before the start of its attempt is written. The start and
// the end of a quicker attempt are combined in one commit.
const startGrace = 3 * time.Millisecond

// outageLead is the time before the deadline at which an outage releases an attempt, at most a tenth of
// the timeout. At the deadline itself the reaper of any process could write first, and would write a
// timeout.
const outageLead = time.Second

// run is one attempt, from the claim until the end is written.
type run struct {
	r        *Runner
	claim    db.LaneClaimRow
	settings *settings
	exec     Registration
	claimer  *claimer
	cancel   context.CancelCauseFunc
	span     trace.Span // nil without tracing; never ended where another tells of the attempt

	// ended is set by the first end of the attempt: the return of the executor, the timeout, or an
	// outage.
	ended        atomic.Bool
	slotReleased atomic.Bool // release was called

	unanswered unanswered // the request that has no answer yet; see ReportRequest

	mu         sync.Mutex
	phase      phase     // guarded by mu
	startedAt  time.Time // guarded by mu
	endedAt    time.Time // of a success; written before it is handed in
	extendedAt time.Time // when the lease was last extended; guarded by mu
	grace      *time.Timer
}

// phase is the written part of an attempt.
type phase int

const (
	unwritten phase = iota // the task is PENDING, its job claimed
	leased                 // the start is written, the lease is ours
	combining              // start and end are handed in as one: no start may follow
	lost                   // a write was rejected: the lease is another's
)

func (r *run) id() uuid.UUID  { return r.claim.TaskID }
func (r *run) attempt() int32 { return *r.claim.Attempt + 1 }
func (r *run) pure() bool {
	return r.exec.Pure && r.settings.config.Executor != "" && !r.allocates()
}

// callsPeerService reports whether the executor may call a peer service within the timeout of the
// attempt.
func (r *run) callsPeerService() bool { return !r.exec.Assigns && !r.exec.Pure }

func (r *run) ref() attemptRef {
	return attemptRef{
		task: r.claim.TaskID, job: r.claim.JobID, attempt: r.attempt(), kind: Type(*r.claim.Type), executor: *r.claim.Executor,
		failures: *r.claim.Failures, crashes: *r.claim.Crashes, settings: r.settings, actor: r.r.tasks.cfg.ProcessID,
	}
}

// do runs the attempt: allocates resources, writes the start, calls the executor, and writes the end.
// do returns after the executor.
func (r *run) do() {
	ctx, cancel := context.WithCancelCause(r.r.ctx)
	r.cancel = cancel
	defer cancel(nil)
	// Before the start is written, so that a cancellation reaches the executor.
	r.r.tasks.running.enter(r)
	allocation, err := r.allocate(ctx)
	// After the allocation: the wait for resources is not part of the timeout.
	r.startedAt = r.r.tasks.cfg.Clock()
	if ctx = r.withSpan(ctx); err != nil {
		r.end(ctx, Result{}, err)
		return
	}

	// An assignment is no attempt, and has no timeout: its executor bounds itself.
	if !r.exec.Assigns {
		defer time.AfterFunc(r.settings.timeout, r.onTimeout).Stop()
	}

	// An outage until shortly before the deadline releases the attempt; a timeout would count.
	if r.callsPeerService() {
		ctx = context.WithValue(ctx, unansweredKey{}, &r.unanswered)
		defer time.AfterFunc(r.settings.timeout-min(r.settings.timeout/10, outageLead), r.onOutageDeadline).Stop()
	}

	switch {
	case r.exec.Assigns:
	case r.pure():
		// An attempt that ends within startGrace needs one commit instead of two.
		r.grace = time.AfterFunc(startGrace, func() { r.start() })
	default:
		// An executor with effects begins only with the lease.
		if !r.start() {
			r.release()
			return
		}
	}

	result, err := r.execute(ctx, allocation)
	if r.grace != nil {
		r.grace.Stop()
	}

	r.end(ctx, result, err)
}

// end hands in the executor's result, unless the timeout or an outage has ended the attempt.
func (r *run) end(ctx context.Context, result Result, err error) {
	if !r.ended.CompareAndSwap(false, true) {
		return // another end is written already; the fence would reject this one
	}
	// The error of an interrupted executor is no failure of the task. A result without an error still
	// counts.
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, errTimeout) {
		r.onInterrupt(cause)
		return
	}
	r.finish(result, err)
}

// execute calls the executor.
func (r *run) execute(ctx context.Context, allocation *Allocation) (result Result, err error) {
	job := r.job()
	job.Allocation = allocation
	if !r.exec.Assigns {
		job.Deadline = r.startedAt.Add(r.settings.timeout)
	}

	err = r.foreign(ctx, func() error {
		var err error
		result, err = r.exec.Executor.Execute(ctx, job)
		return err
	})

	return result, err
}

// foreign calls the code of an executor, and returns a panic as a *Failure. After runtime.Goexit this
// goroutine runs only deferred functions, so a deferred function writes the end of the attempt and
// frees the slot.
func (r *run) foreign(ctx context.Context, call func() error) (err error) {
	returned := false
	defer func() {
		if returned || err != nil {
			return
		}
		if r.startedAt.IsZero() { // the call was for resources, before the start
			r.startedAt = r.r.tasks.cfg.Clock()
		}
		r.end(ctx, Result{}, goexit())
	}()

	defer recovered(&err)
	err = call()
	returned = true
	return err
}

func (r *run) job() Job {
	c := r.claim
	job := Job{
		TaskID: c.TaskID, Attempt: int(r.attempt()), WorkflowID: *c.WorkflowID, DefinitionID: *c.DefinitionID,
		Name: *c.DefinitionID, Type: Type(*c.Type), Priority: priorityOf(*c.Priority), CorrelationID: *c.CorrelationID,
		Input: c.Input, Context: c.Context, Config: r.settings.config, CreatedAt: timeOf(c.CreatedAt), DueDate: c.DueAt,
	}
	if c.StepID != nil {
		job.StepID = *c.StepID
	}

	if r.settings.def != nil {
		def := r.settings.def
		job.Name, job.Description, job.Owner = def.Name, def.Description, &def.TenantID
	}

	job.Config.SecurityContext = job.Config.SecurityContext.of(*c.TenantID)
	return job
}

// start writes the start of the attempt and takes the lease. The result is true if this process has the
// attempt; a second call waits for the first, and returns the same.
func (r *run) start() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.phase != unwritten {
		return r.phase == leased
	}

	// mu is held meanwhile: heartbeats pass over a run whose mu is taken.
	out := r.r.tasks.apply(r.r.ctx, &transition{
		task: r.id(), expect: atAttempt(r.claim.JobID, r.attempt()-1, Pending),
		to: Running, event: db.TaskEventTypeStarted, actor: r.r.tasks.cfg.ProcessID, executor: r.r.tasks.cfg.ProcessID,
		at: r.startedAt, begins: true, timeout: r.settings.timeout, lease: db.LeaseKindProcess, visibility: r.settings.visibility,
	})
	if !out.applied {
		r.phase = lost
		r.cancel(ErrLeaseLost)
		r.endOrphan(out)
		return false
	}

	r.phase, r.extendedAt = leased, time.Now()
	return true
}

// finish writes the result of the executor: an assignment, a wait for the response of another system,
// an output, or a failure.
func (r *run) finish(result Result, err error) {
	if err == nil && result.Assign != nil {
		var to Assignment
		// An invalid assignment is a failure, below.
		if to, err = result.Assign.checked(); err == nil {
			r.assign(to)
			return
		}
	}

	if err == nil && result.Await != nil {
		r.await(*result.Await)
		return
	}

	if err == nil {
		err = r.checkOutput(result.Output)
	}

	if err != nil {
		r.fail(err)
		return
	}

	r.complete(result.Output)
}

func (r *run) checkOutput(output json.RawMessage) error {
	no := false
	if output != nil {
		// PostgreSQL would refuse the document, and with it the whole batch.
		if err := jsonguard.Check(output); err != nil {
			return &Failure{Code: CodeOutput, Message: err.Error(), Retryable: &no}
		}
	}

	if r.settings.def == nil {
		return nil
	}

	// A stop of the process must not lose finished work. The check takes a bounded time.
	return badOutput(context.WithoutCancel(r.r.ctx), r.settings.def.output, "output", output)
}

// fail hands in a failure, or releases the attempt if a peer service was unreachable.
func (r *run) fail(err error) {
	defer r.release()
	var away *Outage
	// An outage is no failure: the attempt does not count, and the task waits for outageDelay.
	if errors.As(err, &away) {
		r.returnToQueue(err, outageDelay)
		return
	}

	f := failureOf(err)
	if r.exec.Assigns {
		r.failUnassigned(f)
		return
	}

	if !r.start() {
		return
	}

	r.apply(failTransition(r.ref(), f, r.r.tasks.cfg.Clock()))
}

// apply writes the last transition of the attempt.
func (r *run) apply(m *transition) {
	out := r.r.tasks.apply(r.r.ctx, m)
	switch {
	case !out.applied:
		r.r.tasks.cfg.Logger.InfoContext(r.logged(), "result rejected: the lease was lost", "task", r.id(), "attempt", r.attempt(), "error", m.rejection(out))
		r.endOrphan(out)
	case !m.notCounted: // a released attempt has no span: the next one reuses its number
		r.endSpan(cmp.Or(string(m.outcome), string(m.to)), m.failureCode, m.at)
	}
}

// endOrphan ends the job of a superseded attempt. After an error the outcome is unknown, and the sweep
// decides.
func (r *run) endOrphan(out transitionResult) {
	if out.err == nil {
		r.r.endOrphanedJob(r.claim.JobID)
	}
}

// returnToQueue releases the attempt: the task waits in its queue again, and the attempt does
// not count.
func (r *run) returnToQueue(why error, delay time.Duration) {
	r.r.tasks.cfg.Logger.WarnContext(r.logged(), "task released to its queue", "task", r.id(), "why", why, "again_in", delay)
	// A release is fenced by the running attempt, so the start is written first.
	if !r.start() {
		return
	}
	r.apply(releaseTransition(r.ref(), r.r.tasks.cfg.Clock(), delay))
}

// onInterrupt ends an attempt whose context ended first. A cancelled task and a lost lease
// need no write; a stopping process releases the attempt.
func (r *run) onInterrupt(cause error) {
	defer r.release()
	switch {
	case errors.Is(cause, ErrLeaseLost):
		r.r.tasks.cfg.Logger.InfoContext(r.logged(), "attempt abandoned: its lease was lost", "task", r.id(), "attempt", r.attempt())
	// An interrupted assignment has no attempt to release: the sweep gives its task a new job.
	case errors.Is(cause, ErrStopping) && !r.exec.Assigns:
		r.returnToQueue(cause, 0)
	}
}

// onOutageDeadline releases the attempt shortly before its deadline where a request to a peer
// service has had no answer: the outage has used up the attempt's time, not the task.
func (r *run) onOutageDeadline() {
	why := r.unanswered.Load()
	if why == nil {
		return
	}

	// Nil: the missing answer is no outage, and the attempt is left to its timeout.
	away := (*why)()
	if away == nil || !r.ended.CompareAndSwap(false, true) {
		return
	}

	r.cancel(errTimeout)
	r.fail(away)
}

// onTimeout writes the timeout without waiting for the return of the executor.
func (r *run) onTimeout() {
	if !r.ended.CompareAndSwap(false, true) {
		return
	}
	r.cancel(errTimeout)
	r.fail(&Failure{Code: CodeTimeout, Message: fmt.Sprintf("the attempt took longer than its timeout of %v", r.settings.timeout)})
}

// await leaves the task RUNNING until the other system answers, or until the deadline. The
// other system has accepted the work, so await retries while the database is away.
func (r *run) await(a Await) {
	defer r.release()
	t := r.r.tasks
	log := func(level slog.Level, err error, pause time.Duration) {
		t.cfg.Logger.Log(r.logged(), level, "the wait for a response waits for the database", "task", r.id(), "error", err, "again_in", pause)
	}
	err := t.retryWhileUnavailable(r.r.ctx, log, func(context.Context) error {
		// The other system has accepted the work: a stop of the process must not cut the statement.
		return uncancelled(func(ctx context.Context) error {
			_, err := t.q.LeaseAwait(ctx, db.LeaseAwaitParams{
				TaskID: r.id(), JobID: r.claim.JobID, Attempt: r.attempt(), InvocationID: &a.InvocationID,
			})
			return err
		})
	})
	if err != nil {
		// The lease runs out, and the next attempt asks under its own idempotency key.
		t.cfg.Logger.ErrorContext(r.logged(), "the wait for a response was not written", "task", r.id(), "error", err)
	}
}

// assign gives the task to a person, a group or candidates.
func (r *run) assign(a Assignment) {
	defer r.release()
	task := db.Task{TaskID: r.id(), DefinitionID: *r.claim.DefinitionID, DueAt: r.claim.DueAt}
	m := r.r.tasks.assignTransition(r.r.ctx, task, r.settings, r.r.tasks.cfg.ProcessID, a, "")
	m.expect = atAttempt(r.claim.JobID, r.attempt()-1, Pending)
	r.apply(m)
}

// failUnassigned fails a manual task without an assignee.
func (r *run) failUnassigned(f *Failure) {
	m := failTransition(r.ref(), f, r.r.tasks.cfg.Clock())
	m.expect, m.begins = atAttempt(r.claim.JobID, r.attempt()-1, Pending), true
	// The task is PENDING, and a transition from PENDING to PENDING is not legal: no retry.
	if m.to == Pending {
		m.to, m.event, m.payload = Failed, db.TaskEventTypeFailed, nil
		m.next = &nextJob{lane: LaneDeadLetter, kind: KindDeadLetter}
	}
	r.apply(m)
}

func priorityOf(rank int16) Priority {
	return [...]Priority{1: Critical, 2: High, 3: Medium, 4: Low}[rank]
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// release frees the slot of the attempt, once. Call release when the end is written, or when another
// process has the attempt.
func (r *run) release() {
	if !r.slotReleased.CompareAndSwap(false, true) {
		return // both the timeout and the executor's return come here
	}
	r.r.tasks.running.leave(r)
	r.claimer.release(1)
}
