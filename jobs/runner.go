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

// Registration is an executor and how it is to be run.
type Registration struct {
	Executor Executor
	// Pure executors have no effect outside: a stale token may run one for some
	// milliseconds before the fence says so. For these, start and end share a
	// commit when they are quick. Default false: the start is written first.
	Pure bool
	// Assigns: it hands the task to a person instead of doing it, and no attempt
	// begins.
	Assigns bool
	// Ready says how many attempts may be under way at once in this process, just now:
	// none while what the executor needs is known to be away, a few while that is
	// being tried. It is asked before each claim of the tasks whose type has this
	// executor by default, so it must be quick. Default: as many as there are places.
	Ready func() int
	// Handlers lists the Go handlers that the executor "go" has, by the names that
	// definitions use; it may change while the process runs. Tasks of other handlers are
	// left to other processes. Asked before each claim, so it must be quick. Default: none.
	Handlers func() []string
}

// RunnerConfig says what a process works. The zero value is right for production.
type RunnerConfig struct {
	// Executors by the name that definitions use: expression, http, integration … What
	// this process lacks it leaves to others, and what all lack waits.
	Executors map[string]Registration
	// Allocate asks for the resources that a definition requires, before each attempt.
	// A *Failure fails the attempt. Default: nobody is asked, and Job.Allocation is nil.
	Allocate func(context.Context, Job) (Allocation, error)
	// Slots bounds how many tasks of a lane run at once in this process. A place
	// is held until the end of its task is written, so a lane needs hundreds.
	// Default 1000 for automated, 500 for integration and retry, 100 for manual.
	Slots map[string]int
	// Poll is how often a lane looks without being woken; default 100 ms.
	Poll time.Duration
	// AgeStep is how long a waiting job takes to climb one priority; default 60 s.
	AgeStep time.Duration
	// Silence is after how long a process that is not heard of is taken for dead;
	// default 30 s.
	Silence time.Duration
	// Tick is the rhythm of heartbeats and of the reaper; default 1 s.
	Tick time.Duration
	// ListenPing is after how long a silence the listening session is asked whether it is
	// there still; default 15 s. It has 5 s to answer.
	ListenPing time.Duration
}

// Runner works the lanes in one process.
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
	others       *batch.Batcher[misfiled]

	loading loading
	loads   chan struct{} // holds one: payloads are read by one at a time

	grace              atomic.Pointer[time.Duration] // what an order to stop says of it; nil: nothing
	shutdownOrdersSeen map[string]bool               // orders, by their events; the listener alone reads and writes it

	troubleMu   sync.Mutex
	troubleSaid map[slog.Level]time.Time // guarded by troubleMu
}

// Silence is RunnerConfig.Silence by default.
const Silence = 30 * time.Second

var defaultSlots = map[string]int{LaneAutomated: 1000, LaneIntegration: 500, LaneRetry: 500, LaneManual: 100}

// NewRunner makes a process's working half. Run starts it.
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

	r := &Runner{tasks: tasks, cfg: cfg, ability: ability{cfg.Executors}, loads: make(chan struct{}, 1), troubleSaid: map[slog.Level]time.Time{}, shutdownOrdersSeen: map[string]bool{}}
	r.ctx, r.stop = context.WithCancelCause(context.Background())
	r.orphanedJobs = batch.New(r.flushOrphanedJobs, batch.Config[int64]{MaxItems: flushMost})
	r.others = batch.New(r.flushMisfiled, batch.Config[misfiled]{MaxItems: flushMost})

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

// obeyTime is how long an executor may take to return once its context ended.
const obeyTime = 5 * time.Second

