package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// transition changes one task: row, event and job in one commit. Every operation of this package
// consists of transitions, except the success of an attempt in this process (see completion), the hot
// path.
type transition struct {
	task   uuid.UUID
	expect expectation // what must hold, or the transition is not applied

	// The changes.
	to           Status
	event        db.TaskEventType
	actor        string
	payload      any // of the event, beside what the columns say; nil for nothing
	output       json.RawMessage
	input        json.RawMessage // replaces the task's; empty leaves it
	problem      json.RawMessage
	begins       bool // an attempt begins
	notCounted   bool // the attempt that ends does not count: the next one has its number
	outcome      db.AttemptOutcome
	executor     string           // of the attempt that begins or ends
	failures     int32            // added to the task's
	crashes      int32            // added to the task's
	endJob       db.RiverJobState // the state of the task's present job; empty leaves the job
	next         *nextJob
	timeout      time.Duration // of the attempt that begins, or of the next one
	assignment   *assignment
	lease        db.LeaseKind  // of a lease that begins; empty ends the task's lease
	leaseRequest string        // id of the request that a worker's lease answers
	leaseTurn    *dequeueTurn  // must be the request's last, or the transition is not applied; nil: of no request
	visibility   time.Duration // of the lease
	toDeadline   bool          // the lease lasts until the timeout, without heartbeats
	failureCode  string        // of the failure, for the span
	span         *attemptSpan  // of the attempt that ends, if no executor of this process has its span
	call         *Call         // the call under an idempotency key whose effect this is; nil: of none

	// The wait for locks and for the database.
	callerWaits bool            // the caller is told at once that the database is away
	skipLocked  bool            // the caller will come again, and does not wait for a locked row
	callerGone  <-chan struct{} // closed when a caller that waits is gone; nil: none can go

	// Set by assignIDs and apply.
	at            time.Time // when it happened, by the process's clock; zero: when it is written
	eventID       int64
	nextID        int64
	deadlineID    int64 // of the chain of jobs that a new assignment begins (deadline.go)
	answer        chan transitionResult
	commitUnknown bool // an earlier flush may have committed
}

// nextJob is the job that a transition inserts for the next attempt.
type nextJob struct {
	lane  string
	kind  string
	delay time.Duration // after the transition
}

// assignment is the JSON from which TaskMove sets the assignment columns of table task.
type assignment struct {
	AssigneeID   string     `json:"assigneeId,omitempty"`
	AssigneeName string     `json:"assigneeName,omitempty"`
	GroupID      string     `json:"groupId,omitempty"`
	Candidates   any        `json:"candidates,omitempty"` // *candidates; nil leaves the task's; nobodyElse removes them
	DueAt        *time.Time `json:"dueAt,omitempty"`
}

// nobodyElse (JSON null) removes the candidates of a task. Nil candidates leave the column unchanged.
var nobodyElse = json.RawMessage("null")

type candidates struct {
	Users  []string `json:"users,omitempty"`
	Roles  []string `json:"roles,omitempty"`
	Groups []string `json:"groups,omitempty"`
}

// transitionResult reports whether a transition was applied, and the state of the task before.
type transitionResult struct {
	applied bool
	found   bool   // the task exists
	was     Status // before the transition; the present one if it was not applied
	job     int64
	attempt int32
	version int32
	at      time.Time // of the transition, by the database's clock; set if made
	err     error
}

// apply adds a transition to the next batch, and waits until the transition is written or rejected.
func (t *Tasks) apply(ctx context.Context, m *transition) transitionResult {
	m.answer = make(chan transitionResult, 1)
	if m.callerWaits {
		// The wait for a locked row ends with the caller.
		m.callerGone = ctx.Done()
	}

	t.transitions.Add(m)

	if !m.callerWaits {
		// The transitions of an attempt wait until Drain gives up: an outage of the database throws no
		// finished work away.
		return <-m.answer
	}

	select {
	case out := <-m.answer:
		return out
	// The transition stays in its batch and may still commit: the caller does not learn the outcome.
	case <-ctx.Done():
		return transitionResult{err: fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))}
	}
}

