package jobs

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// heartbeatInterval is the interval between two looks for leases to extend. The shortest visibility
// timeout is a second, and the lease must be extended well before its end.
const heartbeatInterval = 250 * time.Millisecond

// announce records that the process is alive. The sweep of another process takes jobs away from a
// silent process.
func (r *Runner) announce(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "record that the process is alive", r.seen)
}

func (r *Runner) seen(ctx context.Context) error {
	return r.tasks.seen(ctx, db.ExecutorSeenParams{ExecutorID: r.tasks.cfg.ProcessID, Kinds: r.kinds()})
}

// heartbeats extends the leases of the running attempts of this process, in one statement. The loss of
// a lease ends the context of its executor. An error is not retried before the next interval: the
// pauses of the retry policy are longer than a lease may last.
func (r *Runner) heartbeats(ctx context.Context) {
	for pause(ctx, min(r.cfg.Tick, heartbeatInterval)) {
		if err := r.extendLeases(ctx); err != nil && ctx.Err() == nil {
			r.logTrouble("heartbeat", err)
		}
	}
}

func (r *Runner) extendLeases(ctx context.Context) error {
	at := time.Now()
	due := r.due(at)
	if len(due) == 0 {
		return nil
	}

	p := db.LeaseExtendParams{Owner: r.tasks.cfg.ProcessID}
	for job, one := range due {
		p.JobIds = append(p.JobIds, job)
		p.TaskIds = append(p.TaskIds, one.id())
	}

	kept, err := r.tasks.q.LeaseExtend(ctx, p)
	if err != nil {
		return fmt.Errorf("extend leases: %w", err)
	}

	// Counted from before the statement: the lease in the database lasts at least as long.
	for _, job := range kept {
		if one := due[job]; one != nil {
			one.extended(at)
		}
		delete(due, job)
	}

	if len(due) == 0 {
		return nil
	}

	return r.checkNotExtended(ctx, due)
}

// checkNotExtended looks for the leases that LeaseExtend has not returned. A missing lease is lost: its
// executor ends. A lease with a row locked by another session is extended at the next interval.
func (r *Runner) checkNotExtended(ctx context.Context, missing map[int64]*run) error {
	var p db.LeasesOfParams
	for job, one := range missing {
		p.JobIds = append(p.JobIds, job)
		p.TaskIds = append(p.TaskIds, one.id())
	}

	locked, err := r.tasks.q.LeasesOf(ctx, p)
	if err != nil {
		return fmt.Errorf("look for leases that were not extended: %w", err)
	}

	// Still there: LeaseExtend skips locked rows, because a wait would let all other leases expire.
	for _, job := range locked {
		delete(missing, job)
	}

	for _, one := range missing {
		one.loseLease()
	}

	return nil
}

// due returns, by job, the runs whose last extension is a third of the visibility timeout ago.
func (r *Runner) due(at time.Time) map[int64]*run {
	due := map[int64]*run{}
	for _, one := range r.tasks.running.all() {
		if !one.mu.TryLock() {
			continue // the start is being written: the lease is new
		}
		// An interval early, because the next look would be late.
		if one.phase == leased && at.Sub(one.extendedAt) >= one.settings.visibility/3-heartbeatInterval {
			due[one.claim.JobID] = one
		}
		one.mu.Unlock()
	}

	return due
}

func (r *run) extended(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.extendedAt = at
}

// loseLease ends the executor of a lost lease. In any phase but leased, the write of start or end meets
// the fence itself.
func (r *run) loseLease() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.phase == leased {
		r.phase = lost
		r.cancel(ErrLeaseLost)
	}
}

// reap ends the attempts with an expired lease, of any process. All processes reap; the fence accepts
// one transition for each attempt.
func (r *Runner) reap(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "reap", func(ctx context.Context) error {
		for {
			rows, err := r.tasks.q.LeaseExpired(ctx)
			if err != nil {
				return fmt.Errorf("find expired leases: %w", err)
			}

			// A full page without an applied transition is locked, or reaped by another process.
			// LeaseExpired would return the page again at once, so the next tick looks again.
			made := r.reapAll(ctx, rows)
			if len(rows) < reapPage || made == 0 {
				break
			}
		}

		// The lease of a dead letter has no attempt to end: the dead letter gets a new job.
		if err := r.tasks.Leases.requeueExpiredDeadLetters(ctx); err != nil {
			return err
		}

		// A lease of an ended attempt remains if start and end were committed concurrently. LeaseSweep
		// deletes such leases once expired.
		_, err := r.tasks.q.LeaseSweep(ctx)
		return err
	})
}

// reapPage is the LIMIT of LeaseExpired.
const reapPage = 500

// reapAll ends the attempts of a page in shared commits, and returns the number of applied transitions.
func (r *Runner) reapAll(ctx context.Context, rows []db.LeaseExpiredRow) (made int) {
	var ends []*transition
	for _, row := range rows {
		s, err := r.tasks.settings(ctx, row.Type, taskDefinition(row.TenantID, row.OwnDefinition, row.DefinitionID, row.Revision), row.Config)
		if err != nil {
			// The tasks of this definition wait for the next tick; the other tasks of the page go on.
			r.logTrouble("read a definition", err)
			continue
		}

		end := expireTransition(row, s, r.tasks.cfg.Clock())
		end.skipLocked = true // the next tick finds the lease again
		ends = append(ends, end)
	}

	for i, out := range r.tasks.applyAll(ends) {
		if m := ends[i]; out.applied {
			made++
			said := ContextWithTraceparent(ctx, stringOf(m.span.traceparent))
			r.tasks.cfg.Logger.InfoContext(said, "a lease expired", "task", m.task, "attempt", m.expect.attempt, "owner", m.executor, "now", m.to)
			// An owner in this process stops now. Any other owner learns of the loss by its next
			// heartbeat.
			r.tasks.running.cancel(attemptID{m.task, m.expect.job}, ErrLeaseLost)
		}
	}

	return made
}

