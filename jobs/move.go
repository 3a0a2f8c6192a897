package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// move is one step of one task, with its event and what becomes of its job: what
// every verb of this package is made of, success on the hot path apart (see
// completion).
type move struct {
	// What must hold, or the move is not made. Zero values mean "whatever".
	task        uuid.UUID
	wantJob     int64
	wantAttempt int32 // -1: whatever
	wantVersion int32
	want        []Status // at least one
	wantExpired bool     // its lease has run out

	// What it brings.
	to          Status
	event       db.TaskEventType
	actor       string
	payload     any // of the event, beside what the columns say; nil for nothing
	output      json.RawMessage
	input       json.RawMessage // instead of the task's; empty: leave it
	problem     json.RawMessage
	begins      bool // an attempt
	unspent     bool // the attempt that ends has not been: its number is free again
	outcome     db.AttemptOutcome
	executor    string // of the attempt that begins or ends
	failures    int32
	crashes     int32
	endJob      db.RiverJobState // what becomes of the task's present job; empty: leave it
	next        *nextJob
	timeout     time.Duration // of the attempt that begins, or of the next one
	assignment  *assignment
	lease       db.LeaseKind  // a lease that begins; empty ends the one there is
	leaseAsk    string        // the request that a worker's lease answers
	leaseTurn   *turn         // must be the request's last, or the move is not made; nil: no matter
	visibility  time.Duration // of the lease
	toDeadline  bool          // the lease lasts until the timeout, without heartbeats
	callerWaits bool          // an outage is told to the caller instead of being sat out
	passing     bool          // its caller comes by again, and waits for no locked row
	code        string        // of the failure that it tells of
	ends        *traced       // the attempt that it ends, if it is to tell of it; see tellAttempt
	call        *Call         // whose effect it is, with the answer to it; nil: of none that has a key

	at      time.Time // when it happened, by the process's clock; zero: as it is written
	eventID int64
	nextID  int64
	// deadline names the chain of jobs that a new assignment begins (deadline.go).
	deadline int64
	answer   chan moved
	left     <-chan struct{} // closed when a caller that waits is gone; nil: none can go
	tried    bool            // a flush of it ended in the unknown
}

// nextJob is the token of the attempt to come.
type nextJob struct {
	lane  string
	kind  string
	delay time.Duration // after the move
}

// assignment is what task keeps of an Assignment.
type assignment struct {
	AssigneeID   string     `json:"assigneeId,omitempty"`
	AssigneeName string     `json:"assigneeName,omitempty"`
	GroupID      string     `json:"groupId,omitempty"`
	Candidates   any        `json:"candidates,omitempty"` // *candidates; nil: as they were; see nobodyElse
	DueAt        *time.Time `json:"dueAt,omitempty"`
}

// nobodyElse are the candidates of a task that has one owner.
var nobodyElse = json.RawMessage("null")

type candidates struct {
	Users  []string `json:"users,omitempty"`
	Roles  []string `json:"roles,omitempty"`
	Groups []string `json:"groups,omitempty"`
}

// moved is what came of a move.
type moved struct {
	made    bool
	found   bool   // the task exists
	was     Status // before the move; where it stands if the move was not made
	job     int64
	attempt int32
	version int32
	at      time.Time // of the move, by the database's clock; see made
	err     error
}

// make hands a move in and waits until it is settled.
func (t *Tasks) make(ctx context.Context, m *move) moved {
	m.answer = make(chan moved, 1)
	if m.callerWaits {
		m.left = ctx.Done()
	}
	t.moves.add(m)
	if !m.callerWaits {
		return <-m.answer
	}
	select {
	case out := <-m.answer:
		return out
	case <-ctx.Done():
		return moved{err: fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))}
	}
}

// makeAll hands moves in at once, so that they share commits, and waits until all
// are settled.
func (t *Tasks) makeAll(all []*move) []moved {
	for _, m := range all {
		m.answer = make(chan moved, 1)
	}
	if len(all) > 0 {
		t.moves.add(all...)
	}
	out := make([]moved, len(all))
	for i, m := range all {
		out[i] = <-m.answer
	}
	return out
}

// refused says why a move that somebody asked for was not made.
func (m *move) refused(out moved) error {
	switch {
	case out.err != nil:
		return out.err
	case !out.found:
		return ErrNotFound
	case m.wantVersion != 0 && out.version != m.wantVersion:
		return fmt.Errorf("the task is at version %d: %w", out.version, ErrStale)
	case !slices.Contains(m.want, out.was):
		return illegal(out.was, m.to)
	}
	return ErrLeaseLost
}

