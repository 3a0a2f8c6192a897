package jobs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// The result of the engine's last write shows whether the database takes writes: every flush records
// its result, and so does the process's sign of life, once a second. A probe costs a statement only
// without a recent write, or after a failed write:
//
//	recent write        no statement
//	idle                TaskCreate without a task: takes the same locks, and fails on a
//	                    read-only server
//	failed write        creates a task, rolls back, and commits a sign of life

const (
	// writtenLately is how long a committed write counts as proof.
	writtenLately = 2 * time.Second
	// lookedLately is how long the result of a probe is shared.
	lookedLately = 500 * time.Millisecond
	// probeBytes is the size of the probe's input: more than the free space in a table, so that a full
	// disk shows.
	probeBytes = 64 << 10
)

// NotWritable says why the database takes no writes.
type NotWritable struct {
	// Why is a short reason for any reader: without address, name or text of the server.
	Why string
	err error
}

func (e *NotWritable) Error() string { return "the database takes no writes: " + e.Why }

// Unwrap returns the error of the server or the network.
func (e *NotWritable) Unwrap() error { return e.err }

// writable is the last known result of writes to the database.
type writable struct {
	mu     sync.Mutex
	wrote  time.Time // when the last write committed; guarded by mu
	failed error     // of a write after that; nil for none; guarded by mu

	probing sync.Mutex // one at a time asks the database
	looked  time.Time  // when it was asked; guarded by probing
	found   error      // what it answered; guarded by probing
}

// note records the result of a write: nil, or the error of a database that is away.
func (w *writable) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed = err; err == nil {
		w.wrote = time.Now()
	}
}

func (w *writable) known() (lately bool, failed error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed == nil && time.Since(w.wrote) < writtenLately, w.failed
}

// Writable reports whether the database takes writes: nil, or a *NotWritable. The database is asked
// only if the last write does not show the answer; concurrent callers share one probe.
func (t *Tasks) Writable(ctx context.Context) error {
	if lately, _ := t.writes.known(); lately {
		return nil
	}

	w := &t.writes
	w.probing.Lock()
	defer w.probing.Unlock()
	// Again: during the wait for probing, a flush or another probe may have written.
	lately, failed := w.known()
	if lately {
		return nil
	}
	if time.Since(w.looked) < lookedLately {
		return w.found
	}

	var err error
	if failed == nil {
		err = t.probe.locks(ctx)
	} else {
		err = t.probe.write(ctx)
	}

	if err != nil {
		err = &NotWritable{Why: whyNotWritable(err), err: err}
	} else if failed != nil {
		// The sign of life of the probe was committed.
		w.note(nil)
	}

	w.looked, w.found = time.Now(), err
	return err
}

// writeProbe asks the database whether it takes writes.
type writeProbe struct{ t *Tasks }

// locks executes the statement that creates tasks, without a task.
func (p *writeProbe) locks(ctx context.Context) error {
	if _, err := p.t.q.TaskCreate(ctx, createParams(nil)); err != nil {
		return fmt.Errorf("execute TaskCreate without a task: %w", err)
	}
	return nil
}

// errRolledBack rolls the transaction of a probe back.
var errRolledBack = errors.New("rolled back")

// write creates a task and rolls it back, then commits a sign of life.
func (p *writeProbe) write(ctx context.Context) error {
	noise := make([]byte, probeBytes/2) // it must not shrink
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}

	row, err := newTask(Request{
		TaskDefinitionID: "probe", WorkflowID: "probe", TaskType: Automated,
		Input: fmt.Appendf(nil, `{"noise": "%s"}`, hex.EncodeToString(noise)),
	}, nil, "noop")
	if err != nil {
		return err
	}
	one := &creation{task: row, kind: KindAutomated, timeout: time.Minute, actor: p.t.cfg.ProcessID}

	err = pgx.BeginFunc(ctx, p.t.pool, func(tx pgx.Tx) error {
		batch := []*creation{one}
		if err := (createItems{p.t}).assignIDs(ctx, batch); err != nil {
			return err
		}

		if _, err := db.New(tx).TaskCreate(ctx, createParams(batch)); err != nil {
			return fmt.Errorf("create a task: %w", err)
		}

		return errRolledBack
	})
	if err != nil && !errors.Is(err, errRolledBack) {
		return err
	}

	// The rollback proves no commit; the sign of life is committed.
	if err := p.t.seen(ctx, db.ExecutorSeenParams{ExecutorID: p.t.cfg.ProcessID}); err != nil {
		return fmt.Errorf("record that the process is alive: %w", err)
	}

	return nil
}

// lockedTables reports whether a timed-out statement waited for a table, and not for a row: then every
// write waits. TaskCreate without a task locks tables and no rows.
func (p *writeProbe) lockedTables(ctx context.Context) bool {
	err := pgx.BeginFunc(ctx, p.t.pool, func(tx pgx.Tx) error {
		q := db.New(tx)
		if err := q.LockBriefly(ctx); err != nil {
			return err
		}
		_, err := q.TaskCreate(ctx, createParams(nil))
		return err
	})

	return isLockTimeout(err)
}

// whyNotWritable returns the reason for any reader.
func whyNotWritable(err error) string {
	var refused *pgconn.PgError
	var locked *tableLockError
	switch {
	case errors.Is(err, pgpool.ErrReadOnly):
		return "it is read-only, or a standby"
	case errors.As(err, &locked):
		return "a lock on its tables is held by another session"
	case !errors.As(err, &refused):
		return "it does not answer"
	}

	switch refused.Code {
	case "25006":
		return "it is read-only, or a standby"
	case "53100":
		return "its disk is full"
	case "53200":
		return "it is out of memory"
	case "53300":
		return "it has no connection left"
	case "55P03":
		return "a lock on its tables is held by another session"
	case "57014":
		return "a statement took too long"
	case "57P01", "57P02", "57P03":
		return "it stops or starts"
	case "28000", "28P01":
		return "it refuses our login"
	}

	return "SQLSTATE " + refused.Code
}
