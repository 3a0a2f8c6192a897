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
	// ManualDue is the time to the due date of a manual task that names none; default 24 h.
	ManualDue time.Duration
	// OnEventsCommitted is called after each commit that left events; default nothing.
	OnEventsCommitted func()
	// OnCallbacksCommitted is called after each commit that left an event for a callbackUrl; default
	// nothing.
	OnCallbacksCommitted func()
	// CheckCallback rejects a callbackUrl that the dispatcher would not post to; default
	// accepts every well-formed one.
	CheckCallback func(address string) error
	// CheckDefinition rejects what an executor could never run (an expression that does not
	// compile) when a definition is registered; default accepts.
	CheckDefinition func(ExecutionConfig) error
	// ResponseMapper turns the response of another system into an output or a failure, as the
	// executor that sent the request does with a direct answer. Default: the data is the output.
	ResponseMapper ResponseMapper
	// Tracer records a span for each attempt; default nil, and none is recorded. Its id
	// generator must call PresetSpanIDs first.
	Tracer trace.Tracer
	// Queue overrides the retry policy of queue operations while the database is away; what
	// it leaves out is as in retry.QueueOperations.
	Queue retry.Policy
	// Shutdown is called when this process is ordered to stop; default nothing.
	Shutdown func(ShutdownOrder)
	// Clock is this process's; default time.Now. It measures durations. The database's clock
	// decides what time it is.
	Clock func() time.Time
	// Sessions is the pool whose configuration the listening session is opened with. It must
	// lead to the server itself, past any pooler. Default: the engine's pool, if that is a
	// *pgxpool.Pool.
	Sessions *pgxpool.Pool
	// Logger; default slog.Default.
	Logger *slog.Logger
}

// Pool is the database as the engine uses it: a *pgxpool.Pool, or a *pgpool.Pooled.
type Pool interface {
	db.DBTX
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Tasks creates tasks and applies every transition of every task. What belongs to one kind of
// caller hangs from a field. All of it is safe for concurrent use.
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

	// abandonCtx ends when the process no longer waits for a database that is away.
	abandonCtx context.Context //nolint:containedctx // it is the process's, not a call's
	abandon    context.CancelFunc
}

// New returns a Tasks that writes through pool, which must have been opened with
// pgpool.Config.Engine set. Drain ends it.
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

	// A flusher more than one pays where a batch costs the database more than it costs us to
	// make: see docs/decisions/0010-what-limits-each-figure.md.
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
		cfg.Sessions, _ = pool.(*pgxpool.Pool)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}

	return cfg
}

// NewProcessID returns a name for this process: host/pid/random.
func NewProcessID() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s/%d/%s", host, os.Getpid(), uuid.NewString()[:8])
}

// ProcessID names this process.
func (t *Tasks) ProcessID() string { return t.cfg.ProcessID }

// Drain waits until everything handed in so far is written or rejected. Call it after the
// last caller is gone and before the pool is closed. When ctx ends first, writes that wait for
// a database that is away are abandoned: their leases run out, and the work is done again.
func (t *Tasks) Drain(ctx context.Context) {
	defer context.AfterFunc(ctx, t.abandon)()
	t.creates.Drain()
	t.completes.Drain()
	t.transitions.Drain()
}

// Get reads one task of a tenant.
func (t *Tasks) Get(ctx context.Context, tenant string, id uuid.UUID) (db.Task, error) {
	return get(ctx, t.q, tenant, id)
}

// flushMost is how many items a flush takes.
const flushMost = 500

// flushTime bounds one flush, whatever becomes of its callers.
const flushTime = 20 * time.Second

// unset stands for "no time" in an array of times.
var unset = time.Unix(0, 0).UTC()

func orUnset(t *time.Time) time.Time {
	if t == nil {
		return unset
	}
	return t.UTC()
}
