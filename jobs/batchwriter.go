package jobs

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/batch"
)

const (
	// briefStatements bounds the statements for apart items: each may wait for a lock, and
	// keeps a connection of the pool meanwhile.
	briefStatements = 3
	// The pauses between two tries for a locked row.
	rowRetryFirst   = 50 * time.Millisecond
	rowRetryLongest = time.Second
	// callerPatience is how long a caller waits for a row that another session has locked.
	callerPatience = 10 * time.Second
)

// batchWriter writes the batches of a batcher, each in its own commit, and answers every item.
//
// A batch is a single statement, so a single item can fail the whole batch: by a row that
// another session has locked, or by a value that the database refuses. Such a batch is halved
// until the failing items stand alone. An item with a locked row then waits apart, in a
// goroutine of its own, and the flusher continues with the next batch. A batch passes these
// methods, from top to bottom:
//
//	flush          defers items whose row is known to be locked, and writes the rest
//	retryCommit    repeats commit while the database is away
//	commit         assigns ids, executes the statement, commits, answers
//	commitHalves   after an error caused by an item: calls retryCommit for each half
//	awaitRow       tries a single item until its row is free or its caller is gone
type batchWriter[T any] struct {
	t     *Tasks
	b     *batch.Batcher[T]
	items batchItems[T]
}

// batchItems writes and answers the items of a batcher. Each item is answered exactly once: by
// write's answer, by failWaiters or by reject.
type batchItems[T any] interface {
	// plural is the items' name in the log.
	plural() string
	// row identifies the row that an item is written to, for lockedRows.
	row(item T) any
	// assignIDs gives ids to the items without ids, in the order of the batch, so that two
	// statements never write overlapping ranges of events.
	assignIDs(ctx context.Context, batch []T) error
	// write executes the statement. The caller calls answer after the commit.
	write(ctx context.Context, on querier, batch []T) (answer func(context.Context), err error)
	// failWaiters answers the items whose callers must learn at once of an absent database. The
	// remaining items are marked as possibly committed, and returned.
	failWaiters(batch []T, err error) (patient []T)
	// lockWait says how long an item waits for a locked row.
	lockWait(item T) lockWait
	// reject answers an item that is not written.
	reject(item T, err error)
}

// querier executes a statement: the engine's pool, or a transaction.
type querier interface {
	db.DBTX
	Begin(ctx context.Context) (pgx.Tx, error)
}

// lockWait is how long an item waits for a locked row. The zero value waits without end.
type lockWait struct {
	callerGone <-chan struct{} // closed when the item's caller is gone; nil: never
	hasCaller  bool            // the item's caller waits, but only for callerPatience
	skip       bool            // do not wait: the caller will hand the item in again
}

// flush writes a batch and answers each item, now or later.
func (w *batchWriter[T]) flush(batch []T) {
	batch = w.deferLocked(batch)
	if len(batch) == 0 {
		return
	}

	// The halves may wait for locks, one after the other: the flusher must not wait with them.
	if left, err := w.retryCommit(batch, false); err != nil {
		w.b.Aside(func() { w.commitHalves(left, err) })
	}
}

// deferLocked starts a goroutine for each item whose row is known to be locked, and returns
// the remaining items.
func (w *batchWriter[T]) deferLocked(batch []T) []T {
	w.t.lockedRows.expire()
	if w.t.lockedRows.none() {
		return batch
	}

	free := make([]T, 0, len(batch))
	for _, item := range batch {
		if !w.t.lockedRows.has(w.items.row(item)) {
			free = append(free, item)
			continue
		}

		// The row may be free by now: try before the first pause.
		w.b.Aside(func() {
			if left, err := w.retryCommit([]T{item}, true); err != nil {
				w.awaitRow(left[0], err)
			}
		})
	}

	return free
}

// retryCommit commits a batch, and repeats the commit while the database is away. After an
// error caused by an item, left is the unwritten rest of the batch and blame the error. A brief
// statement waits for a lock no longer than LockBriefly allows.
func (w *batchWriter[T]) retryCommit(batch []T, brief bool) (left []T, blame error) {
	log := func(level slog.Level, err error, pause time.Duration) {
		w.t.cfg.Logger.Log(w.t.abandonCtx, level, w.items.plural()+" wait for the database", w.items.plural(), len(batch), "error", err, "again_in", pause)
	}

	err := w.t.retryWhile(w.t.abandonCtx, isDatabaseAbsent, log, func(context.Context) error {
		err := w.commit(batch, brief)
		if !isDatabaseAbsent(err) {
			return err
		}

		// An answered item leaves the batch: the next try writes the remaining items only.
		if batch = w.items.failWaiters(batch, err); len(batch) == 0 {
			return nil
		}

		return err
	})
	if !isDatabaseAbsent(err) {
		return batch, err
	}

	// Drain has given up waiting for the database.
	for _, item := range batch {
		w.items.reject(item, fmt.Errorf("%w: %w", ErrUnavailable, err))
	}

	return nil, nil
}