// applyAll adds transitions together, so that commits are shared, and waits for all results. The
// results have the order of the transitions.
func (t *Tasks) applyAll(all []*transition) []transitionResult {
	for _, m := range all {
		m.answer = make(chan transitionResult, 1)
	}

	if len(all) > 0 {
		t.transitions.Add(all...)
	}

	out := make([]transitionResult, len(all))
	for i, m := range all {
		// Each channel holds its answer, so no flusher waits for this loop.
		out[i] = <-m.answer
	}

	return out
}

// rejection returns the error of a rejected transition.
func (m *transition) rejection(out transitionResult) error {
	switch {
	case out.err != nil:
		return out.err
	case !out.found:
		return ErrNotFound
	// The version before the status: a caller with If-Match learns of the stale version.
	case m.expect.version != unspecified && out.version != m.expect.version:
		return fmt.Errorf("the task is at version %d: %w", out.version, ErrStale)
	case !m.expect.hasStatus(out.was):
		return illegal(out.was, m.to)
	}

	// Version and status match, so the job or the attempt does not: the attempt is superseded.
	return ErrLeaseLost
}

// bytes returns the size of a transition, for the byte limit of a batch.
func (m *transition) bytes() int { return len(m.output) + len(m.input) + len(m.problem) }

// flushTransitions writes a batch. Several transitions of one task are written in successive commits,
// because a statement updates a row only once.
func (t *Tasks) flushTransitions(batch []*transition) {
	for len(batch) > 0 {
		var now, later []*transition
		seen := make(map[uuid.UUID]bool, len(batch))
		for _, m := range batch {
			if seen[m.task] {
				// In the order in which the callers added the transitions.
				later = append(later, m)
				continue
			}
			seen[m.task] = true
			now = append(now, m)
		}

		(&batchWriter[*transition]{t, t.transitions, transitionItems{t}}).flush(now)
		batch = later
	}
}

// transitionItems writes transitions for a batchWriter. While the database is unavailable, transitions
// with a waiting caller fail. The others are kept, because their work is done.
type transitionItems struct{ *Tasks }

func (transitionItems) plural() string { return "transitions" }

func (transitionItems) row(m *transition) any { return m.task }

func (transitionItems) failWaiters(batch []*transition, err error) (patient []*transition) {
	for _, m := range batch {
		// The failed statement may have committed. The next flush finds the commit by the event id.
		m.commitUnknown = true
		if m.callerWaits {
			m.answer <- transitionResult{err: fmt.Errorf("%w: %w", ErrUnavailable, err)}
		} else {
			patient = append(patient, m)
		}
	}

	return patient
}

func (transitionItems) lockWait(m *transition) lockWait {
	return lockWait{callerGone: m.callerGone, hasCaller: m.callerWaits, skip: m.skipLocked}
}

func (transitionItems) reject(m *transition, err error) {
	m.answer <- transitionResult{err: fmt.Errorf("change task %s to %s: %w", m.task, m.to, err)}
}

// assignIDs gives each new transition its event id, and ids for its new jobs. A repeated flush keeps
// the ids: committedEarlier finds the first commit by the event id.
func (t transitionItems) assignIDs(ctx context.Context, batch []*transition) error {
	fresh, jobs := 0, 0
	for _, m := range batch {
		if m.eventID == 0 {
			fresh++
			if m.next != nil {
				jobs++
			}
			// An assignment begins a chain of notice jobs (deadline.go), and inserts the first job.
			if m.assignment != nil {
				jobs++
			}
		}
	}

	// Consecutive ids: a batch has a single range in the outbox.
	event, err := t.ids.events(ctx, fresh)
	if err != nil {
		return err
	}

	jobIDs, err := t.ids.job(ctx, jobs)
	if err != nil {
		return err
	}

	for _, m := range batch {
		if m.eventID != 0 {
			continue
		}
		// Default: the moment of the first flush.
		if m.at.IsZero() {
			m.at = t.cfg.Clock()
		}

		m.eventID = event
		event++
		if m.next != nil {
			m.nextID, jobIDs = jobIDs[0], jobIDs[1:]
		}
		if m.assignment != nil {
			m.deadlineID, jobIDs = jobIDs[0], jobIDs[1:]
		}
	}

	return nil
}

