package jobs

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/batch"
)

// LeaseRequest is a remote worker's dequeue.
type LeaseRequest struct {
	Tenant string
	Worker string // the worker's name in leases, attempts and events
	// ID makes the request idempotent: a repeated request gets the leases of the first call.
	// Empty: the request cannot be repeated.
	ID string
	// Wait is how long the request waits while there is no work; 0: no wait.
	Wait time.Duration
	// Most bounds the leases of an answer, over the selections together.
	Most   int
	Select []Selection

	shared bool         // the caller chose the ID, and may repeat the request
	turn   *dequeueTurn // the request's right to claim; nil until it has found work
}

// Selection is a part of the queues that a worker takes tasks from.
type Selection struct {
	// Lane is LaneAutomated or LaneIntegration, with the retries of the queue's tasks first; or
	// LaneRetry, the retries of both; or LaneDeadLetter, before the tasks of any selection.
	Lane string
	// Definitions are the definitions whose tasks the worker can run; empty: any definition.
	Definitions []string
	// Most bounds the leases of this selection; 0: only the request's Most does.
	Most int
	// Visibility is the visibility timeout of these leases; 0: each task's own.
	Visibility time.Duration
}

// Lease is an attempt, or a dead letter, that a remote worker has.
type Lease struct {
	Token      string
	Status     Status          // RUNNING; a dead letter's is how its task ended
	Error      json.RawMessage // of a dead letter: why its task ended; nil otherwise
	Attempt    int
	ExpiresAt  time.Time
	Visibility time.Duration
	EnqueuedAt time.Time       // the attempt's job
	Checkpoint json.RawMessage // of an attempt before this one; nil if none

	TaskID        uuid.UUID
	WorkflowID    string
	StepID        string
	DefinitionID  string
	Type          Type
	Priority      Priority
	CorrelationID string
	Traceparent   string
	Input         json.RawMessage
	Context       json.RawMessage
	Timeout       time.Duration
	Retry         RetryPolicy
	Security      *SecurityContext // nil for none
}

// leasePoll is the interval at which some waiting dequeue of the process looks for work for every
// waiting dequeue, without a wake-up.
const leasePoll = time.Second

// Leases gives tasks and dead letters to remote workers.
//
//	Acquire     claims jobs, starts their attempts and returns a token for each
//	Heartbeat   extends leases; answers whether to go on
//	Complete, Fail, Release
//	            end an attempt, each once; a repeated call gets the first answer
//
// A signed token names task, job and attempt, and is the worker's only proof of the lease. A
// lease without heartbeats runs out after its visibility timeout, and the reaper ends the
// attempt. Any process serves any call.
type Leases struct {
	t            *Tasks
	tokens       tokens
	requestLocks requestLocks
	draining     chan struct{} // closed by StartDraining
	drainOnce    sync.Once
}

func newLeases(t *Tasks) *Leases {
	return &Leases{
		t: t, tokens: tokens{q: t.q}, requestLocks: requestLocks{taken: map[requestKey]chan struct{}{}},
		draining: make(chan struct{}),
	}
}

// Acquire leases up to req.Most tasks to a remote worker, and waits up to req.Wait for the
// first. An empty result is no error. Leases for a caller that is gone are released, unless the
// request has an ID: the caller may have repeated the request, and got the leases.
func (l *Leases) Acquire(ctx context.Context, req LeaseRequest) ([]Lease, error) {
	look := l.acquireAgain
	req.shared = req.ID != ""
	if req.ID == "" {
		// The leases are read back by the request's ID, so each request needs an ID.
		req.ID, look = uuid.NewString(), l.acquireOnce
	}

	wait := time.NewTimer(req.Wait)
	defer wait.Stop()
	poll := time.NewTicker(leasePoll)
	defer poll.Stop()

	waiting, w, gotWork := &l.t.notifier.waiters, waitingFor(&req), false
	defer func() { waiting.leave(w, gotWork) }()

	for {
		l.t.workers.note(&req)
		// Before the look: a job that becomes ready in between must find this waiter.
		waiting.add(w)
		found, err := look(ctx, req)
		if err != nil || len(found) > 0 || req.Wait == 0 {
			gotWork = len(found) > 0
			return found, err
		}

		for woken := false; !woken; {
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-l.draining:
				return nil, nil
			case <-wait.C:
				return nil, nil
			case <-w.woken:
				woken = true
			case <-poll.C:
				// The first dequeue whose look is due looks for every dequeue of the process. The look finds
				// retries that have become due, and jobs whose notification was lost.
				l.t.workers.note(&req)
				if waiting.lookDue() {
					l.t.notifier.wakeReady(ctx)
				}
			}
		}
	}
}

