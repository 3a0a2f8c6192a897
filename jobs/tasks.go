package jobs

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/batch"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// Config configures a Tasks. The zero value is right for production.
type Config struct {
	// ProcessID names this process in leases and events; default NewProcessID.
	ProcessID string
	// ManualDue is the time to the due date of a manual task without a due date; default 24 h.
	ManualDue time.Duration
	// OnEventsCommitted is called after each commit with events; default: no call.
	OnEventsCommitted func()
	// OnCallbacksCommitted is called after each commit with an event for a callbackUrl; default: no
	// call.
	OnCallbacksCommitted func()
	// CheckCallback rejects a callbackUrl outside the reach of the dispatcher; default: every
	// well-formed URL is accepted.
	CheckCallback func(address string) error
	// CheckDefinition rejects, at the registration of a definition, a configuration that no executor
	// can run, such as an expression that does not compile; default: every configuration is accepted.
	CheckDefinition func(ExecutionConfig) error
	// ResponseMapper converts the response of another system into an output or a failure, as the
	// executor converts a direct answer. Default: the data is the output.
	ResponseMapper ResponseMapper
	// Tracer records a span for each attempt; default nil: no spans. The id generator of the tracer
	// must call PresetSpanIDs first.
	Tracer trace.Tracer
	// Queue is the retry policy of queue operations while the database is unavailable. Default of each
	// field: as in retry.QueueOperations.
	Queue retry.Policy
	// Shutdown is called when a shutdown order concerns this process; default: no call.
	Shutdown func(ShutdownOrder)
	// Clock is the clock of this process; default time.Now. Clock measures durations: the time of an
	// event is the database's (clock.go).
	Clock func() time.Time
	// Sessions has the configuration of the listening session, which must reach the server itself, past
	// any pooler. Default: the engine's pool, if that is a *pgxpool.Pool.
	Sessions *pgxpool.Pool
	// Logger; default slog.Default.
	Logger *slog.Logger
}

// Pool is the engine's access to the database: a *pgxpool.Pool, or a *pgpool.Pooled.
type Pool interface {
	db.DBTX
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Tasks creates tasks and applies every transition of every task. Each exported field has the
// operations for one kind of caller. Tasks and its fields are safe for concurrent use.
type Tasks struct {
	Calls       *Calls         // writes under an idempotency key
	Definitions *Definitions   // the registry of task definitions
	Leases      *Leases        // remote workers
	Worklist    *Worklist      // people
	DeadLetters *DeadLetterOps // dead letters
	Pauses      *Pauses        // pauses of queues, definitions and tasks
	Operators   *Operators     // maintenance, shutdowns, what is done to jobs in River UI

	cfg   Config
	pool  Pool // the engine's: see pgpool.Config.Engine
	q     *db.Queries
	ids   *ids
	defs  definitions
	known knownSettings

	creates     *batch.Batcher[*creation]
	completes   *batch.Batcher[*completion]
	transitions *batch.Batcher[*transition]

	writes     writable
	lockedRows lockedRows
	briefSlots chan struct{} // holds one for each brief statement under way

	clock    *clock
	notifier *notifier
	running  runRegistry
	probe    writeProbe
	workers  workersSeen

	// abandonCtx ends when the process no longer waits for an unavailable database.
	abandonCtx context.Context //nolint:containedctx // it is the process's, not a call's
	abandon    context.CancelFunc
}

// New returns a Tasks that writes through pool. Open pool with pgpool.Config.Engine set, and end with
// Drain.
func New(pool Pool, cfg Config) *Tasks {
	cfg = cfg.withDefaults(pool)
	q := db.New(pool)
	t := &Tasks{
		cfg: cfg, pool: pool, q: q, ids: &ids{q: q}, defs: definitions{q: q},
		briefSlots: make(chan struct{}, briefStatements),
		clock:      &clock{wall: cfg.Clock, log: cfg.Logger},
		running:    runRegistry{runs: map[uuid.UUID]*run{}},
	}

	t.abandonCtx, t.abandon = context.WithCancel(context.Background()) //nolint:gosec // Drain calls it

	// A second flusher pays where the database takes longer for a batch than this process: see
	// docs/decisions/0010-what-limits-each-figure.md.
	t.creates = batch.New(t.flushCreates, batch.Config[*creation]{MaxItems: flushMost, Reserve: 2, Size: (*creation).bytes})
	t.completes = batch.New(t.flushCompletes, batch.Config[*completion]{MaxItems: flushMost, Flushers: 2, Backlog: 300, Reserve: 3, Size: (*completion).bytes})
	t.transitions = batch.New(t.flushTransitions, batch.Config[*transition]{MaxItems: flushMost, Flushers: 2, Backlog: 300, Reserve: 3, Size: (*transition).bytes})

	t.notifier = &notifier{t: t}
	t.probe = writeProbe{t}
	t.Calls = &Calls{t}
	t.Definitions = &Definitions{t}
	t.Leases = newLeases(t)
	t.Worklist = &Worklist{t}
	t.DeadLetters = &DeadLetterOps{t}
	t.Pauses = &Pauses{t}
	t.Operators = &Operators{t}
	return t
}

func (cfg Config) withDefaults(pool Pool) Config {
	if cfg.ProcessID == "" {
		cfg.ProcessID = NewProcessID()
	}
	if cfg.ManualDue == 0 {
		cfg.ManualDue = 24 * time.Hour
	}
	if cfg.ResponseMapper == nil {
		cfg.ResponseMapper = defaultResponseMapper{}
	}
	if cfg.OnEventsCommitted == nil {
		cfg.OnEventsCommitted = func() {}
	}
	if cfg.OnCallbacksCommitted == nil {
		cfg.OnCallbacksCommitted = func() {}
	}
	if cfg.Shutdown == nil {
		cfg.Shutdown = func(ShutdownOrder) {}
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Sessions == nil {
		// Still nil behind a pooler: a process with a Runner must then set Sessions, for its listener.
		cfg.Sessions, _ = pool.(*pgxpool.Pool)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}

	return cfg
}

// NewProcessID returns a name for this process: host/pid/random.
func NewProcessID() string {
	// A restarted container may have the same host and pid; the random part keeps its leases apart from
	// the former process's.
	host, _ := os.Hostname()
	return fmt.Sprintf("%s/%d/%s", host, os.Getpid(), uuid.NewString()[:8])
}

// ProcessID names this process.
func (t *Tasks) ProcessID() string { return t.cfg.ProcessID }

// Drain waits until every added item is written or rejected. Call Drain after the last caller has
// ended, and before the pool is closed. If ctx ends first, writes that wait for an unavailable database
// are abandoned: the leases run out, and the work is repeated.
func (t *Tasks) Drain(ctx context.Context) {
	defer context.AfterFunc(ctx, t.abandon)()
	t.creates.Drain()
	t.completes.Drain()
	t.transitions.Drain()
}

// Get reads a task of a tenant.
func (t *Tasks) Get(ctx context.Context, tenant string, id uuid.UUID) (db.Task, error) {
	return get(ctx, t.q, tenant, id)
}

// flushMost is the largest number of items of a flush.
const flushMost = 500

// flushTime bounds a flush. The contexts of the callers do not end a flush.
const flushTime = 20 * time.Second

// unset stands for "no time" in an array of times.
var unset = time.Unix(0, 0).UTC()

func orUnset(t *time.Time) time.Time {
	if t == nil {
		return unset
	}
	return t.UTC()
}
