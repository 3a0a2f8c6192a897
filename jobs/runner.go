package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/batch"
)

// Registration is an executor with the way to run it.
type Registration struct {
	Executor Executor
	// Pure executors have no effect outside: a superseded attempt may run for some milliseconds before
	// the fence rejects its start. The start and the end of a quick attempt are then combined in one
	// commit. Default false: the start is written first.
	Pure bool
	// Assigns: the executor assigns the task to a person, and no attempt begins.
	Assigns bool
	// Ready bounds the running attempts of this process, as of now: 0 while a peer service of the
	// executor is known to be unavailable, a few while the peer service is being tried. Ready is called
	// before each claim of the tasks whose type has this executor by default, and must be quick.
	// Default: the slots.
	Ready func() int
	// Handlers lists the Go handlers of the executor "go". The list may change while the process runs;
	// tasks of other handlers are left to other processes. Handlers is called before each claim, and
	// must be quick. Default: none.
	Handlers func() []string
}

// RunnerConfig configures the work of a process. The zero value is right for production.
type RunnerConfig struct {
	// Executors by the names that definitions use: expression, http, integration … Tasks of other
	// executors are left to other processes.
	Executors map[string]Registration
	// Allocate asks for the resources that a definition requires, before each attempt. A *Failure
	// fails the attempt. Default: no resources, and Job.Allocation is nil.
	Allocate func(context.Context, Job) (Allocation, error)
	// Slots bounds the running tasks of a queue in this process. A task has its slot until its end is
	// written, so that a queue needs hundreds. Default 1000 for automated, 500 for integration and
	// retry, 100 for manual.
	Slots map[string]int
	// Poll is the interval between two looks of a claimer without a wake; default 100 ms.
	Poll time.Duration
	// AgeStep is the time in which a waiting job climbs one priority; default 60 s.
	AgeStep time.Duration
	// Silence is the time without a sign of life after which a process counts as dead; default
	// 30 s.
	Silence time.Duration
	// Tick is the rhythm of heartbeats and of the reaper; default 1 s.
	Tick time.Duration
	// ListenPing is the silence after which the listening session is pinged; default 15 s. The
	// answer may take 5 s.
	ListenPing time.Duration
}

// Runner claims and runs the tasks of the queues in one process.
type Runner struct {
	tasks    *Tasks
	cfg      RunnerConfig
	ability  ability
	claimers []*claimer

	ctx          context.Context // of every executor
	stop         context.CancelCauseFunc
	claims       sync.WaitGroup // claimers
	work         sync.WaitGroup // executors
	orphanedJobs *batch.Batcher[int64]
	misfiled     *batch.Batcher[misfiledJob]

	loading loading
	loads   chan struct{} // holds one: payloads are read by one at a time

	grace              atomic.Pointer[time.Duration] // what an order to stop says of it; nil: nothing
	shutdownOrdersSeen map[string]bool               // orders, by their events; the listener alone reads and writes it

	troubleMu     sync.Mutex
	troubleLogged map[slog.Level]time.Time // guarded by troubleMu
}

// Silence is RunnerConfig.Silence by default.
const Silence = 30 * time.Second

var defaultSlots = map[string]int{LaneAutomated: 1000, LaneIntegration: 500, LaneRetry: 500, LaneManual: 100}

// NewRunner returns the working half of a process. Run starts it.
func NewRunner(tasks *Tasks, cfg RunnerConfig) *Runner {
	if cfg.Poll == 0 {
		cfg.Poll = 100 * time.Millisecond
	}
	if cfg.AgeStep == 0 {
		cfg.AgeStep = time.Minute
	}
	if cfg.Silence == 0 {
		cfg.Silence = Silence
	}
	if cfg.Tick == 0 {
		cfg.Tick = time.Second
	}
	if cfg.ListenPing == 0 {
		cfg.ListenPing = 15 * time.Second
	}

	r := &Runner{tasks: tasks, cfg: cfg, ability: ability{cfg.Executors}, loads: make(chan struct{}, 1), troubleLogged: map[slog.Level]time.Time{}, shutdownOrdersSeen: map[string]bool{}}
	r.ctx, r.stop = context.WithCancelCause(context.Background())
	r.orphanedJobs = batch.New(r.flushOrphanedJobs, batch.Config[int64]{MaxItems: flushMost})
	r.misfiled = batch.New(r.flushMisfiled, batch.Config[misfiledJob]{MaxItems: flushMost})

	for _, l := range lanesOf {
		slots := cfg.Slots[string(l.lane)]
		if slots == 0 {
			slots = defaultSlots[string(l.lane)]
		}

		for _, kind := range l.kinds {
			if !r.ability.takes(kind) {
				continue
			}

			place := &claimer{
				r: r, lane: string(l.lane), kind: kind, slots: slots, ready: cfg.Executors[executorOf[kind]].Ready,
				woken: make(chan struct{}, 1), slotFreed: make(chan struct{}, 1),
			}
			if kind == kindSome {
				place.some = r.ability.some
			}

			r.claimers = append(r.claimers, place)
		}
	}

	return r
}

// executorExitTime is how long an executor may take to return once its context ended.
const executorExitTime = 5 * time.Second