// StartDraining ends every waiting Acquire, and makes heartbeats answer FinishUp: the process is
// about to stop.
func (l *Leases) StartDraining() { l.drainOnce.Do(func() { close(l.draining) }) }

// acquireOnce claims the work available now, for a request that cannot be repeated.
func (l *Leases) acquireOnce(ctx context.Context, req LeaseRequest) ([]Lease, error) {
	found, err := l.acquire(ctx, req)
	if err == nil && ctx.Err() != nil {
		for _, one := range found {
			// The worker never saw the token. A lease whose release fails runs out.
			_, _ = l.Release(context.WithoutCancel(ctx), req.Tenant, one.Token, 0, "the worker was gone before it was answered")
		}
		return nil, context.Cause(ctx)
	}

	return found, err
}

// acquireAgain returns the leases of an earlier call of the request, or else claims the work
// available now. Calls of the request may be under way in several processes: see
// requestlocks.go.
func (l *Leases) acquireAgain(ctx context.Context, req LeaseRequest) ([]Lease, error) {
	done, err := l.requestLocks.lock(ctx, requestKey{req.Tenant, req.Worker, req.ID})
	if err != nil {
		return nil, err
	}

	defer done()
	if found, err := l.held(ctx, req); err != nil || len(found) > 0 {
		return found, err
	}

	return l.acquire(ctx, req)
}

// acquire claims the work available now, and starts the claimed attempts.
func (l *Leases) acquire(ctx context.Context, req LeaseRequest) ([]Lease, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}

	// A claim that ctx cut short could commit, and would leave its jobs to the sweep.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	letters := 0
	var begun []*transition
	taken := make([]int, len(req.Select))
	for _, from := range sources(req.Select) {
		sel := req.Select[from.selection]
		// taken counts the retries and the standard queue of a selection together.
		most := req.Most - len(begun) - letters
		if sel.Most > 0 {
			most = min(most, sel.Most-taken[from.selection])
		}
		if most <= 0 {
			continue
		}

		// A dead letter's task has ended: its lease is written by the claim, without a transition.
		if from.lane == LaneDeadLetter {
			n, given, err := l.claimDeadLetters(work, &req, sel, most)
			if err != nil || len(given) > 0 {
				return given, err
			}
			letters += n
			taken[from.selection] += n
			continue
		}

		p := db.WorkerClaimParams{
			MostBytes: batch.MaxBytes, Lane: from.lane, Places: readyPlaces(from.lane, typeOf(sel.Lane)),
			TenantID: req.Tenant, DefinitionIds: append([]string{}, sel.Definitions...), Most: int32(most), ExecutorID: l.t.cfg.ProcessID, //nolint:gosec // at most a request's hundred
		}

		rows, err := l.t.Leases.claim(work, p)
		if err != nil {
			return nil, readError("claim for a worker", err)
		}

		for _, row := range rows {
			m, err := l.leaseTransition(work, row, req, sel)
			if err != nil {
				return nil, err // the claim is left to the sweep
			}
			begun = append(begun, m)
		}

		taken[from.selection] += len(rows)
	}

	if len(begun)+letters == 0 {
		return nil, nil
	}

	// The starts share a commit. given are the leases of another call of the same request.
	if given, err := l.start(work, &req, begun); err != nil || len(given) > 0 {
		return given, err
	}

	// Read back: a rejected start has no lease, and WorkerLeases has the order of the answer.
	return l.held(work, req)
}