// commit writes and answers a batch in a single commit, and notes for Writable whether the
// database takes writes.
func (w *batchWriter[T]) commit(batch []T, brief bool) error {
	// Without this bound, apart items that wait for locks would use up the pool.
	if brief {
		w.t.briefSlots <- struct{}{}
		defer func() { <-w.t.briefSlots }()
	}

	err := uncancelled(func(ctx context.Context) error {
		if err := w.items.assignIDs(ctx, batch); err != nil {
			return err
		}

		if brief {
			return w.commitBriefly(ctx, batch)
		}

		// On the pool, write has committed when write returns.
		answer, err := w.items.write(ctx, w.t.pool, batch)
		if err == nil {
			answer(ctx)
		}

		return err
	})

	// A locked table stops every writer, like an absent database: halving would not help.
	if isLockTimeout(err) && w.t.probe.lockedTables(w.t.abandonCtx) {
		err = &tableLockError{err}
	}
	// An error caused by an item is no sign of the database's state.
	if err == nil || isDatabaseAbsent(err) {
		w.t.writes.note(err)
	}

	return err
}

// commitBriefly writes and answers a batch in a transaction with a short lock timeout.
func (w *batchWriter[T]) commitBriefly(ctx context.Context, batch []T) error {
	var answer func(context.Context)
	err := pgx.BeginFunc(ctx, w.t.pool, func(tx pgx.Tx) (err error) {
		if err = db.New(tx).LockBriefly(ctx); err != nil {
			return err
		}
		answer, err = w.items.write(ctx, tx, batch)
		return err
	})
	// Not inside the transaction: the commit itself may fail.
	if err == nil {
		answer(ctx)
	}

	return err
}

// commitHalves commits the halves of a batch whose statement failed with err.
func (w *batchWriter[T]) commitHalves(batch []T, err error) {
	if len(batch) == 1 {
		w.b.Aside(func() { w.awaitRow(batch[0], err) })
		return
	}

	middle := len(batch) / 2
	for _, half := range [][]T{batch[:middle], batch[middle:]} {
		// Brief: the half without the locked row must not wait long for the half with the row.
		if left, err := w.retryCommit(half, true); err != nil {
			w.commitHalves(left, err)
		}
	}
}

// awaitRow commits a single item, whose last try failed with err, as soon as its row is free.
func (w *batchWriter[T]) awaitRow(item T, err error) {
	wait := w.items.lockWait(item)
	begun := time.Now()

	for pause := rowRetryFirst; ; pause = min(2*pause, rowRetryLongest) {
		row := w.items.row(item)
		// The database refused a value: a repetition would fail the same way.
		if !isLockTimeout(err) {
			w.t.cfg.Logger.Error("the database refused one of the "+w.items.plural(), "row", row, "error", err)
			w.items.reject(item, err)
			return
		}

		// Each failed try renews the entry, so that batches leave out further items of the row.
		w.t.lockedRows.add(row)
		if pause == rowRetryFirst && !wait.skip {
			w.t.cfg.Logger.Warn("one of the "+w.items.plural()+" waits: another session has locked its row", "row", row, "error", err)
		}

		if wait.skip || (wait.hasCaller && time.Since(begun) > callerPatience) || !w.t.waitUnlessGone(pause, wait.callerGone) {
			w.items.reject(item, fmt.Errorf("%w: %w", ErrUnavailable, err))
			return
		}

		left, failed := w.retryCommit([]T{item}, true)
		if failed == nil {
			return
		}

		item, err = left[0], failed
	}
}

// waitUnlessGone waits for d and returns true. The result is false, and comes earlier, if the
// caller is gone or Drain has given up waiting for the database.
func (t *Tasks) waitUnlessGone(d time.Duration, callerGone <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()

	select {
	case <-timer.C:
		return true
	case <-callerGone:
	case <-t.abandonCtx.Done():
	}

	return false
}

// uncancelled executes a write within flushTime, independent of its caller's context. A write
// that a deadlock rolled back is repeated at once.
func uncancelled(write func(context.Context) error) error {
	_, err := retryDeadlock(context.Background(), func() (struct{}, error) {
		// Each try has the whole flushTime.
		ctx, cancel := context.WithTimeout(context.Background(), flushTime)
		defer cancel()
		return struct{}{}, write(ctx)
	})
	return err
}