// Run works until ctx ends. Then Run waits for running attempts up to grace, or up to the grace of a
// shutdown order, releases the others, and returns when no attempt runs.
func (r *Runner) Run(ctx context.Context, grace time.Duration) error {
	// Before the first claim: the sweep of another process takes jobs away from an unknown process.
	if err := r.seen(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // stopped before the first claim: the process holds nothing
		}
		return fmt.Errorf("announce the process: %w", err)
	}

	// The loops outlive ctx: running attempts need their heartbeats until the last one has ended.
	loops, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var loopsDone sync.WaitGroup
	r.tasks.notifier.wakes.mu.Lock()

	for _, c := range r.claimers {
		r.tasks.notifier.wakes.local[wakeIndex(c.lane, c.kind)] = c
		r.claims.Go(func() { c.run(ctx) })
	}

	r.tasks.notifier.wakes.mu.Unlock()

	for _, loop := range []func(context.Context){r.announce, r.heartbeats, r.reap, r.sweep, r.jobSignals, r.repairJobs, r.releases, r.workersSeen, r.age, r.fold, r.redrives, r.listen} {
		loopsDone.Go(func() { loop(loops) })
	}

	<-ctx.Done()
	// A shutdown order may name another grace than the settings.
	if ordered := r.grace.Load(); ordered != nil {
		grace = *ordered
	}

	r.close()
	r.claims.Wait()
	finished := make(chan struct{})
	go func() { r.work.Wait(); close(finished) }()

	select {
	case <-finished:
	case <-time.After(grace):
		// Executors see the end of their context, and their attempts are released, not failed.
		r.stop(ErrStopping)
		select {
		case <-finished:
		case <-time.After(executorExitTime):
			r.tasks.cfg.Logger.Warn("executors did not return after their contexts ended; their leases will expire")
		}
	}

	r.stop(nil)
	// The results of the last attempts are still in the batchers.
	r.drain(grace)
	r.orphanedJobs.Drain()
	r.misfiled.Drain()
	end()
	loopsDone.Wait()
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	// Jobs that were claimed and not begun are free for other processes at once.
	if err := r.tasks.q.ExecutorGone(bye, r.tasks.cfg.ProcessID); err != nil {
		r.tasks.cfg.Logger.Debug("the end of the process was not recorded; other processes will notice its silence", "error", err)
	}

	return nil
}

// drain waits up to grace until every added item is written.
func (r *Runner) drain(grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	r.tasks.Drain(ctx)
}

// close ends the claims of this process. Other processes get the wakes from now on.
func (r *Runner) close() {
	r.tasks.notifier.wakes.mu.Lock()
	defer r.tasks.notifier.wakes.mu.Unlock()
	for _, c := range r.claimers {
		r.tasks.notifier.wakes.local[wakeIndex(c.lane, c.kind)] = nil
		// Lock order: wakes.mu, then the mu of a claimer.
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
	}
}

// dispatch runs a claimed job in a goroutine. The slot is freed when the attempt's end is written.
func (r *Runner) dispatch(c *claimer, row db.LaneClaimRow) {
	// LaneClaim has found no waiting task with this job: the task has gone on, was deleted, or the args
	// of the job were changed.
	if row.DefinitionID == nil {
		if row.TaskID == uuid.Nil {
			r.tasks.cfg.Logger.Warn("a job without a task was ended; a task that waits for a job gets another", "job", row.JobID, "lane", c.lane, "kind", c.kind)
		}
		r.endOrphanedJob(row.JobID)
		c.release(1)
		return
	}

	one := &run{r: r, claim: row, claimer: c}
	r.work.Go(func() {
		s, err := r.tasks.settings(r.ctx, *row.Type, taskDefinition(*row.TenantID, *row.OwnDefinition, *row.DefinitionID, *row.Revision), row.Config)
		one.settings = s
		if err != nil {
			one.abandonClaim(err)
			return
		}

		// This process has no such executor or handler: flushMisfiled returns the job for other
		// processes.
		if !r.ability.has(*row.Executor, s.config.Handler) {
			r.misfiled.Add(misfiledJob{row.JobID, someKind(*row.Executor, s.config.Handler)})
			c.release(1)
			return
		}

		one.exec = r.cfg.Executors[*row.Executor]
		one.do()
	})
}

// abandonClaim leaves a claim whose definition cannot be read now. The sweep gives the task a new job.
func (r *run) abandonClaim(err error) {
	r.r.logTrouble("read a definition", err)
	r.release()
}

// endOrphanedJob ends a job whose task has gone on without it.
func (r *Runner) endOrphanedJob(job int64) { r.orphanedJobs.Add(job) }

func (r *Runner) flushOrphanedJobs(batch []int64) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if err := r.tasks.q.JobsEnd(ctx, batch); err != nil {
		r.logTrouble("end orphaned jobs", err)
	}
}

// troubleEvery is the least time between two log lines of one level while the database is unavailable.
// Each loop would log many lines a second.
const troubleEvery = 5 * time.Second

func (r *Runner) logTrouble(what string, err error) { r.report(slog.LevelWarn, what, err) }

// logRetry is logTrouble as a retryLog, with the level of the retry.
func (r *Runner) logRetry(what string) func(slog.Level, error, time.Duration) {
	return func(level slog.Level, err error, _ time.Duration) { r.report(level, what, err) }
}

func (r *Runner) report(level slog.Level, what string, err error) {
	// The process stops, or a caller is gone: no trouble of the database.
	if errors.Is(err, context.Canceled) {
		return
	}

	r.troubleMu.Lock()
	quiet := time.Since(r.troubleLogged[level]) < troubleEvery
	if !quiet {
		r.troubleLogged[level] = time.Now()
	}

	r.troubleMu.Unlock()
	if !quiet {
		r.tasks.cfg.Logger.Log(r.ctx, level, "the engine goes on when the database answers", "doing", what, "error", err)
	}
}

// every calls do at each tick until ctx ends, and retries while the database is away.
func (r *Runner) every(ctx context.Context, tick time.Duration, what string, do func(context.Context) error) {
	for pause(ctx, tick) {
		err := r.tasks.retryWhileUnavailable(ctx, r.logRetry(what), do)
		if err != nil && ctx.Err() == nil {
			r.logTrouble(what, err)
		}
	}
}
