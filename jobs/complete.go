package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
)

// The way of an attempt that has succeeded, from top to bottom in this file:
//
//	run.complete                 checks nothing any more, hands a completion to the batcher
//	completionItems.assignIDs    gives it the ids of its events
//	completionItems.write        executes TaskComplete (sql/queries/move.sql) for the batch
//	run.completionWritten        frees the slot; or fails the attempt where the database
//	                             refused the output

// completion is the successful end of an attempt, on its way through a batchWriter. combined
// says that it carries the attempt's start as well: nothing was written of the attempt before,
// and its start and its end are one step of one statement.
type completion struct {
	task     uuid.UUID
	job      int64
	attempt  int32
	combined bool
	started  time.Time // by the process's clock, as ended
	ended    time.Time
	output   json.RawMessage
	// onWritten is called once, by the flusher, and must not block. ok is false where the
	// lease was lost; err is set where the database refused the output or went away.
	onWritten func(ok bool, err error)

	event         int64 // id of the started event if combined, else unused; event+1 is the completed event's
	commitUnknown bool  // an earlier flush may have committed
}

// complete hands in the attempt's output. A start that is not written by now is combined with
// the end.
func (r *run) complete(output json.RawMessage) {
	r.mu.Lock()
	combined, gone := r.phase == unwritten, r.phase == lost
	if combined {
		r.phase = combining
	}

	r.mu.Unlock()

	if gone {
		r.release()
		return
	}

	r.endedAt = r.r.tasks.cfg.Clock()
	if r.endedAt.Before(r.startedAt) { // the clock was set back
		r.endedAt = r.startedAt
	}

	r.r.tasks.completes.Add(&completion{
		task: r.id(), job: r.claim.JobID, attempt: r.attempt(), combined: combined, started: r.startedAt, ended: r.endedAt,
		output: output, onWritten: r.completionWritten,
	})
}

// completionItems are completions on their way through a batchWriter. The work is done, so
// they wait for a database that is away.
type completionItems struct{ *Tasks }

func (completionItems) plural() string { return "results" }

func (completionItems) row(c *completion) any { return c.task }

func (completionItems) failWaiters(batch []*completion, _ error) (patient []*completion) {
	for _, c := range batch {
		c.commitUnknown = true
	}
	return batch
}

func (completionItems) lockWait(*completion) lockWait { return lockWait{} }

func (completionItems) reject(c *completion, err error) { c.onWritten(false, err) }

// flushCompletes writes a batch in the order of the task ids: every statement that locks
// several tasks locks them in that order, and this one takes them as they come.
func (t *Tasks) flushCompletes(batch []*completion) {
	slices.SortFunc(batch, func(a, b *completion) int { return bytes.Compare(a.task[:], b.task[:]) })
	(&batchWriter[*completion]{t, t.completes, completionItems{t}}).flush(batch)
}

// bytes is the size of a completion to the batcher.
func (c *completion) bytes() int { return len(c.output) }

// assignIDs gives a completion two ids: of the started event and of the completed one.
func (t completionItems) assignIDs(ctx context.Context, batch []*completion) error {
	fresh := 0
	for _, c := range batch {
		if c.event == 0 {
			fresh++
		}
	}

	event, err := t.ids.events(ctx, 2*fresh)
	if err != nil {
		return err
	}

	for _, c := range batch {
		if c.event == 0 {
			c.event = event
			event += 2
		}
	}

	return nil
}

// write executes TaskComplete. A completion that the statement does not return has lost its
// lease, unless an earlier flush whose answer was lost has committed it.
func (t completionItems) write(ctx context.Context, on querier, batch []*completion) (answer func(context.Context), err error) {
	rows, err := db.New(on).TaskComplete(ctx, t.params(batch))
	if err != nil {
		return nil, fmt.Errorf("write results: %w", err)
	}

	done := make(map[int64]bool, len(rows)) // by job
	callsBack := false
	for _, row := range rows {
		done[row.JobID] = true
		callsBack = callsBack || row.CallsBack
	}

	if len(rows) < len(batch) {
		if err := addCommittedEarlier(ctx, db.New(on), batch, done); err != nil {
			return nil, err
		}
	}

	return func(context.Context) {
		t.cfg.OnEventsCommitted()
		if callsBack {
			t.cfg.OnCallbacksCommitted()
		}
		for _, c := range batch {
			c.onWritten(done[c.job], nil)
		}
	}, nil
}

