// Package jobs is the life of a task: it makes every move, runs the lanes, keeps
// the leases, and is the only package that knows River.
//
//	          create
//	            │
//	            ▼     claim          result
//	┌────────▶ PENDING ─────▶ RUNNING ─────▶ COMPLETED
//	│ retry,    │  │            │ │ │
//	│ release   │  │ assign     │ │ └──────▶ FAILED, TIMED_OUT ──▶ dead letter
//	└───────────│──│────────────┘ │              │ redrive
//	            │  ▼              │              ▼
//	            │ ASSIGNED ◀──────┘           PENDING
//	            ▼
//	        CANCELLED (from any state that is not an end)
//
// The row in table task is the truth. A river_job row is a delivery token, one
// for each attempt, and every write is fenced by the token and the attempt: who
// wakes late changes nothing. A move is one commit of the row, its event and its
// job, and many moves share a commit (package batch).
package jobs

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/batch"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// Config says how tasks are kept. The zero value is right for production.
type Config struct {
	// ProcessID names this process in leases and events; default NewProcessID.
	ProcessID string
	// ManualDue is the due date of a manual task without one; default 24 h.
	ManualDue time.Duration
	// Told is called after a commit that left events; default nothing.
	Told func()
	// CalledBack is called after a commit that left something to tell a callbackUrl;
	// default nothing.
	CalledBack func()
	// CheckCallback refuses a callbackUrl that nobody would post to; default accepts
	// what is well formed.
	CheckCallback func(address string) error
	// CheckDefinition refuses what an executor could never run (a broken
	// expression), when a definition is registered; default accepts.
	CheckDefinition func(ExecutionConfig) error
	// Answers reads what another system answered by event, as the executor that asked
	// would have read it at once; default takes it as it is.
	Answers Answers
	// Tracer tells of attempts; default nil, and nothing is told. Its ids must be made
	// with the help of WishedIDs.
	Tracer trace.Tracer
	// Queue is how a queue operation is repeated while the database is away; what it
	// leaves open is as in retry.QueueOperations.
	Queue retry.Policy
	// Shutdown is called when the process was ordered to stop; default nothing.
	Shutdown func(ShutdownOrder)
	// Clock is this process's; default time.Now. It measures how long something took.
	// What time it is, the database says.
	Clock func() time.Time
	// Sessions is the pool whose configuration the listening session is made with. It must
	// lead to the server itself, past any pooler. Default: the engine's pool, where that is
	// a *pgxpool.Pool.
	Sessions *pgxpool.Pool
	// Logger; default slog.Default.
	Logger *slog.Logger
}

// Pool is what moves are made with: a *pgxpool.Pool, or a *pgpool.Pooled.
type Pool interface {
	db.DBTX
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Tasks makes every move of every task. It is safe for concurrent use.
type Tasks struct {
	cfg   Config
	pool  Pool // the engine's: see pgpool.Config.Engine
	q     *db.Queries
	ids   *ids
	defs  definitions
	known knownSettings

	creates     *batch.Batcher[*creation]
	completes   *batch.Batcher[*completion]
	transitions *batch.Batcher[*transition]

	tokens       tokens
	requestLocks requestLocks
	workers      workersSeen
	draining     chan struct{} // closed by Rest
	drainOnce    sync.Once

	writes     writable
	clock      *clock
	lockedRows lockedRows
	briefSlots chan struct{} // has room for briefly

	wakes wakes
	// abandonCtx ends when nobody waits for the database any more.
	abandonCtx context.Context //nolint:containedctx // it is the process's, not a call's
	abandon    context.CancelFunc

	mu   sync.Mutex
	runs map[uuid.UUID]*run // what runs in this process; guarded by mu
}

// New makes the engine's hands. pool must have been opened with Engine set.
func New(pool Pool, cfg Config) *Tasks {
	if cfg.ProcessID == "" {
		cfg.ProcessID = NewProcessID()
	}
	if cfg.ManualDue == 0 {
		cfg.ManualDue = 24 * time.Hour
	}
	if cfg.Answers == nil {
		cfg.Answers = plainAnswers{}
	}
	if cfg.Told == nil {
		cfg.Told = func() {}
	}
	if cfg.Shutdown == nil {
		cfg.Shutdown = func(ShutdownOrder) {}
	}
	if cfg.CalledBack == nil {
		cfg.CalledBack = func() {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Sessions == nil {
		cfg.Sessions, _ = pool.(*pgxpool.Pool)
	}
	q := db.New(pool)
	t := &Tasks{cfg: cfg, pool: pool, q: q, ids: &ids{q: q}, runs: map[uuid.UUID]*run{}, tokens: tokens{q: q}, requestLocks: requestLocks{taken: map[requestKey]chan struct{}{}}, draining: make(chan struct{}), briefSlots: make(chan struct{}, briefStatements), clock: &clock{wall: cfg.Clock, log: cfg.Logger}}
	t.defs.q = q
	t.abandonCtx, t.abandon = context.WithCancel(context.Background()) //nolint:gosec // Drain calls it
	t.creates = batch.New(t.flushCreates, batch.Config[*creation]{MaxItems: flushMost, Reserve: 2, Size: (*creation).bytes})
	t.completes = batch.New(t.flushCompletes, batch.Config[*completion]{MaxItems: flushMost, Flushers: 2, Backlog: 300, Reserve: 3, Size: (*completion).bytes})
	t.transitions = batch.New(t.flushTransitions, batch.Config[*transition]{MaxItems: flushMost, Flushers: 2, Backlog: 300, Reserve: 3, Size: (*transition).bytes})
	return t
}

// NewProcessID makes a name for this process.
func NewProcessID() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s/%d/%s", host, os.Getpid(), uuid.NewString()[:8])
}

// ProcessID names this process.
func (t *Tasks) ProcessID() string { return t.cfg.ProcessID }

// Drain waits until every move handed in so far is settled. Call it after the
// last caller is gone and before the pool is closed. When ctx ends first, what
// waits for a database that is away is given up: leases run out, and the work is
// done again.
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

// flushTime bounds one flush. Moves are written whatever became of the caller.
const flushTime = 20 * time.Second

// unset stands for "no time" in an array of times.
var unset = time.Unix(0, 0).UTC()

func orUnset(t *time.Time) time.Time {
	if t == nil {
		return unset
	}
	return t.UTC()
}
