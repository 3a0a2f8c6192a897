package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// Operation is a redrive with its progress.
type Operation struct {
	db.RedriveOperation
	db.RedriveCountRow
	RejectedTasks []Rejected
}

// Operation returns a redrive with its progress.
func (d *DeadLetterOps) Operation(ctx context.Context, tenant string, id uuid.UUID) (Operation, error) {
	return ReadOperation(ctx, d.t.q, tenant, id)
}

// ReadOperation is Operation on any connection.
func ReadOperation(ctx context.Context, q *db.Queries, tenant string, id uuid.UUID) (out Operation, err error) {
	what := "operation " + id.String()
	if out.RedriveOperation, err = q.RedriveGet(ctx, db.RedriveGetParams{OperationID: id, TenantID: tenant}); err != nil {
		return Operation{}, readError(what, err)
	}

	if out.RedriveCountRow, err = q.RedriveCount(ctx, id); err != nil {
		return Operation{}, readError(what, err)
	}

	rows, err := q.RedriveRejected(ctx, id)
	if err != nil {
		return Operation{}, readError(what, err)
	}

	for _, row := range rows {
		out.RejectedTasks = append(out.RejectedTasks, Rejected{row.TaskID, row.Code})
	}

	return out, nil
}

// StopRedrive ends an operation: once it returns, the operation redrives no further task. An ended
// operation stays as it is.
func (d *DeadLetterOps) StopRedrive(ctx context.Context, id uuid.UUID, actor Actor) (Operation, error) {
	if err := d.stopRedrive(ctx, id, actor); err != nil {
		return Operation{}, err
	}
	return d.Operation(ctx, actor.Tenant, id)
}

// stopRedrive waits for the step under way, which has locked the operation's row.
func (d *DeadLetterOps) stopRedrive(ctx context.Context, id uuid.UUID, actor Actor) error {
	what := "operation " + id.String()
	// RedriveStop does not compare the tenant; RedriveGet does.
	if _, err := d.t.q.RedriveGet(ctx, db.RedriveGetParams{OperationID: id, TenantID: actor.Tenant}); err != nil {
		return readError(what, err)
	}

	// A step holds the lock on the row until its commit, which may take longer than a statement waits.
	for begun := time.Now(); ; {
		err := d.t.q.RedriveStop(ctx, db.RedriveStopParams{OperationID: id, StoppedBy: actor.Name, StopReason: actor.Reason})
		switch {
		case err == nil:
			return nil
		case !isLockTimeout(err) || ctx.Err() != nil || time.Since(begun) > callerPatience:
			return readError(what, err)
		}
	}
}

// UndoRedrive stops an operation. The tasks that it has redriven and that no attempt has begun become
// dead letters again, with their input and error. Undoing again changes nothing.
func (d *DeadLetterOps) UndoRedrive(ctx context.Context, id uuid.UUID, actor Actor) (Operation, error) {
	what := "operation " + id.String()
	if err := d.stopRedrive(ctx, id, actor); err != nil {
		return Operation{}, err
	}

	op, err := d.Operation(ctx, actor.Tenant, id)
	if err != nil || op.State == db.RedriveStateUNDONE {
		return op, err
	}

	// RedriveUndoable reads the recorded items only.
	if err := d.recoverLostStep(ctx, id); err != nil {
		return Operation{}, err
	}

	for after := int32(0); ; {
		// Only tasks without a transition since their redrive; all other tasks stay redriven.
		rows, err := d.t.q.RedriveUndoable(ctx, db.RedriveUndoableParams{OperationID: id, After: after, Page: int32(stepOf(nil))}) //nolint:gosec // small
		if err != nil {
			return Operation{}, readError(what, err)
		}
		if len(rows) == 0 {
			break
		}

		after = rows[len(rows)-1].N
		if err := d.undo(ctx, id, actor, rows); err != nil {
			return Operation{}, err
		}
	}

	// Last: after an error or a crash, the next call continues the undo.
	if err := d.t.q.RedriveUndone(ctx, db.RedriveUndoneParams{OperationID: id, UndoneBy: actor.Name, UndoReason: actor.Reason}); err != nil {
		return Operation{}, readError(what, err)
	}

	return d.Operation(ctx, actor.Tenant, id)
}

// recoverLostStep records the transitions of a lost step of a stopped operation: a step whose process
// died after the transitions, before the record.
func (d *DeadLetterOps) recoverLostStep(ctx context.Context, id uuid.UUID) error {
	items, err := d.t.q.RedriveWaiting(ctx, db.RedriveWaitingParams{OperationID: id, Page: int32(stepOf(nil))}) //nolint:gosec // small
	if err != nil || len(items) == 0 {
		return err
	}

	doubtful, gone := map[uuid.UUID]string{}, map[uuid.UUID]int32{}
	for _, item := range items { // a lost step took the first waiting items
		doubtful[item.TaskID] = RejectedNotDeadLetter
	}

	if err := d.findRedriven(ctx, id, doubtful, gone); err != nil {
		return err
	}

	found := db.RedriveSettleParams{OperationID: id}
	for _, item := range items {
		if seq := gone[item.TaskID]; seq > 0 {
			addItem(&found, item.N, db.RedriveItemStateREDRIVEN, seq, "")
		}
	}

	if len(found.Ns) == 0 {
		return nil
	}

	if err := d.t.q.RedriveSettle(ctx, found); err != nil {
		return readError("operation "+id.String(), err)
	}

	return nil
}

