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

// A dead letter can be leased like a task, by whoever handles errors. Its task has
// ended and stays as it is; what the last word means is the letter's:
//
//	complete   it was dealt with, and is laid aside as by Discard
//	fail       it was not: it goes back, and rests
//	release    it goes back
//
// Whoever redrives or discards it at the desk meanwhile has the last word.

// requeueDelay is how long a dead letter rests that its handler failed at: the queue
// operations' interval of the interface document.
const requeueDelay = 5 * time.Second

// IsDeadLetter says whether a token is of a dead letter.
func (l *Leases) IsDeadLetter(ctx context.Context, token string) (bool, error) {
	id, err := l.tokens.read(ctx, token)
	return id.deadLetter, err
}

// claimDeadLetters takes dead letters and says how many there were. given is what another call
// of the request has been given.
func (l *Leases) claimDeadLetters(ctx context.Context, req *LeaseRequest, sel Selection, most int) (n int, given []Lease, err error) {
	waits, err := l.t.q.LetterWaits(ctx)
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
			held, err := q.LeaseTurnHold(ctx, db.LeaseTurnHoldParams{TenantID: req.Tenant, Owner: req.Worker, RequestID: req.ID, Turn: req.turn.n})
			if err != nil || held == 0 {
				return err
			}
		}
		taken, err := q.LetterClaim(ctx, db.LetterClaimParams{
			TenantID: req.Tenant, Worker: req.Worker, RequestID: req.ID, DefinitionIds: append([]string{}, sel.Definitions...),
			VisibilityMs: visibility.Milliseconds(), Most: int32(most), //nolint:gosec // at most a request's hundred
		})
		n = len(taken)
		return err
	})
	if err != nil {
		return 0, nil, readError("claim of dead letters", err)
	}
	return n, nil, nil
}

// acknowledgeDeadLetter lays a leased dead letter aside. What its handler said of it is kept as
// the reason.
func (l *Leases) acknowledgeDeadLetter(ctx context.Context, w *leaseCall, output json.RawMessage) (db.Task, error) {
	reason := handledReason(output)
	lease, err := l.t.q.LeaseGet(ctx, w.id.task)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return db.Task{}, readError("lease of task "+w.id.task.String(), err)
	}
	rows, err := l.t.q.DeadLetterDiscard(ctx, db.DeadLetterDiscardParams{
		TaskID: w.id.task, TenantID: w.tenant, WantJob: w.id.job, Actor: lease.Owner, Reason: reason,
	})
	if err != nil {
		return db.Task{}, readError("task "+w.id.task.String(), err)
	}
	if len(rows) == 0 {
		before, err := l.t.q.DeadLetterDiscarded(ctx, w.id.task)
		switch {
		case errors.Is(err, pgx.ErrNoRows) || (err == nil && before.JobID != w.id.job):
			return db.Task{}, ErrLeaseLost
		case err != nil:
			return db.Task{}, readError("task "+w.id.task.String(), err)
		case before.Reason != reason:
			return db.Task{}, &Conflict{Message: fmt.Sprintf("the dead letter was laid aside already, by %s, for another reason", before.Actor)}
		}
	}
	return l.t.Get(ctx, w.tenant, w.id.task)
}

// handledReason is output.reason where there is one, else all that was said.
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

// requeueDeadLetter puts a leased dead letter back. Said again, it is answered as the
// first time.
func (l *Leases) requeueDeadLetter(ctx context.Context, w *leaseCall, why string, delay time.Duration) (db.Task, error) {
	why = redactedText(why, longestMessage)
	back, err := l.t.q.LetterReturn(ctx, db.LetterReturnParams{
		TaskIds: []uuid.UUID{w.id.task}, JobIds: []int64{w.id.job}, Why: why, DelayMs: delay.Milliseconds(),
	})
	if err != nil {
		return db.Task{}, readError("task "+w.id.task.String(), err)
	}
	if len(back) == 0 {
		before, err := l.t.q.LetterReturned(ctx, db.LetterReturnedParams{JobID: w.id.job, TaskID: w.id.task.String()})
		switch {
		case errors.Is(err, pgx.ErrNoRows) || before == CodeLeaseExpired:
			return db.Task{}, ErrLeaseLost
		case err != nil:
			return db.Task{}, readError("job of a lease", err)
		case before != why:
			return db.Task{}, &Conflict{Message: "the dead letter was put back already, with another word"}
		}
		return w.task, nil
	}
	if delay == 0 {
		l.wakeDeadLetterWaiters(ctx)
	}
	return l.t.Get(ctx, w.tenant, w.id.task)
}

// requeueExpiredDeadLetters puts back what was leased and not heard of again.
func (l *Leases) requeueExpiredDeadLetters(ctx context.Context) error {
	rows, err := l.t.q.LetterExpired(ctx)
	if err != nil {
		return fmt.Errorf("find expired leases of dead letters: %w", err)
	}
	if len(rows) == 0 {
		return nil
	}
	p := db.LetterReturnParams{Expired: true, Why: CodeLeaseExpired}
	for _, row := range rows {
		p.TaskIds, p.JobIds = append(p.TaskIds, row.TaskID), append(p.JobIds, row.JobID)
	}
	back, err := l.t.q.LetterReturn(ctx, p)
	if err != nil {
		return fmt.Errorf("put dead letters back: %w", err)
	}
	if len(back) > 0 {
		l.t.cfg.Logger.Info("leases of dead letters ran out", "letters", len(back))
		l.wakeDeadLetterWaiters(ctx)
	}
	return nil
}

// wakeDeadLetterWaiters tells parked dequeues that there is a dead letter.
func (l *Leases) wakeDeadLetterWaiters(ctx context.Context) {
	var kinds [len(wakeKinds)]bool
	kinds[wakeIndex(LaneDeadLetter, KindDeadLetter)] = true
	l.t.notifier.wakeQueues(ctx, kinds)
}
