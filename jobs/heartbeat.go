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

// Directive is what a heartbeat answers a worker.
type Directive string

// The directives.
const (
	Continue Directive = "CONTINUE"
	// StopWork: the task was cancelled, and a result would be rejected.
	StopWork Directive = "CANCEL"
	// FinishUp: this process stops; finish, and ask another for more.
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

// Heartbeat extends leases in one statement. The results come in the order of beats; the error
// is the whole call's.
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

// extendAll extends leases and returns until when. Where another session has locked one of them,
// it extends them one by one; locked and lost leases are not among the results.
func (l *Leases) extendAll(ctx context.Context, p db.WorkerBeatParams) (until map[int64]time.Time, err error) {
	until = make(map[int64]time.Time, len(p.JobIds))
	if len(p.JobIds) == 0 {
		return until, nil
	}

	// What ends leases locks them in the order of its own.
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

// extendEach extends leases one by one, and skips those that another session has locked.
func (l *Leases) extendEach(ctx context.Context, p db.WorkerBeatParams) (all []db.WorkerBeatRow, err error) {
	for i := range p.JobIds {
		one := db.WorkerBeatParams{
			TenantID: p.TenantID, TaskIds: p.TaskIds[i : i+1], JobIds: p.JobIds[i : i+1], ExtendMs: p.ExtendMs[i : i+1],
			Progress: p.Progress[i : i+1], Checkpoints: p.Checkpoints[i : i+1],
		}
		var rows []db.WorkerBeatRow
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

// missed answers the heartbeat of a lease that is not there. The worker of a
// cancelled task is told so for as long as its lease would have lasted: of that, the
// token knows how it began, and the heartbeat how it is extended.
func (l *Leases) missed(ctx context.Context, tenant string, id leaseID, extend time.Duration) (HeartbeatResult, error) {
	task, err := l.t.Get(ctx, tenant, id.task)
	if err != nil {
		return HeartbeatResult{Err: err}, nil //nolint:nilerr // it is this lease's, not the call's
	}

	lease, err := l.t.q.LeaseGet(ctx, id.task)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return HeartbeatResult{}, readError("lease", err)
	}
	if err == nil && lease.JobID == id.job && lease.Attempt == id.attempt {
		return HeartbeatResult{Err: fmt.Errorf("the lease is locked: %w", ErrUnavailable)}, nil
	}
	if id.deadLetter {
		return HeartbeatResult{Err: ErrLeaseLost}, nil
	}

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