// flushMoves writes a batch, at most one move of a task at a time, and answers
// each.
func (t *Tasks) flushMoves(batch []*move) {
	for len(batch) > 0 {
		var round, rest []*move
		seen := make(map[uuid.UUID]bool, len(batch))
		for _, m := range batch {
			if seen[m.task] {
				rest = append(rest, m)
				continue
			}
			seen[m.task] = true
			round = append(round, m)
		}
		t.steps().flush(round)
		batch = rest
	}
}

// steps is how moves are written. While the database is away, a move that nobody waits
// for is sat out: the work behind it is done, and must be written.
func (t *Tasks) steps() *group[*move] {
	return &group[*move]{
		t: t, b: t.moves, what: "moves",
		row:    func(m *move) any { return m.task },
		number: t.number,
		write:  t.writeMoves,
		excuse: excused,
		waits:  func(m *move) waiting { return waiting{left: m.left, caller: m.callerWaits, passing: m.passing} },
		refuse: func(m *move, err error) {
			m.answer <- moved{err: fmt.Errorf("move task %s to %s: %w", m.task, m.to, err)}
		},
	}
}

// bytes is what a flush counts of a move.
func (m *move) bytes() int { return len(m.output) + len(m.input) + len(m.problem) }

// excused tells those whose callers wait that the database is away, and returns the
// others.
func excused(round []*move, err error) (patient []*move) {
	for _, m := range round {
		m.tried = true
		if m.callerWaits {
			m.answer <- moved{err: fmt.Errorf("%w: %w", ErrUnavailable, err)}
		} else {
			patient = append(patient, m)
		}
	}
	return patient
}

// wherever says that the move is made of whatever job and attempt the task has by then.
func (m *move) wherever() bool {
	return m.wantVersion == 0 && (m.wantJob == 0 || m.wantAttempt < 0)
}

// moveAll is TaskMove, with what belongs into the same transaction: before it the ends of
// dequeues' turns, the turns of calls, and some locks; behind it the answers to these calls.
//
// A statement that waited for a lock sees the task as it is by then, and everything else as
// it was: the job or the lease that was committed together with the task's last move is not
// there for it, and would outlive this one. So what is made wherever the task stands has
// its locks before its snapshot.
func moveAll(ctx context.Context, on writer, round []*move, p db.TaskMoveParams) (rows []db.TaskMoveRow, err error) {
	anywhere, turns, calls := slices.ContainsFunc(round, (*move).wherever), turnsOf(round), callsOf(round)
	if !anywhere && len(turns.Turns) == 0 && len(calls) == 0 {
		return db.New(on).TaskMove(ctx, p)
	}
	err = pgx.BeginFunc(ctx, on, func(tx pgx.Tx) error {
		q := db.New(tx)
		if err := holdCalls(ctx, q, round, calls, p.WantJobs); err != nil {
			return err
		}
		if err := endTurns(ctx, q, round, turns, p.WantJobs); err != nil {
			return err
		}
		if anywhere {
			if err := q.TaskLock(ctx, p.TaskIds); err != nil {
				return err
			}
		}
		if rows, err = q.TaskMove(ctx, p); err != nil {
			return err
		}
		return settleCalls(ctx, q, round, calls, rows)
	})
	return rows, err
}

// writeMoves writes a round in one commit.
func (t *Tasks) writeMoves(ctx context.Context, on writer, round []*move) (answer func(context.Context), err error) {
	q := db.New(on)
	before, err := writtenBefore(ctx, q, round)
	if err != nil {
		return nil, err
	}
	p, err := t.moveParams(round)
	if err != nil {
		return nil, err
	}
	rows, err := moveAll(ctx, on, round, p)
	if err != nil {
		return nil, fmt.Errorf("write moves: %w", err)
	}
	if len(before) > 0 {
		// Another look: the lost flush may have committed only while we waited for
		// its locks.
		if before, err = writtenBefore(ctx, q, round); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context) { t.answerMoves(ctx, round, rows, before) }, nil
}

