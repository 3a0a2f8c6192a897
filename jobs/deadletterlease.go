package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// An error handler can lease a dead letter like a task. The task of the dead letter has ended and
// stays unchanged; the calls that end the lease act on the dead letter:
//
//	complete   discards it, as Discard does
//	fail       puts it back, to be leased after requeueDelay
//	release    puts it back
//
// A redrive or a discard through the dead-letter API meanwhile wins.

// requeueDelay is the delay between a handler's failure and the next lease of the dead letter: the
// interface document's interval of queue operations.
const requeueDelay = 5 * time.Second

// IsDeadLetter reports whether a token is a dead letter's.
func (l *Leases) IsDeadLetter(ctx context.Context, token string) (bool, error) {
	id, err := l.tokens.read(ctx, token)
	return id.deadLetter, err
}

// claimDeadLetters leases up to most dead letters and returns their number n. given are leases of
// the same request that another call has committed already.
func (l *Leases) claimDeadLetters(ctx context.Context, req *LeaseRequest, sel Selection, most int) (n int, given []Lease, err error) {
	definitions := append([]string{}, sel.Definitions...) // not nil, which would be NULL
	// Taking the turn writes a row, so look for work first.
	waits, err := l.t.q.LetterWaits(ctx, db.LetterWaitsParams{TenantID: req.Tenant, DefinitionIds: definitions})
	if err != nil {
		return 0, nil, readError("look for dead letters", err)
	}
	if !waits {
		return 0, nil, nil
	}

	if given, err = l.takeTurn(ctx, req); err != nil || len(given) > 0 {
		return 0, given, err
	}

	visibility := sel.Visibility
	if visibility == 0 {
		visibility = DefaultVisibility
	}

	err = pgx.BeginFunc(ctx, l.t.pool, func(tx pgx.Tx) error {
		q := l.t.q.WithTx(tx)
		if req.turn != nil {
			// The turn's row stays locked until the commit. No row: another call has taken the turn, and
			// claims the dead letters.
			held, err := q.LeaseTurnHold(ctx, db.LeaseTurnHoldParams{TenantID: req.Tenant, Owner: req.Worker, RequestID: req.ID, Turn: req.turn.n})
			if err != nil || held == 0 {
				return err
			}
		}

		taken, err := q.LetterClaim(ctx, db.LetterClaimParams{
			TenantID: req.Tenant, Worker: req.Worker, RequestID: req.ID, DefinitionIds: definitions,
			VisibilityMs: visibility.Milliseconds(), Most: int32(most), Spare: 2*int32(most) + spareHeads, //nolint:gosec // at most a request's hundred
		})
		n = len(taken)
		return err
	})
	if err != nil {
		return 0, nil, readError("claim of dead letters", err)
	}

	return n, nil, nil
}

// acknowledgeDeadLetter discards a leased dead letter. The handler's output is kept as the reason.
func (l *Leases) acknowledgeDeadLetter(ctx context.Context, w *leaseCall, output json.RawMessage) (db.Task, error) {
	reason := handledReason(output)
	// For the owner's name. A repeated call finds no lease, and discards no dead letter.
	lease, err := l.t.q.LeaseGet(ctx, w.id.task)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return db.Task{}, readError("lease of task "+w.id.task.String(), err)
	}

	// WantJob is the fence: a dead letter that was put back has another job.
	rows, err := l.t.q.DeadLetterDiscard(ctx, db.DeadLetterDiscardParams{
		TaskID: w.id.task, TenantID: w.tenant, WantJob: w.id.job, Actor: lease.Owner, Reason: reason,
	})
	if err != nil {
		return db.Task{}, readError("task "+w.id.task.String(), err)
	}

	// A repetition with the same output gets the same answer, with another output a Conflict.
	if len(rows) == 0 {
		before, err := l.t.q.DeadLetterDiscarded(ctx, w.id.task)
		switch {
		case errors.Is(err, pgx.ErrNoRows) || (err == nil && before.JobID != w.id.job):
			return db.Task{}, ErrLeaseLost
		case err != nil:
			return db.Task{}, readError("task "+w.id.task.String(), err)
		case before.Reason != reason:
			return db.Task{}, &Conflict{Message: fmt.Sprintf("the dead letter was already discarded by %s, for another reason", before.Actor)}
		}
	}

	return l.t.Get(ctx, w.tenant, w.id.task)
}