// write executes TaskMove for a batch with at most one transition for each task.
func (t transitionItems) write(ctx context.Context, on querier, batch []*transition) (answer func(context.Context), err error) {
	q := db.New(on)
	before, err := committedEarlier(ctx, q, batch)
	if err != nil {
		return nil, err
	}

	p, err := t.params(batch)
	if err != nil {
		return nil, err
	}

	rows, err := execTransitions(ctx, on, batch, p)
	if err != nil {
		return nil, fmt.Errorf("write transitions: %w", err)
	}

	// The flush whose answer was lost may have committed while this one waited for its locks.
	if len(before) > 0 {
		if before, err = committedEarlier(ctx, q, batch); err != nil {
			return nil, err
		}
	}

	return func(ctx context.Context) { t.answer(ctx, batch, rows, before) }, nil
}

// committedEarlier looks for the commits of earlier flushes without an answer. The result says for each
// such event id whether the event was committed; nil if the batch has no such event.
func committedEarlier(ctx context.Context, q *db.Queries, batch []*transition) (map[int64]bool, error) {
	var events []int64
	for _, m := range batch {
		if m.commitUnknown {
			events = append(events, m.eventID)
		}
	}

	if events == nil {
		return nil, nil
	}

	committed, err := eventsCommitted(ctx, q, events)
	if err != nil {
		return nil, err
	}

	for _, id := range events {
		committed[id] = committed[id] || false // an entry for each: not empty
	}

	return committed, nil
}

// execTransitions executes TaskMove. The turns of dequeues, and calls under an idempotency key, need a
// transaction: holdCalls and endTurns before TaskMove, storeAnswers after.
//
// The rows of unfenced transitions are locked first, by TaskLock. After a wait for a row lock, a
// statement sees the new version of the row, but every other table as of its own begin: TaskMove would
// miss the job or the lease of the task's last transition, and leave an orphan.
func execTransitions(ctx context.Context, on querier, batch []*transition, p db.TaskMoveParams) (rows []db.TaskMoveRow, err error) {
	unfenced := slices.ContainsFunc(batch, func(m *transition) bool { return m.expect.unfenced() })
	turns, calls := turnsEndParams(batch), callsOf(batch)
	// The usual batch: one statement, without the round trips of BEGIN and COMMIT.
	if !unfenced && len(turns.Turns) == 0 && len(calls) == 0 {
		return db.New(on).TaskMove(ctx, p)
	}

	err = pgx.BeginFunc(ctx, on, func(tx pgx.Tx) error {
		q := db.New(tx)
		// Lock order: calls, turns, then tasks by id. A lost call or turn gets the expected job noJob,
		// so that TaskMove rejects its transition.
		if err := holdCalls(ctx, q, batch, calls, p.WantJobs); err != nil {
			return err
		}

		if err := endTurns(ctx, q, batch, turns, p.WantJobs); err != nil {
			return err
		}

		if unfenced {
			if err := q.TaskLock(ctx, p.TaskIds); err != nil {
				return err
			}
		}

		if rows, err = q.TaskMove(ctx, p); err != nil {
			return err
		}

		// Effect and answer are one commit.
		return storeAnswers(ctx, q, batch, calls, rows)
	})

	return rows, err
}