// answerMoves answers a round that was written, and tells who has to do with it.
func (t *Tasks) answerMoves(ctx context.Context, round []*move, rows []db.TaskMoveRow, before map[int64]bool) {
	out := make(map[uuid.UUID]moved, len(rows))
	callsBack := false
	for _, row := range rows {
		callsBack = callsBack || row.CallsBack && row.Ok
		out[row.TaskID] = moved{
			made: row.Ok, found: true, was: Status(row.Was), job: row.OldJob, attempt: row.OldAttempt, version: row.OldVersion, at: row.At.UTC(),
		}
	}
	var kinds [len(wakeKinds)]bool
	var ended []cancelled
	for _, m := range round {
		o := out[m.task]
		if !o.made && before[m.eventID] {
			o.made = true
		}
		if m.call != nil && m.call.lost {
			o.err = &CallUnderWay{time.Second}
		}
		if o.made && m.next != nil && m.next.delay <= soonest {
			kinds[wakeIndex(m.next.lane, m.next.kind)] = true
		}
		if o.made && m.endJob == db.RiverJobStateCancelled && o.was == Running {
			ended = append(ended, cancelled{m.task, o.job})
		}
		t.tellAttempt(m, o)
		m.answer <- o
	}
	t.cfg.Told()
	if callsBack {
		t.cfg.CalledBack()
	}
	t.wakeAll(ctx, kinds)
	if len(ended) > 0 {
		t.tellCancelled(ctx, ended)
	}
}

// writtenBefore says which moves of a round were committed by an earlier flush
// whose answer was lost; nil when there was none.
func writtenBefore(ctx context.Context, q *db.Queries, round []*move) (map[int64]bool, error) {
	var events []int64
	for _, m := range round {
		if m.tried {
			events = append(events, m.eventID)
		}
	}
	if events == nil {
		return nil, nil
	}
	found, err := found(ctx, q, events)
	if err != nil {
		return nil, err
	}
	for _, id := range events {
		found[id] = found[id] || false
	}
	return found, nil
}

func (t *Tasks) moveParams(round []*move) (p db.TaskMoveParams, err error) {
	for _, m := range round {
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
		p.WantJobs = append(p.WantJobs, m.wantJob)
		p.WantAttempts = append(p.WantAttempts, m.wantAttempt)
		p.WantVersions = append(p.WantVersions, m.wantVersion)
		p.WantStatuses = append(p.WantStatuses, statusList(m.want))
		p.WantExpired = append(p.WantExpired, m.wantExpired)
		p.Statuses = append(p.Statuses, string(m.to))
		p.Events = append(p.Events, string(m.event))
		p.EventIds = append(p.EventIds, m.eventID)
		p.Agos = append(p.Agos, t.clock.since(m.at).Microseconds())
		p.Actors = append(p.Actors, m.actor)
		p.Payloads = append(p.Payloads, note)
		p.Outputs = append(p.Outputs, string(m.output))
		p.Errors = append(p.Errors, string(m.problem))
		p.Begins = append(p.Begins, m.begins)
		p.Unspents = append(p.Unspents, m.unspent)
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
		p.LeaseRequests = append(p.LeaseRequests, m.leaseAsk)
		p.Visibilities = append(p.Visibilities, m.visibility.Milliseconds())
		p.ToDeadlines = append(p.ToDeadlines, m.toDeadline)
		p.Inputs = append(p.Inputs, string(m.input))
		p.Deadlines = append(p.Deadlines, m.deadline)
	}
	return p, nil
}

// number gives each move its event id and, where it leaves jobs, theirs. A
// move keeps its numbers when it is tried again: they are how its trace is known.
func (t *Tasks) number(ctx context.Context, round []*move) error {
	fresh, jobs := 0, 0
	for _, m := range round {
		if m.eventID == 0 {
			fresh++
			if m.next != nil {
				jobs++
			}
			if m.assignment != nil {
				jobs++
			}
		}
	}
	event, err := t.ids.events(ctx, fresh)
	if err != nil {
		return err
	}
	jobIDs, err := t.ids.job(ctx, jobs)
	if err != nil {
		return err
	}
	for _, m := range round {
		if m.eventID != 0 {
			continue
		}
		if m.at.IsZero() {
			m.at = t.cfg.Clock()
		}
		m.eventID = event
		event++
		if m.next != nil {
			m.nextID, jobIDs = jobIDs[0], jobIDs[1:]
		}
		if m.assignment != nil {
			m.deadline, jobIDs = jobIDs[0], jobIDs[1:]
		}
	}
	return nil
}

// soonest is the delay of a job for which a lane is woken at once.
const soonest = 10 * time.Millisecond

func statusList(want []Status) string {
	if len(want) == 1 {
		return string(want[0])
	}
	var b strings.Builder
	for i, s := range want {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(string(s))
	}
	return b.String()
}

func encode(v any) (string, error) {
	if v == nil {
		return "", nil
	}
	text, err := json.Marshal(v)
	return string(text), err
}