// expireTransition ends an attempt with an expired lease: after a crash of the owner, or at the
// timeout.
func expireTransition(row db.LeaseExpiredRow, s *settings, noticed time.Time) *transition {
	h := attemptRef{
		task: row.TaskID, job: row.JobID, attempt: row.Attempt, kind: Type(row.Type), executor: row.Executor,
		failures: row.Failures, crashes: row.Crashes, settings: s, actor: row.Owner,
		span: &attemptSpan{
			task: row.TaskID, attempt: row.Attempt, kind: Type(row.Type), lane: string(row.Lane), definition: row.DefinitionID,
			traceparent: row.Traceparent, startedAt: timeOf(row.StartedAt),
		},
	}

	f := &Failure{Code: CodeLeaseExpired, Message: "no heartbeat from " + row.Owner + " within the visibility timeout"}
	// At the deadline the attempt has timed out. Before the deadline the owner has sent no heartbeat.
	h.crashed = !row.TimedOut
	if row.TimedOut {
		f = &Failure{Code: CodeTimeout, Message: fmt.Sprintf("the attempt took longer than its timeout of %v", s.timeout)}
		if row.Kind == db.LeaseKindResponse {
			f.Message = fmt.Sprintf("no response came within the timeout of %v", s.timeout)
		}
	}

	m := failTransition(h, f, noticed)
	// A heartbeat may have extended the lease after LeaseExpired: TaskMove checks the time again.
	m.expect.expired = true
	return m
}

// orphanGrace is the least age of an orphaned claim. The start of a younger claim may be under way.
const orphanGrace = 10 * time.Second

// sweepTicks is the rhythm of the sweep, in ticks.
const sweepTicks = 5

// sweep gives a new job to each task whose job was claimed and never begun: by a dead process, or by
// this process if the answer to its claim was lost. sweep also keeps the queues, and deletes old turns
// of dequeues and old answers to calls.
func (r *Runner) sweep(ctx context.Context) {
	r.every(ctx, sweepTicks*r.cfg.Tick, "sweep", func(ctx context.Context) error {
		// River deletes a queue, and its pause, after a day without a touch.
		if err := r.tasks.q.LaneKeep(ctx, Lanes); err != nil {
			return fmt.Errorf("keep the queues: %w", err)
		}

		// Turns of dequeues whose processes died.
		if err := r.tasks.q.LeaseTurnsForget(ctx); err != nil {
			return fmt.Errorf("forget turns of dequeues: %w", err)
		}

		if err := r.tasks.Calls.forget(ctx); err != nil {
			return err
		}

		// This process never counts as silent: its orphans are the claimed jobs outside of InFlight.
		grace := min(orphanGrace, r.cfg.Silence)
		found, err := r.tasks.q.LaneOrphans(ctx, db.LaneOrphansParams{
			Lanes: Lanes[:4], GraceSeconds: grace.Seconds(), SilenceSeconds: r.cfg.Silence.Seconds(),
			ExecutorID: r.tasks.cfg.ProcessID, InFlight: r.inFlight(),
		})
		if err != nil {
			return fmt.Errorf("find orphans: %w", err)
		}

		woken := map[string]bool{}
		for _, row := range found {
			if !woken[row.Lane] {
				r.tasks.notifier.queueNotified(row.Lane)
			}
			woken[row.Lane] = true
		}

		if len(found) > 0 {
			r.tasks.cfg.Logger.Info("claimed jobs whose process is gone are free again", "jobs", len(found))
		}

		return nil
	})
}

func (r *Runner) inFlight() []int64 {
	// A claimed job has no run while its payload is being read.
	jobs := r.loading.all()
	for _, one := range r.tasks.running.all() {
		jobs = append(jobs, one.claim.JobID)
	}
	return jobs
}

// age raises the priority of a waiting job by one for each AgeStep, so that LOW jobs are late and do
// not starve. LaneAge raises at most 200 jobs of a queue and priority at a time.
func (r *Runner) age(ctx context.Context) {
	// All waits count from scheduled_at: a LOW job (4) climbs after one, two and three steps.
	step := r.cfg.AgeStep.Seconds()
	p := db.LaneAgeParams{Priorities: []int16{2, 3, 4}, Waits: []float64{3 * step, 2 * step, step}}
	r.every(ctx, max(r.cfg.Tick, r.cfg.AgeStep/60), "age", func(ctx context.Context) error {
		for _, w := range wakeKinds {
			kinds := []string{w.kind}
			// Each Go handler has a kind of its own; kindSome stands for all of them.
			if w.kind == kindSome {
				kinds = r.ability.some()
			}

			p.Lane = w.lane

			for _, p.Kind = range kinds {
				if _, err := r.tasks.q.LaneAge(ctx, p); err != nil {
					return fmt.Errorf("age %s: %w", w.lane, err)
				}
			}
		}

		return nil
	})
}

// fold adds the rows of tally_delta to the counters. Flushes only insert deltas, so that no flush waits
// for a row of a counter.
func (r *Runner) fold(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "fold counters", func(ctx context.Context) error {
		return r.tasks.q.TallyFold(ctx)
	})
}