// handledReason is output.reason, or the whole output without such a member.
func handledReason(output json.RawMessage) string {
	var said struct {
		Reason string `json:"reason"`
	}
	switch {
	case json.Unmarshal(output, &said) == nil && said.Reason != "":
		return redactedText(said.Reason, longestMessage)
	case len(output) > 0:
		return redactedText(string(output), longestMessage)
	}

	return "handled"
}

// requeueDeadLetter puts a leased dead letter back. A repeated call gets the first answer.
func (l *Leases) requeueDeadLetter(ctx context.Context, w *leaseCall, why string, delay time.Duration) (db.Task, error) {
	why = redactedText(why, longestMessage)
	back, err := l.t.q.LetterReturn(ctx, db.LetterReturnParams{
		TaskIds: []uuid.UUID{w.id.task}, JobIds: []int64{w.id.job}, Why: why, DelayMs: delay.Milliseconds(),
	})
	if err != nil {
		return db.Task{}, readError("task "+w.id.task.String(), err)
	}

	// A repetition finds the reason of the first call; a call after the lease has expired finds the
	// reaper's.
	if len(back) == 0 {
		before, err := l.t.q.LetterReturned(ctx, db.LetterReturnedParams{JobID: w.id.job, TaskID: w.id.task.String()})
		switch {
		case errors.Is(err, pgx.ErrNoRows) || before == CodeLeaseExpired:
			return db.Task{}, ErrLeaseLost
		case err != nil:
			return db.Task{}, readError("job of a lease", err)
		case before != why:
			return db.Task{}, &Conflict{Message: "the dead letter was already released, with a different body"}
		}

		return w.task, nil
	}

	// With a delay the dead letter is not due yet; the poll of waiting dequeues finds such work.
	if delay == 0 {
		l.wakeDeadLetterWaiters(ctx, back)
	}

	return l.t.Get(ctx, w.tenant, w.id.task)
}

// requeueExpiredDeadLetters puts back the dead letters whose lease has run out.
func (l *Leases) requeueExpiredDeadLetters(ctx context.Context) error {
	rows, err := l.t.q.LetterExpired(ctx)
	if err != nil {
		return fmt.Errorf("find expired leases of dead letters: %w", err)
	}
	if len(rows) == 0 {
		return nil
	}

	// Expired makes LetterReturn compare the time again: a heartbeat may have come since the read.
	p := db.LetterReturnParams{Expired: true, Why: CodeLeaseExpired}
	for _, row := range rows {
		p.TaskIds, p.JobIds = append(p.TaskIds, row.TaskID), append(p.JobIds, row.JobID)
	}

	back, err := l.t.q.LetterReturn(ctx, p)
	if err != nil {
		return fmt.Errorf("requeue dead letters: %w", err)
	}

	if len(back) > 0 {
		l.t.cfg.Logger.Info("leases of dead letters expired", "letters", len(back))
		l.wakeDeadLetterWaiters(ctx, back)
	}

	return nil
}

// wakeDeadLetterWaiters wakes dequeues that wait for these dead letters.
func (l *Leases) wakeDeadLetterWaiters(ctx context.Context, returned []db.LetterReturnRow) {
	var ready wakeSet
	for _, row := range returned {
		ready.add(LaneDeadLetter, KindDeadLetter, "", row.TenantID, row.DefinitionID)
	}
	l.t.notifier.wakeFor(ctx, ready)
}