func (d *DeadLetterOps) undo(ctx context.Context, id uuid.UUID, actor Actor, rows []db.RedriveUndoableRow) error {
	back := make([]*transition, len(rows))
	for i, row := range rows {
		// The event of the redrive has the input from before the patch; none: the input is unchanged.
		var note outbox.RedrivenNote
		if row.Payload != nil {
			if err := json.Unmarshal([]byte(*row.Payload), &note); err != nil {
				return fmt.Errorf("read the redrive of task %s: %w", row.TaskID, err)
			}
		}

		back[i] = &transition{
			task: row.TaskID, expect: atVersion(row.Version, Pending),
			to: Status(*row.Was), event: db.TaskEventTypeReleased, actor: actor.Name, executor: actor.Name,
			payload: outbox.RedrivenNote{OperationID: id.String(), Reason: actor.Reason, Undone: true}, input: note.Input,
			endJob: db.RiverJobStateCancelled, next: &nextJob{lane: LaneDeadLetter, kind: KindDeadLetter}, callerWaits: true,
		}
	}

	done := db.RedriveSettleParams{OperationID: id}
	outs := d.t.applyAll(back)
	var lost error
	for i, out := range outs {
		switch {
		case out.err != nil:
			lost = out.err
		case out.applied:
			addItem(&done, rows[i].N, db.RedriveItemStateUNDONE, 0, "")
		}
	}

	// Also after an error: the applied part needs its record.
	if len(done.Ns) > 0 {
		if err := d.t.q.RedriveSettle(ctx, done); err != nil {
			return readError("operation "+id.String(), err)
		}
	}

	return lost
}

func addItem(p *db.RedriveSettleParams, n int32, state db.RedriveItemState, seq int32, code string) {
	p.Ns = append(p.Ns, n)
	p.States = append(p.States, string(state))
	p.Seqs = append(p.Seqs, seq)
	p.Codes = append(p.Codes, code)
}

// stepOf returns the number of tasks of a step: few with a patch, because inputs can be long.
func stepOf(patch jsonpatch.Patch) int {
	if patch != nil {
		return 50
	}
	return 500
}

// pacedFor is the number of seconds for which an unused rate is saved up.
const pacedFor = 2

// redrives executes the open operations step by step, each step in one process.
func (r *Runner) redrives(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "redrive", func(ctx context.Context) error {
		for {
			if more, err := r.tasks.DeadLetters.redriveStep(ctx); err != nil || !more {
				return err
			}
		}
	})
}

// redriveStep redrives the next few tasks of the operation that has waited longest. The lock on the row
// of the operation puts a stop before the step or after the step.
func (d *DeadLetterOps) redriveStep(ctx context.Context) (more bool, err error) {
	tx, err := d.t.pool.Begin(ctx)
	if err != nil {
		return false, fmt.Errorf("redrive: %w", err)
	}

	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	q := d.t.q.WithTx(tx)
	found, err := q.RedriveNext(ctx)
	if err != nil || len(found) == 0 {
		return false, err
	}

	op := found[0].RedriveOperation
	patch, err := readPatch(op.InputPatch)
	if err != nil {
		return false, fmt.Errorf("redrive %s: %w", op.OperationID, err)
	}

	// After a long wait the operation does not catch up on its whole rate.
	saved := min(found[0].Elapsed, pacedFor)
	n := min(int(saved*float64(op.Rate)), stepOf(patch))
	pace := db.RedrivePaceParams{OperationID: op.OperationID, State: op.State, StoppedBy: d.t.cfg.ProcessID}
	if op.State == db.RedriveStateCANARY {
		if n, err = d.canary(ctx, q, op, &pace, n); err != nil {
			return false, err
		}
	}

	if n > 0 {
		moved, locked, err := d.redriveSome(ctx, q, op, patch, n)
		if err != nil {
			return false, err
		}

		if locked {
			n = 0 // look again at the next tick, after the other operations
		} else if moved < n && pace.State == db.RedriveStateRUNNING {
			pace.State = db.RedriveStateDONE
		}

		// The unused rate is left to the next step.
		pace.UnusedSeconds = max(0, saved-float64(n)/float64(op.Rate))
	}

	if err := q.RedrivePace(ctx, pace); err != nil {
		return false, fmt.Errorf("redrive %s: %w", op.OperationID, err)
	}

	return n > 0, tx.Commit(ctx)
}

