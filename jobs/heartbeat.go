package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// Directive is a heartbeat's instruction to the worker.
type Directive string

// The directives.
const (
	Continue Directive = "CONTINUE"
	// StopWork: the task was cancelled, and a result would be rejected.
	StopWork Directive = "CANCEL"
	// FinishUp: this process stops; finish the attempt, and lease more from another process.
	FinishUp Directive = "DRAIN"
)

// Heartbeat asks for more time for one lease.
type Heartbeat struct {
	Token      string
	Extend     time.Duration   // from now; 0: the lease's visibility timeout
	Progress   json.RawMessage // nil: as it was
	Checkpoint json.RawMessage // nil: as it was
}

// HeartbeatResult is the answer to a heartbeat. Err is ErrNotFound, ErrLeaseLost, a *TaskEnded, or
// ErrUnavailable where another session has locked the lease; else the lease lasts until ExpiresAt.
type HeartbeatResult struct {
	ExpiresAt time.Time
	Directive Directive
	Reason    string
	Err       error
}

// Heartbeat extends leases in a single statement. The results are in the order of beats. A lease's
// own error is in its result; the returned error concerns the whole call.
func (l *Leases) Heartbeat(ctx context.Context, tenant string, beats []Heartbeat) ([]HeartbeatResult, error) {
	out := make([]HeartbeatResult, len(beats))
	ids := make([]leaseID, len(beats))
	p := db.WorkerBeatParams{TenantID: tenant}
	for i, b := range beats {
		id, err := l.tokens.read(ctx, b.Token)
		if err != nil {
			out[i].Err = err
			continue
		}

		ids[i] = id
		p.TaskIds, p.JobIds = append(p.TaskIds, id.task), append(p.JobIds, id.job)
		p.ExtendMs = append(p.ExtendMs, b.Extend.Milliseconds())
		p.Progress, p.Checkpoints = append(p.Progress, string(b.Progress)), append(p.Checkpoints, string(b.Checkpoint))
	}

	until, err := l.extendAll(ctx, p)
	if err != nil {
		return nil, err
	}

	for i, b := range beats {
		if out[i].Err != nil {
			continue
		}

		id := ids[i]
		// A lease that was not extended is lost or locked, or its task has ended.
		expires, kept := until[id.job]
		switch {
		case !kept:
			var err error
			if out[i], err = l.missed(ctx, tenant, id, b.Extend); err != nil {
				return nil, err
			}
		case l.isDraining():
			out[i] = HeartbeatResult{ExpiresAt: expires, Directive: FinishUp, Reason: "this process is stopping"}
		default:
			out[i] = HeartbeatResult{ExpiresAt: expires, Directive: Continue}
		}
	}

	return out, nil
}

// extendAll extends leases and returns their new ends, by job. If another session has locked any of
// the leases, each lease is extended singly. Locked and lost leases are missing from the result.
func (l *Leases) extendAll(ctx context.Context, p db.WorkerBeatParams) (until map[int64]time.Time, err error) {
	until = make(map[int64]time.Time, len(p.JobIds))
	if len(p.JobIds) == 0 {
		return until, nil
	}

	// Statements that end leases lock in another order than WorkerBeat: repeat after a deadlock.
	rows, err := retryDeadlock(ctx, func() ([]db.WorkerBeatRow, error) { return l.t.q.WorkerBeat(ctx, p) })
	if isLockTimeout(err) {
		rows, err = l.extendEach(ctx, p)
	}
	if err != nil {
		return nil, readError("heartbeat", err)
	}

	for _, row := range rows {
		until[row.JobID] = row.ExpiresAt.UTC()
		l.t.workers.noteHeartbeat(p.TenantID, row.Owner)
	}

	return until, nil
}

// extendEach extends leases singly, and skips leases that another session has locked.
func (l *Leases) extendEach(ctx context.Context, p db.WorkerBeatParams) (all []db.WorkerBeatRow, err error) {
	for i := range p.JobIds {
		one := db.WorkerBeatParams{
			TenantID: p.TenantID, TaskIds: p.TaskIds[i : i+1], JobIds: p.JobIds[i : i+1], ExtendMs: p.ExtendMs[i : i+1],
			Progress: p.Progress[i : i+1], Checkpoints: p.Checkpoints[i : i+1],
		}
		var rows []db.WorkerBeatRow
		// A transaction for each lease: LockBriefly bounds the wait until the end of its transaction.
		err := pgx.BeginFunc(ctx, l.t.pool, func(tx pgx.Tx) (err error) {
			q := db.New(tx)
			if err = q.LockBriefly(ctx); err != nil {
				return err
			}
			rows, err = q.WorkerBeat(ctx, one)
			return err
		})

		switch {
		case err == nil:
			all = append(all, rows...)
		// The worker of a skipped lease gets ErrUnavailable, and repeats its heartbeat.
		case !isLockTimeout(err) && !isSerializationFailure(err):
			return nil, err
		}
	}

	return all, nil
}

func (l *Leases) isDraining() bool {
	select {
	case <-l.draining:
		return true
	default:
		return false
	}
}

// missed answers the heartbeat of a lease that was not extended. The worker of a cancelled task gets
// StopWork for as long as the lease would have lasted: the token's visibility timeout or the
// heartbeat's extension, the longer of both, and never past the deadline.
func (l *Leases) missed(ctx context.Context, tenant string, id leaseID, extend time.Duration) (HeartbeatResult, error) {
	task, err := l.t.Get(ctx, tenant, id.task)
	if err != nil {
		return HeartbeatResult{Err: err}, nil //nolint:nilerr // it is this lease's, not the call's
	}

	lease, err := l.t.q.LeaseGet(ctx, id.task)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return HeartbeatResult{}, readError("lease", err)
	}
	// The lease exists, so another session had locked the row.
	if err == nil && lease.JobID == id.job && lease.Attempt == id.attempt {
		return HeartbeatResult{Err: fmt.Errorf("the lease is locked: %w", ErrUnavailable)}, nil
	}
	// The task of a dead letter has ended before: its status does not explain the lost lease.
	if id.deadLetter {
		return HeartbeatResult{Err: ErrLeaseLost}, nil
	}

	// Only for the attempt that the cancellation ended: earlier attempts were superseded.
	if task.Status == db.TaskStatusCANCELLED && task.JobID == id.job && task.Attempt == id.attempt {
		s, err := l.t.settings(ctx, task.Type, taskDefinition(task.TenantID, task.OwnDefinition, task.DefinitionID, task.Revision), task.Config)
		if err != nil {
			return HeartbeatResult{}, err
		}

		until := task.EndedAt.Add(max(id.visibility, extend))
		if deadline := task.StartedAt.Add(s.timeout); until.After(deadline) {
			until = deadline
		}

		if l.t.Now(ctx).Before(until) {
			return HeartbeatResult{ExpiresAt: until.UTC(), Directive: StopWork, Reason: "the task was cancelled"}, nil
		}
	}

	return HeartbeatResult{Err: leaseLostError(task)}, nil
}

// leaseLostError is the error of a call whose lease was lost: a *TaskEnded, or ErrLeaseLost.
func leaseLostError(task db.Task) error {
	if s := Status(task.Status); s.Terminal() {
		return &TaskEnded{Status: s}
	}
	return ErrLeaseLost
}