// Run works until ctx ends, then lets what runs finish for up to grace (or what an
// order to stop says instead), gives the rest back, and returns when nothing runs any
// more.
func (r *Runner) Run(ctx context.Context, grace time.Duration) error {
	if err := r.seen(ctx); err != nil {
		return fmt.Errorf("announce the process: %w", err)
	}

	loops, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var loopsDone sync.WaitGroup
	r.tasks.notifier.wakes.mu.Lock()

	for _, c := range r.claimers {
		r.tasks.notifier.wakes.local[wakeIndex(c.lane, c.kind)] = c
		r.claims.Go(func() { c.run(ctx) })
	}

	r.tasks.notifier.wakes.mu.Unlock()

	for _, loop := range []func(context.Context){r.announce, r.beats, r.reap, r.sweep, r.signals, r.reconcile, r.releases, r.workersSeen, r.age, r.fold, r.redrives, r.listen} {
		loopsDone.Go(func() { loop(loops) })
	}

	<-ctx.Done()
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
		r.stop(ErrStopping)
		select {
		case <-finished:
		case <-time.After(obeyTime):
			r.tasks.cfg.Logger.Warn("executors do not obey their contexts; their leases run out")
		}
	}

	r.stop(nil)
	r.drain(grace)
	r.orphanedJobs.Drain()
	r.others.Drain()
	end()
	loopsDone.Wait()
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	// Whatever we had claimed and not begun is free for others at once.
	if err := r.tasks.q.ExecutorGone(bye, r.tasks.cfg.ProcessID); err != nil {
		r.tasks.cfg.Logger.Debug("the process did not say goodbye; others notice its silence", "error", err)
	}

	return nil
}

// drain waits for what is handed in, for a while.
func (r *Runner) drain(grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	r.tasks.Drain(ctx)
}

// close stops claiming and sends wake-ups elsewhere.
func (r *Runner) close() {
	r.tasks.notifier.wakes.mu.Lock()
	defer r.tasks.notifier.wakes.mu.Unlock()
	for _, c := range r.claimers {
		r.tasks.notifier.wakes.local[wakeIndex(c.lane, c.kind)] = nil
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
	}
}

// dispatch runs one claimed job; its place is freed when its end is written.
func (r *Runner) dispatch(c *claimer, row db.LaneClaimRow) {
	if row.DefinitionID == nil {
		if row.TaskID == uuid.Nil {
			r.tasks.cfg.Logger.Warn("a job that names no task is ended; whoever waits for it gets another", "job", row.JobID, "lane", c.lane, "kind", c.kind)
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

		if !r.ability.has(*row.Executor, s.config.Handler) {
			r.others.Add(misfiled{row.JobID, someKind(*row.Executor, s.config.Handler)})
			c.release(1)
			return
		}

		one.exec = r.cfg.Executors[*row.Executor]
		one.do()
	})
}

// abandonClaim is a task whose definition cannot be read just now: the claim is left
// as it is, and the sweep gives it a new token.
func (r *run) abandonClaim(err error) {
	r.r.logTrouble("read a definition", err)
	r.release()
}

// endOrphanedJob ends a token whose task has gone on without it.
func (r *Runner) endOrphanedJob(job int64) { r.orphanedJobs.Add(job) }

func (r *Runner) flushOrphanedJobs(batch []int64) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if err := r.tasks.q.JobsEnd(ctx, batch); err != nil {
		r.logTrouble("end stale jobs", err)
	}
}

// troubleEvery spaces the log lines of a database that is away: each loop would
// say it many times a second.
const troubleEvery = 5 * time.Second

func (r *Runner) logTrouble(what string, err error) { r.report(slog.LevelWarn, what, err) }

// logRetry is logTrouble as a retryLog: a round that is used up is louder.
func (r *Runner) logRetry(what string) func(slog.Level, error, time.Duration) {
	return func(level slog.Level, err error, _ time.Duration) { r.report(level, what, err) }
}

func (r *Runner) report(level slog.Level, what string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}

	r.troubleMu.Lock()
	quiet := time.Since(r.troubleSaid[level]) < troubleEvery
	if !quiet {
		r.troubleSaid[level] = time.Now()
	}

	r.troubleMu.Unlock()
	if !quiet {
		r.tasks.cfg.Logger.Log(r.ctx, level, "the engine goes on when the database answers", "doing", what, "error", err)
	}
}

// every calls do at each tick, until ctx ends.
func (r *Runner) every(ctx context.Context, tick time.Duration, what string, do func(context.Context) error) {
	for pause(ctx, tick) {
		err := r.tasks.retryWhileUnavailable(ctx, r.logRetry(what), do)
		if err != nil && ctx.Err() == nil {
			r.logTrouble(what, err)
		}
	}
}
