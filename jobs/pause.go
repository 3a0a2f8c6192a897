package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// A pause holds back jobs whose attempt has not begun. A running attempt goes on; a retry or a redrive
// waits until the pause is resumed. Dead letters can still be leased.
//
//	queue        river_queue.paused_at, as in River and River UI: claims skip the queue
//	definition   claims find the jobs paused, and hold the jobs back
//	task         the same
//
// A held-back job is in River's state pending:
//
//	           claim            the task is paused
//	available ───────▶ running ────────────────────▶ pending
//	    ▲                                               │
//	    └───────────────────────────────────────────────┘
//	       the last pause of the task is resumed (release)
//
// Table pause is authoritative. LanePark, the statement that holds jobs back, shares the lock on table
// pause_lock with other LaneParks, and a resume locks the table alone: so the release after a resume
// sees every held-back job. PostgreSQL grants these locks in the order of the requests: a resume waits
// for the LaneParks under way, and no longer. The caller of a resume releases the jobs. If the caller
// dies or takes too long, any other process continues at its tick: see table pause_walk and column
// pause.released.

// PauseScope is the kind of the subject of a pause.
type PauseScope string

// The scopes, as in table pause.
const (
	PauseOfQueue      PauseScope = "queue"
	PauseOfDefinition PauseScope = "definition"
	PauseOfTask       PauseScope = "task"
)

// Pause is a pause of a queue, a definition or a task.
type Pause struct {
	Scope    PauseScope
	Tenant   string // whose tasks it holds back; empty: see table pause
	Name     string // of the queue, or the id of the definition or the task
	PausedAt time.Time
	PausedBy string
	Reason   string

	ResumedAt    *time.Time // nil while it is in force
	ResumedBy    string
	ResumeReason string

	id int64
}

// PauseOf converts a row of table pause.
func PauseOf(row db.Pause) Pause {
	p := Pause{
		Scope: PauseScope(row.Scope), Tenant: row.TenantID, Name: row.Name,
		PausedAt: row.PausedAt.UTC(), PausedBy: row.PausedBy, Reason: row.PauseReason, id: row.ID,
	}
	if row.ResumedAt != nil && row.ResumedBy != nil && row.ResumeReason != nil {
		at := row.ResumedAt.UTC()
		p.ResumedAt, p.ResumedBy, p.ResumeReason = &at, *row.ResumedBy, *row.ResumeReason
	}

	return p
}

// Pauses holds back queues, definitions and tasks, and lets them go on.
type Pauses struct{ t *Tasks }

// PauseQueue pauses a queue of River's, for all tenants. A paused queue stays as before, and the first
// pause is returned. ErrNotFound: the queue does not exist.
func (p *Pauses) PauseQueue(ctx context.Context, name string, actor Actor) (Pause, error) {
	return p.changeQueue(ctx, name, actor, (*db.Queries).QueuePause)
}

// ResumeQueue resumes a queue. A queue without a pause stays as before, and the last pause is returned.
// ErrNotFound: the queue does not exist. ErrNeverPaused: the queue has never been paused.
func (p *Pauses) ResumeQueue(ctx context.Context, name string, actor Actor) (Pause, error) {
	out, err := p.changeQueue(ctx, name, actor, (*db.Queries).QueueResume)
	if err == nil {
		// Claims have skipped the queue; the notification spares its jobs the wait for a poll.
		p.t.notifyQueues(ctx, name)
	}
	return out, err
}

func (p *Pauses) changeQueue(ctx context.Context, name string, actor Actor, change func(*db.Queries, context.Context, string) (int64, error)) (Pause, error) {
	return p.change(ctx, "queue "+name, actor, func(q *db.Queries) (db.Pause, error) {
		// The trigger of river_queue writes table pause, with this actor and reason.
		if err := q.PauseBy(ctx, db.PauseByParams{Actor: actor.Name, Reason: actor.Reason}); err != nil {
			return db.Pause{}, err
		}

		n, err := change(q, ctx, name)
		switch {
		case err != nil:
			return db.Pause{}, err
		case n == 0:
			return db.Pause{}, ErrNotFound
		}

		return lastPause(ctx, q, PauseOfQueue, "", name)
	})
}

// lastPause is the newest pause of a subject.
func lastPause(ctx context.Context, q *db.Queries, scope PauseScope, tenant, name string) (db.Pause, error) {
	row, err := q.PauseLast(ctx, db.PauseLastParams{Scope: string(scope), Name: name, TenantID: tenant})
	if errors.Is(err, pgx.ErrNoRows) {
		return db.Pause{}, ErrNeverPaused
	}
	return row, err
}

// PauseDefinition holds back the tasks of a definition that the caller's tenant uses; only the tenant's
// own tasks. A caller without a tenant pauses a definition of the platform, for the tasks of all
// tenants under this definition. A repeated pause changes nothing and returns the first pause.
// ErrNotFound: the tenant has no such definition.
func (p *Pauses) PauseDefinition(ctx context.Context, id string, actor Actor) (Pause, error) {
	if _, err := p.t.Definitions.Get(ctx, actor.Tenant, id); err != nil {
		return Pause{}, err
	}
	return p.put(ctx, PauseOfDefinition, id, actor)
}