// source is a queue of a selection.
type source struct {
	selection int // its number
	lane      string
}

// sources returns the queues of the selections in the interface document's order: dead letters,
// then retries, then the standard queues. Within each group, the order is the request's.
func sources(all []Selection) []source {
	var letters, retries, standard []source
	for i, sel := range all {
		switch sel.Lane {
		case LaneDeadLetter:
			letters = append(letters, source{i, LaneDeadLetter})
		case LaneRetry:
			retries = append(retries, source{i, LaneRetry})
		default:
			retries = append(retries, source{i, LaneRetry})
			standard = append(standard, source{i, sel.Lane})
		}
	}

	return slices.Concat(letters, retries, standard)
}

// typeOf is the type of a standard queue's tasks; empty for the retry queue, which has both types.
func typeOf(lane string) Type {
	switch lane {
	case LaneAutomated:
		return Automated
	case LaneIntegration:
		return Integration
	}
	return ""
}

// leaseTransition returns the start of an attempt by a remote worker.
func (l *Leases) leaseTransition(ctx context.Context, row db.WorkerClaimRow, req LeaseRequest, sel Selection) (*transition, error) {
	s, err := l.t.settings(ctx, row.Type, taskDefinition(row.TenantID, row.OwnDefinition, row.DefinitionID, row.Revision), row.Config)
	if err != nil {
		return nil, err
	}

	visibility := s.visibility
	if sel.Visibility > 0 {
		visibility = sel.Visibility
	}

	return &transition{
		task: row.TaskID, expect: atAttempt(row.JobID, row.Attempt, Pending),
		to: Running, event: db.TaskEventTypeStarted, actor: req.Worker, executor: req.Worker, at: l.t.cfg.Clock(),
		begins: true, timeout: s.timeout, lease: db.LeaseKindWorker, leaseRequest: req.ID, visibility: visibility,
	}, nil
}

// held reads the leases of a request.
func (l *Leases) held(ctx context.Context, req LeaseRequest) ([]Lease, error) {
	rows, err := l.t.q.WorkerLeases(ctx, db.WorkerLeasesParams{Owner: req.Worker, RequestID: req.ID, TenantID: req.Tenant})
	if err != nil {
		return nil, readError("leases of a worker", err)
	}

	found := make([]Lease, len(rows))
	for i, row := range rows {
		s, err := l.t.settings(ctx, row.Type, taskDefinition(row.TenantID, row.OwnDefinition, row.DefinitionID, row.Revision), row.Config)
		if err != nil {
			return nil, err
		}

		// Signing is deterministic, so that a repeated request gets the same tokens.
		letter, visibility := row.Kind == db.LeaseKindLetter, time.Duration(row.VisibilityMs)*time.Millisecond
		token, err := l.tokens.sign(ctx, leaseID{row.TaskID, row.JobID, row.Attempt, letter, visibility})
		if err != nil {
			return nil, err
		}

		found[i] = Lease{
			Token: token, Attempt: int(row.Attempt), ExpiresAt: row.ExpiresAt.UTC(), Visibility: visibility,
			EnqueuedAt: row.EnqueuedAt.UTC(), Checkpoint: row.Checkpoint, Status: Status(row.Status),
			TaskID: row.TaskID, WorkflowID: row.WorkflowID, DefinitionID: row.DefinitionID, Type: Type(row.Type),
			Priority: priorityOf(row.Priority), CorrelationID: row.CorrelationID, Input: row.Input, Context: row.Context,
			Timeout: s.timeout, Retry: s.retry, Security: s.config.SecurityContext.of(req.Tenant),
		}
		if letter {
			found[i].Error = row.Error
		}
		if row.StepID != nil {
			found[i].StepID = *row.StepID
		}
		if row.Traceparent != nil {
			found[i].Traceparent = l.traceparent(*row.Traceparent, row.TaskID, row.Attempt)
		}
	}

	return found, nil
}
