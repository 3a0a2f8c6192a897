package jobs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// DeadLetterWalk bounds the dead letters that a query reads: enough for a bad day, and at most
// a second's work.
const DeadLetterWalk = 20_000

// DeadLetterFilter selects dead letters. A zero field matches every dead letter.
type DeadLetterFilter struct {
	Fingerprint      string    `json:"fingerprint,omitempty"`
	TaskDefinitionID string    `json:"taskDefinitionId,omitempty"`
	ErrorCode        string    `json:"errorCode,omitempty"`
	Lane             string    `json:"queue,omitempty"` // in which it failed: its type's
	Since            time.Time `json:"since,omitzero"`  // when it ended
}

// Type is the type of tasks whose queue the filter names; empty without such a type.
func (f DeadLetterFilter) Type() string {
	for _, kind := range []Type{Automated, Integration, Manual} {
		if laneOf(kind) == f.Lane {
			return string(kind)
		}
	}
	return ""
}

// LaneOf is the queue of a type's new tasks.
func LaneOf(kind Type) string { return laneOf(kind) }

// DeadLetterCursor is a position in the order of dead letters: the most urgent first, then the
// oldest. The zero value is before the first.
type DeadLetterCursor struct {
	Priority int16
	At       time.Time
	Job      int64
}

// DeadLetters lists at most page dead letters after a cursor. next is the cursor of the next page; nil
// at the end. A page with fewer rows, or none, may have a next: the filter looks at DeadLetterWalk
// dead letters a call.
func DeadLetters(ctx context.Context, q *db.Queries, tenant string, f DeadLetterFilter, from DeadLetterCursor, page int32) (rows []db.DeadLetterListRow, next *DeadLetterCursor, err error) {
	// A rare filter must not read every dead letter: find the end of this walk first.
	until := DeadLetterCursor{Priority: math.MaxInt16, At: from.At, Job: math.MaxInt64}
	reach, err := q.DeadLetterReach(ctx, db.DeadLetterReachParams{
		AfterPriority: from.Priority, AfterAt: from.At, AfterID: from.Job, Skip: DeadLetterWalk - 1,
	})
	switch {
	case err == nil:
		until = DeadLetterCursor{reach.Priority, reach.ScheduledAt, reach.ID}
		next = &until
	case !errors.Is(err, pgx.ErrNoRows):
		return nil, nil, readError("dead letters", err)
	}

	rows, err = q.DeadLetterList(ctx, db.DeadLetterListParams{
		AfterPriority: from.Priority, AfterAt: from.At, AfterID: from.Job,
		UntilPriority: until.Priority, UntilAt: until.At, UntilID: until.Job, Walk: DeadLetterWalk,
		TenantID: tenant, Type: f.Type(), DefinitionID: f.TaskDefinitionID, ErrorCode: f.ErrorCode, Fingerprint: f.Fingerprint,
		Since: f.Since, Page: page + 1,
	})
	if err != nil {
		return nil, nil, readError("dead letters", err)
	}

	// Page was page + 1: the additional row shows that there is a next page.
	if len(rows) > int(page) {
		rows = rows[:page]
		last := rows[page-1]
		next = &DeadLetterCursor{last.Priority, last.ScheduledAt, last.ID}
	}

	return rows, next, nil
}

// MoreDeadLetters reports whether there are more dead letters, of all tenants, than DeadLetterWalk.
func MoreDeadLetters(ctx context.Context, q *db.Queries) (bool, error) {
	_, err := q.DeadLetterReach(ctx, db.DeadLetterReachParams{Skip: DeadLetterWalk})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, readError("dead letters", err)
	}
	return true, nil
}

// Discarded is the record of a discarded dead letter.
type Discarded struct {
	TaskID uuid.UUID
	At     time.Time
	By     string
	Reason string
}

// DeadLetterOps discards and redrives dead letters.
type DeadLetterOps struct{ t *Tasks }

// Discard removes a dead letter from the list of dead letters; the task keeps its status. A repeated
// Discard returns the first record, and is no error.
func (d *DeadLetterOps) Discard(ctx context.Context, id uuid.UUID, actor Actor) (Discarded, error) {
	var made *Discarded
	err := pgx.BeginFunc(ctx, d.t.pool, func(tx pgx.Tx) error {
		return actor.Call.within(ctx, tx, func(q *db.Queries) (any, error) {
			rows, err := q.DeadLetterDiscard(ctx, db.DeadLetterDiscardParams{TaskID: id, TenantID: actor.Tenant, Actor: actor.Name, Reason: actor.Reason})
			// Without an effect no answer is stored here; the handler stores the answer afterwards.
			if err != nil || len(rows) == 0 {
				return nil, err
			}
			made = &Discarded{id, rows[0].At.UTC(), rows[0].Actor, rows[0].Reason}
			return *made, nil
		})
	})

	switch {
	case err != nil:
		return Discarded{}, readError("task "+id.String(), err)
	case made != nil:
		return *made, nil
	}

	// Not discarded now: the task is unknown, was discarded before, or is no dead letter.
	task, err := d.t.Get(ctx, actor.Tenant, id)
	if err != nil {
		return Discarded{}, err
	}

	row, err := d.t.q.DeadLetterDiscarded(ctx, id)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Discarded{}, &Conflict{fmt.Sprintf("task %s is no dead letter: it is %s", id, task.Status)}
	case err != nil:
		return Discarded{}, readError("task "+id.String(), err)
	}

	return Discarded{id, row.At.UTC(), row.Actor, row.Reason}, nil
}
