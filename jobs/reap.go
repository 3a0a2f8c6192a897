package jobs

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// heartbeatInterval is how often this process looks for leases to extend. The shortest visibility
// timeout is a second, and must be extended well before its end.
const heartbeatInterval = 250 * time.Millisecond

// announce says that the process is there.
func (r *Runner) announce(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "record that the process is alive", r.seen)
}

func (r *Runner) seen(ctx context.Context) error {
	return r.tasks.seen(ctx, db.ExecutorSeenParams{ExecutorID: r.tasks.cfg.ProcessID, Kinds: r.kinds()})
}

// heartbeats extends the leases of the attempts that this process runs, in one statement. The
// executor of a lost lease has its context ended. A failed beat is followed by the next one, at
// the same rhythm: the retry policy's pauses are longer than a lease may be.
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

	// The extension counts from before the statement: the database's lease lasts at least that long.
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

// checkNotExtended sorts the leases that were not extended: a lost one ends its executor, and
// one whose row another session has locked is tried again with the next beat.
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

	for _, job := range locked {
		delete(missing, job)
	}

	for _, one := range missing {
		one.loseLease()
	}

	return nil
}

// due returns the runs, by job, whose lease was last extended a third of its visibility timeout
// ago.
func (r *Runner) due(at time.Time) map[int64]*run {
	due := map[int64]*run{}
	for _, one := range r.tasks.running.all() {
		if !one.mu.TryLock() {
			continue // the start is being written: the lease is new
		}
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

// loseLease ends the executor of a lease that was lost, unless the attempt's end is being
// written.
func (r *run) loseLease() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.phase == leased {
		r.phase = lost
		r.cancel(ErrLeaseLost)
	}
}

// reap ends the attempts whose lease has run out, of any process. All processes do so; the
// fence accepts one of them.
func (r *Runner) reap(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "reap", func(ctx context.Context) error {
		for {
			rows, err := r.tasks.q.LeaseExpired(ctx)
			if err != nil {
				return fmt.Errorf("find expired leases: %w", err)
			}

			// A full page of which nothing was applied is locked or already reaped: the next tick looks again,
			// rather than this loop without a pause.
			made := r.reapAll(ctx, rows)
			if len(rows) < reapPage || made == 0 {
				break
			}
		}

		if err := r.tasks.Leases.requeueExpiredDeadLetters(ctx); err != nil {
			return err
		}

		// Expired leases of ended attempts, which remain if start and end were committed concurrently.
		_, err := r.tasks.q.LeaseSweep(ctx)
		return err
	})
}

// reapPage is the LIMIT of LeaseExpired.
const reapPage = 500

// reapAll ends the attempts of a page in shared commits, and returns how many were applied.
func (r *Runner) reapAll(ctx context.Context, rows []db.LeaseExpiredRow) (made int) {
	var ends []*transition
	for _, row := range rows {
		s, err := r.tasks.settings(ctx, row.Type, taskDefinition(row.TenantID, row.OwnDefinition, row.DefinitionID, row.Revision), row.Config)
		if err != nil {
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
			r.tasks.running.cancel(attemptID{m.task, m.expect.job}, ErrLeaseLost)
		}
	}

	return made
}

// expireTransition ends an attempt whose lease has run out: a crash of its owner, or a timeout.
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
	h.crashed = !row.TimedOut
	if row.TimedOut {
		f = &Failure{Code: CodeTimeout, Message: fmt.Sprintf("the attempt took longer than its timeout of %v", s.timeout)}
		if row.Kind == db.LeaseKindResponse {
			f.Message = fmt.Sprintf("no response came within the timeout of %v", s.timeout)
		}
	}

	m := failTransition(h, f, noticed)
	m.expect.expired = true
	return m
}

// orphanGrace is the age of a claim before the sweep takes it for an orphan: a younger one is
// being begun.
const orphanGrace = 10 * time.Second

// sweepTicks is the rhythm of the sweep, in ticks.
const sweepTicks = 5

// sweep gives a new job to each task whose job was claimed and never begun: by a process that
// is gone, or by this one when the answer to its claim was lost. It also does what must be done
// now and then: keep the queues, forget turns and answers.
func (r *Runner) sweep(ctx context.Context) {
	r.every(ctx, sweepTicks*r.cfg.Tick, "sweep", func(ctx context.Context) error {
		if err := r.tasks.q.LaneKeep(ctx, Lanes); err != nil {
			return fmt.Errorf("keep the queues: %w", err)
		}

		if err := r.tasks.q.LeaseTurnsForget(ctx); err != nil {
			return fmt.Errorf("forget turns of dequeues: %w", err)
		}

		if err := r.tasks.Calls.forget(ctx); err != nil {
			return err
		}

		// The own process never counts as silent here: InFlight names the jobs that it still works on.
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
	jobs := r.loading.all()
	for _, one := range r.tasks.running.all() {
		jobs = append(jobs, one.claim.JobID)
	}
	return jobs
}

// age raises the priority of waiting jobs by one for each AgeStep, so that LOW is late and not
// starved. LaneAge raises at most 200 jobs of a queue and priority a second.
func (r *Runner) age(ctx context.Context) {
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

// fold adds the counters' deltas up.
func (r *Runner) fold(ctx context.Context) {
	r.every(ctx, r.cfg.Tick, "fold counters", func(ctx context.Context) error {
		return r.tasks.q.TallyFold(ctx)
	})
}