// answer answers a committed batch, and wakes claimers, dequeues and executors for the changes.
func (t transitionItems) answer(ctx context.Context, batch []*transition, rows []db.TaskMoveRow, before map[int64]bool) {
	written := make(map[uuid.UUID]db.TaskMoveRow, len(rows))
	callsBack := false
	for _, row := range rows {
		callsBack = callsBack || row.CallsBack && row.Ok
		written[row.TaskID] = row
	}

	var ready wakeSet
	var ended []attemptID
	for _, m := range batch {
		var out transitionResult
		row, found := written[m.task]
		if found {
			out = transitionResult{
				applied: row.Ok, found: true, was: Status(row.Was), job: row.OldJob, attempt: row.OldAttempt, version: row.OldVersion, at: row.At.UTC(),
			}
		}

		// TaskMove has rejected the repetition; the earlier flush counts.
		if before[m.eventID] {
			out.applied = true
		}
		if m.call != nil && m.call.lost {
			out.err = &CallUnderWay{time.Second}
		}
		// A delayed job is found by a poll when due.
		if out.applied && m.next != nil && m.next.delay <= soonest {
			ready.add(m.next.lane, m.next.kind, Type(row.TaskType), row.TenantID, row.DefinitionID)
		}
		// The executor of a cancelled attempt may still run, in any process.
		if out.applied && m.endJob == db.RiverJobStateCancelled && out.was == Running {
			ended = append(ended, attemptID{m.task, out.job})
		}

		t.endAttemptSpan(m, out)
		m.answer <- out
	}

	// Also for rejected transitions: a needless wake costs one look.
	t.cfg.OnEventsCommitted()
	if callsBack {
		t.cfg.OnCallbacksCommitted()
	}

	t.notifier.wakeFor(ctx, ready)
	if len(ended) > 0 {
		t.notifier.cancelEverywhere(ctx, ended)
	}
}

// soonest is the longest delay of a job that wakes its queue at the commit.
const soonest = 10 * time.Millisecond

func (t transitionItems) params(batch []*transition) (p db.TaskMoveParams, err error) {
	for _, m := range batch {
		var next nextJob
		if m.next != nil {
			next = *m.next
		}

		note, err := encode(m.payload)
		if err != nil {
			return p, fmt.Errorf("write the event of task %s: %w", m.task, err)
		}

		var assigned string
		if m.assignment != nil {
			if assigned, err = encode(m.assignment); err != nil {
				return p, fmt.Errorf("write the assignment of task %s: %w", m.task, err)
			}
		}

		p.TaskIds = append(p.TaskIds, m.task)
		p.WantJobs = append(p.WantJobs, m.expect.job)
		p.WantAttempts = append(p.WantAttempts, m.expect.attempt)
		p.WantVersions = append(p.WantVersions, m.expect.version)
		p.WantStatuses = append(p.WantStatuses, m.expect.statusList())
		p.WantExpired = append(p.WantExpired, m.expect.expired)
		p.Statuses = append(p.Statuses, string(m.to))
		p.Events = append(p.Events, string(m.event))
		p.EventIds = append(p.EventIds, m.eventID)
		// An age, not a time: the clocks of processes differ (clock.go).
		p.Agos = append(p.Agos, t.clock.since(m.at).Microseconds())
		p.Actors = append(p.Actors, m.actor)
		p.Payloads = append(p.Payloads, note)
		p.Outputs = append(p.Outputs, string(m.output))
		p.Errors = append(p.Errors, string(m.problem))
		p.Begins = append(p.Begins, m.begins)
		p.NotCounted = append(p.NotCounted, m.notCounted)
		p.Outcomes = append(p.Outcomes, string(m.outcome))
		p.ExecutorIds = append(p.ExecutorIds, m.executor)
		p.Failures = append(p.Failures, m.failures)
		p.Crashes = append(p.Crashes, m.crashes)
		p.JobEnds = append(p.JobEnds, string(m.endJob))
		p.NextJobs = append(p.NextJobs, m.nextID)
		p.NextLanes = append(p.NextLanes, next.lane)
		p.NextKinds = append(p.NextKinds, next.kind)
		p.NextDelays = append(p.NextDelays, next.delay.Microseconds())
		p.Timeouts = append(p.Timeouts, m.timeout.Milliseconds())
		p.Assignments = append(p.Assignments, assigned)
		p.LeaseKinds = append(p.LeaseKinds, string(m.lease))
		p.LeaseRequests = append(p.LeaseRequests, m.leaseRequest)
		p.Visibilities = append(p.Visibilities, m.visibility.Milliseconds())
		p.ToDeadlines = append(p.ToDeadlines, m.toDeadline)
		p.Inputs = append(p.Inputs, string(m.input))
		p.Deadlines = append(p.Deadlines, m.deadlineID)
	}

	return p, nil
}

func encode(v any) (string, error) {
	if v == nil {
		return "", nil
	}
	text, err := json.Marshal(v)
	return string(text), err
}
