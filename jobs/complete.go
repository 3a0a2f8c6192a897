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

// A successful attempt passes these functions, from top to bottom in this file:
//
//	run.complete                 hands a completion to the batcher; the output is checked already
//	completionItems.assignIDs    reserves the ids of the attempt's events
//	completionItems.write        executes TaskComplete (sql/queries/move.sql) for the batch
//	run.completionWritten        frees the slot; or fails the attempt, if the database refused
//	                             the output

// completion is the successful end of an attempt, on its way through a batchWriter. A combined
// completion carries the attempt's start as well: the start was not written before, and
// TaskComplete writes start and end together.
type completion struct {
	task     uuid.UUID
	job      int64
	attempt  int32
	combined bool
	started  time.Time // by the process's clock, as ended
	ended    time.Time
	output   json.RawMessage
	// onWritten is called once, by the flusher, and must not block. ok is false if the lease
	// was lost; err is set if the database refused the output or is away.
	onWritten func(ok bool, err error)

	event         int64 // id of the started event if combined, else unused; event+1 is the completed event's
	commitUnknown bool  // an earlier flush may have committed
}

// complete hands in the attempt's output. If the start is not written by now, start and end are
// combined.
func (r *run) complete(output json.RawMessage) {
	r.mu.Lock()
	combined, gone := r.phase == unwritten, r.phase == lost
	// From here on, the timer of startGrace must not write a start of its own.
	if combined {
		r.phase = combining
	}

	r.mu.Unlock()

	// The start was rejected: the task has gone on, and the output would be rejected too.
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
// completions wait while the database is away.
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

// flushCompletes writes a batch in the order of the task ids. Every statement locks its tasks in
// the order of task ids; TaskComplete locks in the order of its arrays, hence the sort.
func (t *Tasks) flushCompletes(batch []*completion) {
	slices.SortFunc(batch, func(a, b *completion) int { return bytes.Compare(a.task[:], b.task[:]) })
	(&batchWriter[*completion]{t, t.completes, completionItems{t}}).flush(batch)
}

// bytes is the size of a completion to the batcher.
func (c *completion) bytes() int { return len(c.output) }

// assignIDs gives each completion two ids: of the started event and of the completed event.
func (t completionItems) assignIDs(ctx context.Context, batch []*completion) error {
	// A repeated flush keeps its ids: addCommittedEarlier looks for the completed events.
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

// write executes TaskComplete. A completion missing from the rows has lost its lease, unless an
// earlier flush with a lost answer has committed the completion.
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

// addCommittedEarlier adds to done the jobs of completions that an earlier flush, with a lost
// answer, has committed: the completed events of these attempts exist.
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

	// Event ids are used once, so an event with such an id was written by the earlier flush.
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

// completionWritten frees the slot after the completion is written. After a lost lease the task
// belongs to a later attempt. An output that the database refuses fails the attempt, in a
// goroutine of its own: the flusher must not wait for another write.
func (r *run) completionWritten(ok bool, err error) {
	switch {
	case err != nil && !isUnavailable(err):
		r.mu.Lock()
		if r.phase == combining { // the start is not written: fail writes start and failure
			r.phase = unwritten
		}
		r.mu.Unlock()
		// Not retryable: the next attempt would most likely have the same output.
		go r.fail(&Failure{Code: CodeOutput, Message: "the database cannot store the output", Retryable: new(bool)})
		return

	case ok:
		r.endSpan(string(db.AttemptOutcomeCOMPLETED), "", r.endedAt)

	case err == nil:
		r.r.tasks.cfg.Logger.InfoContext(r.logged(), "result rejected: the lease was lost", "task", r.id(), "attempt", r.attempt())
		r.r.endOrphanedJob(r.claim.JobID)
	}

	// ErrUnavailable comes here too, when the process stops: reaper or sweep will end the attempt.
	r.release()
}

// The bounds of an outputSummary.
const (
	summaryMembers = 32
	summaryText    = 256
)

// completeTransition is the transition after a success outside of this process: of a remote worker,
// or of another system's response.
func completeTransition(h attemptRef, output json.RawMessage, at time.Time) *transition {
	return &transition{
		task: h.task, expect: atAttempt(h.job, h.attempt, Running),
		to: Completed, event: db.TaskEventTypeCompleted, actor: h.actor, executor: h.actor, at: at, payload: summaryOf(output),
		output: output, outcome: db.AttemptOutcomeCOMPLETED, endJob: db.RiverJobStateCompleted, timeout: h.settings.timeout, span: h.span,
	}
}

// summaryOf is summaryNote as a transition's payload; nil for an empty note.
func summaryOf(output json.RawMessage) any {
	if note := summaryNote(output); note != "" {
		return json.RawMessage(note)
	}
	return nil
}

// summaryNote is the payload of a completed event: the output's short scalar
// members, unchanged. Empty if the output has no such members.
func summaryNote(output json.RawMessage) string {
	if len(output) <= 2 {
		return ""
	}

	var members map[string]json.RawMessage
	if json.Unmarshal(output, &members) != nil {
		return ""
	}

	short := make(map[string]json.RawMessage, len(members))
	// Maps have no order: of more than summaryMembers short members, any may be left out.
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