func (t completionItems) params(batch []*completion) db.TaskCompleteParams {
	n := len(batch)
	p := db.TaskCompleteParams{
		ExecutorID: t.cfg.ProcessID,
		TaskIds:    make([]uuid.UUID, n), JobIds: make([]int64, n), Attempts: make([]int32, n), EventIds: make([]int64, n),
		Combined: make([]bool, n), EndedAgos: make([]int64, n), Rans: make([]int64, n),
		Outputs: make([]string, n), Payloads: make([]string, n),
	}

	for i, c := range batch {
		p.TaskIds[i], p.JobIds[i], p.Attempts[i], p.EventIds[i] = c.task, c.job, c.attempt, c.event
		p.Combined[i], p.EndedAgos[i], p.Rans[i] = c.combined, t.clock.since(c.ended).Microseconds(), c.ended.Sub(c.started).Microseconds()
		p.Outputs[i], p.Payloads[i] = string(c.output), summaryNote(c.output)
	}

	return p
}

// addCommittedEarlier adds to done the jobs of completions that an earlier flush, whose answer
// was lost, has committed: their completed events are there.
func addCommittedEarlier(ctx context.Context, q *db.Queries, batch []*completion, done map[int64]bool) error {
	var events []int64
	for _, c := range batch {
		if c.commitUnknown {
			events = append(events, c.event+1)
		}
	}

	if events == nil {
		return nil
	}

	committed, err := eventsCommitted(ctx, q, events)
	if err != nil {
		return err
	}

	for _, c := range batch {
		if committed[c.event+1] {
			done[c.job] = true
		}
	}

	return nil
}

// completionWritten frees the slot once the completion is written. A lost lease leaves the
// task to the attempt that has followed. An output that the database refuses fails the attempt
// in a goroutine of its own: the flusher must not wait for that.
func (r *run) completionWritten(ok bool, err error) {
	switch {
	case err != nil && !isUnavailable(err):
		r.mu.Lock()
		if r.phase == combining { // nothing is written of the attempt
			r.phase = unwritten
		}
		r.mu.Unlock()
		go r.fail(&Failure{Code: CodeOutput, Message: "the database cannot store the output", Retryable: new(bool)})
		return

	case ok:
		r.endSpan(string(db.AttemptOutcomeCOMPLETED), "", r.endedAt)

	case err == nil:
		r.r.tasks.cfg.Logger.InfoContext(r.logged(), "result rejected: the lease was lost", "task", r.id(), "attempt", r.attempt())
		r.r.endOrphanedJob(r.claim.JobID)
	}

	r.release()
}

// The bounds of an outputSummary.
const (
	summaryMembers = 32
	summaryText    = 256
)

// completeTransition is the move after an attempt that succeeded elsewhere.
func completeTransition(h attemptRef, output json.RawMessage, at time.Time) *transition {
	return &transition{
		task: h.task, expect: atAttempt(h.job, h.attempt, Running),
		to: Completed, event: db.TaskEventTypeCompleted, actor: h.actor, executor: h.actor, at: at, payload: summaryOf(output),
		output: output, outcome: db.AttemptOutcomeCOMPLETED, endJob: db.RiverJobStateCompleted, timeout: h.settings.timeout, span: h.span,
	}
}

// summaryOf is summaryNote as a move's payload.
func summaryOf(output json.RawMessage) any {
	if note := summaryNote(output); note != "" {
		return json.RawMessage(note)
	}
	return nil
}

// summaryNote is the payload of a completed event: the output's short scalar
// members, as they are. Empty when there are none.
func summaryNote(output json.RawMessage) string {
	if len(output) <= 2 {
		return ""
	}

	var members map[string]json.RawMessage
	if json.Unmarshal(output, &members) != nil {
		return ""
	}

	short := make(map[string]json.RawMessage, len(members))
	for name, value := range members {
		if len(short) < summaryMembers && len(value) <= summaryText && value[0] != '{' && value[0] != '[' {
			short[name] = value
		}
	}

	if len(short) == 0 {
		return ""
	}

	text, err := json.Marshal(map[string]any{"outputSummary": short})
	if err != nil {
		return ""
	}

	return string(text)
}