// canary returns the number of tasks to redrive while the first few are watched, and sets the state of
// the operation after their end.
func (d *DeadLetterOps) canary(ctx context.Context, q *db.Queries, op db.RedriveOperation, pace *db.RedrivePaceParams, n int) (int, error) {
	c, err := q.RedriveCount(ctx, op.OperationID)
	if err != nil {
		return 0, fmt.Errorf("redrive %s: %w", op.OperationID, err)
	}

	out := c.Redriven
	if c.Waiting > 0 {
		out = max(out, op.CanaryCount) // the canary will have this many
	}

	ended := c.Completed + c.Failed + c.Cancelled
	switch {
	// At once: further tasks of the canary could not lower the number of failures.
	case float64(c.Failed) > op.CanaryRatio*float64(out):
		pace.State = db.RedriveStateSTOPPED
		pace.StopReason = fmt.Sprintf("canary: %d of %d failed", c.Failed, out)
		d.t.cfg.Logger.Warn("a redrive was stopped by its canary", "operation", op.OperationID, "failed", c.Failed, "of", out)
		return 0, nil
	case c.Redriven < op.CanaryCount && c.Waiting > 0:
		return min(n, int(op.CanaryCount-c.Redriven)), nil
	case ended < c.Redriven:
		return 0, nil
	case c.Waiting == 0:
		pace.State = db.RedriveStateDONE
		return 0, nil
	}

	pace.State = db.RedriveStateRUNNING
	return n, nil
}

// redriveSome redrives the next tasks of an operation, and returns their number. locked: another
// session has locked some of the tasks, which wait for another step.
func (d *DeadLetterOps) redriveSome(ctx context.Context, q *db.Queries, op db.RedriveOperation, patch jsonpatch.Patch, n int) (taken int, locked bool, err error) {
	items, err := q.RedriveWaiting(ctx, db.RedriveWaitingParams{OperationID: op.OperationID, Page: int32(n)}) //nolint:gosec // at most a step
	if err != nil || len(items) == 0 {
		return 0, false, err
	}

	ids := make([]uuid.UUID, len(items))
	for i, item := range items {
		ids[i] = item.TaskID
	}

	known, err := d.candidates(ctx, ids, patch)
	if err != nil {
		return 0, false, err
	}

	done := db.RedriveSettleParams{OperationID: op.OperationID}
	refused := map[uuid.UUID]string{}
	var going []*transition
	for _, id := range ids {
		row := known[id]
		code, input, err := d.fits(ctx, op.TenantID, row, patch)
		if err != nil {
			return 0, false, err
		}

		if refused[id] = code; code != "" {
			continue
		}

		m, err := d.redriveTransition(ctx, op, row, input)
		if err != nil {
			return 0, false, err
		}

		// A locked task does not hold up the step.
		m.skipLocked = true
		going = append(going, m)
	}

	gone := map[uuid.UUID]int32{}
	waiting := map[uuid.UUID]bool{}
	// These transitions commit before the transaction of the step. If the process dies in between,
	// findRedriven finds them in a later step.
	for i, out := range d.t.applyAll(going) {
		switch {
		case isLockTimeout(out.err):
			waiting[going[i].task], locked = true, true
		case out.err != nil:
			return 0, false, out.err // findRedriven finds the applied transitions in a later step
		case out.applied:
			gone[going[i].task] = going[i].expect.version + 1
		default:
			refused[going[i].task] = RejectedNotDeadLetter
		}
	}

	if err := d.findRedriven(ctx, op.OperationID, refused, gone); err != nil {
		return 0, false, err
	}

	for _, item := range items {
		if waiting[item.TaskID] {
			continue
		}

		if seq := gone[item.TaskID]; seq > 0 {
			addItem(&done, item.N, db.RedriveItemStateREDRIVEN, seq, "")
		} else {
			addItem(&done, item.N, db.RedriveItemStateREJECTED, 0, refused[item.TaskID])
		}
	}

	if err := q.RedriveSettle(ctx, done); err != nil {
		return 0, false, fmt.Errorf("redrive %s: %w", op.OperationID, err)
	}

	return len(items), locked, nil
}

// findRedriven adds to gone the refused tasks that this operation has redriven in a lost step, by the
// operation id in their last redriven event.
func (d *DeadLetterOps) findRedriven(ctx context.Context, op uuid.UUID, refused map[uuid.UUID]string, gone map[uuid.UUID]int32) error {
	var doubtful []uuid.UUID
	for id, code := range refused {
		if code != "" {
			doubtful = append(doubtful, id)
		}
	}

	if doubtful == nil {
		return nil
	}

	rows, err := d.t.q.RedriveTrace(ctx, db.RedriveTraceParams{TaskIds: doubtful, OperationID: op.String()})
	if err != nil {
		return fmt.Errorf("redrive %s: %w", op, err)
	}

	for _, row := range rows {
		gone[row.TaskID] = row.Seq
	}

	return nil
}