// ResumeDefinition ends the pause of a definition and makes its held-back jobs available. A repeated
// resume changes nothing and returns the last pause. ErrNeverPaused: the tenant has never paused the
// definition.
func (p *Pauses) ResumeDefinition(ctx context.Context, id string, actor Actor) (Pause, error) {
	return p.end(ctx, PauseOfDefinition, id, actor)
}

// PauseTask holds back the next attempt of a task. A repeated pause changes nothing and returns the
// first pause. ErrNotFound: the tenant has no such task. A *Conflict: the task has ended.
func (p *Pauses) PauseTask(ctx context.Context, id uuid.UUID, actor Actor) (Pause, error) {
	task, err := p.t.Get(ctx, actor.Tenant, id)
	if err != nil {
		return Pause{}, err
	}
	if s := Status(task.Status); s.Terminal() {
		return Pause{}, &Conflict{Message: fmt.Sprintf("task %s has ended: it is %s, and has nothing to hold back", id, s)}
	}
	return p.put(ctx, PauseOfTask, id.String(), actor)
}

// ResumeTask ends the pause of a task. A repeated resume changes nothing and returns the last pause.
// ErrNeverPaused: the tenant has no such task, or has never paused the task.
func (p *Pauses) ResumeTask(ctx context.Context, id uuid.UUID, actor Actor) (Pause, error) {
	return p.end(ctx, PauseOfTask, id.String(), actor)
}

func (p *Pauses) put(ctx context.Context, scope PauseScope, name string, actor Actor) (Pause, error) {
	return p.change(ctx, string(scope)+" "+name, actor, func(q *db.Queries) (db.Pause, error) {
		return q.PausePut(ctx, db.PausePutParams{
			Scope: string(scope), TenantID: actor.Tenant, Name: name, Actor: actor.Name, Reason: actor.Reason,
		})
	})
}

func (p *Pauses) end(ctx context.Context, scope PauseScope, name string, actor Actor) (Pause, error) {
	out, err := p.change(ctx, string(scope)+" "+name, actor, func(q *db.Queries) (db.Pause, error) {
		// Waits for the LaneParks under way: the release below must see their jobs.
		if err := q.PauseLock(ctx); err != nil {
			return db.Pause{}, err
		}

		row, err := q.PauseEnd(ctx, db.PauseEndParams{
			Scope: string(scope), TenantID: actor.Tenant, Name: name, Actor: actor.Name, Reason: actor.Reason,
		})
		if errors.Is(err, pgx.ErrNoRows) {
			// No pause in force: a repeated resume gets the last pause.
			return lastPause(ctx, q, scope, actor.Tenant, name)
		}
		return row, err
	})
	if err != nil {
		return Pause{}, err
	}

	// Another caller has paused the subject again: nothing to release.
	if out.ResumedAt == nil {
		return out, nil
	}

	// The resume is committed: the release goes on when the caller is gone.
	released, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	if scope == PauseOfTask {
		err = p.releaseTask(released, name, out.id)
	} else {
		err = p.release(released, sweepTicks*time.Second)
	}
	if err != nil {
		p.t.cfg.Logger.Warn("jobs that were held back are released at the next tick", "error", err)
	}

	return out, nil
}

// change writes table pause, and stores the answer to the call in the same commit. change waits for a
// lock on a row or on pause_lock up to callerPatience.
func (p *Pauses) change(ctx context.Context, what string, actor Actor, change func(q *db.Queries) (db.Pause, error)) (out Pause, err error) {
	for begun := time.Now(); ; {
		err = pgx.BeginFunc(ctx, p.t.pool, func(tx pgx.Tx) error {
			return actor.Call.within(ctx, tx, func(q *db.Queries) (any, error) {
				row, err := change(q)
				if err != nil {
					return nil, err
				}
				out = PauseOf(row)
				return out, nil
			})
		})

		switch {
		case err == nil:
			return out, nil
		case errors.Is(err, ErrNotFound):
			return Pause{}, fmt.Errorf("%s: %w", what, err)
		// A lock timeout and a deadlock have rolled everything back: the transaction is repeated.
		case !isLockTimeout(err) && !isSerializationFailure(err) || ctx.Err() != nil || time.Since(begun) > callerPatience:
			return Pause{}, readError(what, err)
		}
	}
}

// notifyQueues notifies every process of new work in these queues.
func (t *Tasks) notifyQueues(ctx context.Context, queues ...string) {
	if len(queues) == 0 {
		return
	}
	// KindWorker wakes the waiting dequeues, for which the name of a queue is not enough.
	if err := t.q.LaneNotify(ctx, append([]string{KindWorker}, queues...)); err != nil {
		t.cfg.Logger.Debug("queues were not notified; they poll", "error", err)
	}
}
