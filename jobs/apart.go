package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/seed-3f7a0631/tes/db"
)

// A batch is one statement, and one row that somebody else has locked, or one item that
// the database refuses, fails all of it. Such a batch is halved until the guilty items
// stand alone; the others are written. An item whose row is locked then waits apart, in a
// goroutine of its own, until the lock is gone or nobody waits for its answer any more.
// The flusher goes on with the next batch meanwhile.

const (
	// briefly is how many statements of halves, and of items that wait apart, are made
	// at a time: each may wait for a lock, and keeps a connection of the pool.
	briefly = 3
	// The pauses of an item that waits apart.
	apartFirst   = 50 * time.Millisecond
	apartLongest = time.Second
	// callerPatience is how long a caller waits for a row that somebody else has locked.
	callerPatience = 10 * time.Second
	// suspectFor is how long a row that was locked is taken for locked still.
	suspectFor = 2 * time.Second
)

// writer is where a statement is made: the engine's pool, or a transaction.
type writer interface {
	db.DBTX
	Begin(ctx context.Context) (pgx.Tx, error)
}

// group is how items of one kind are written, and how each is answered.
type group[T any] struct {
	t    *Tasks
	b    *batcher[T]
	what string // of the items, in the log

	// row names what the item is written to, for the memory of rows that are locked.
	row func(T) any
	// number gives each item, in order, the ids that it has not: every statement of a
	// part of the batch then writes a range of events that no other overlaps.
	number func(ctx context.Context, batch []T) error
	// write makes the statement. Once it has committed, answer answers the batch.
	write func(ctx context.Context, on writer, batch []T) (answer func(context.Context), err error)
	// excuse answers those who are told at once that the database is away, notes of the
	// others that what became of them is unknown, and returns these.
	excuse func(batch []T, err error) (patient []T)
	// waits says until when an item waits for a row that is locked.
	waits func(T) waiting
	// refuse answers an item that is not written.
	refuse func(item T, err error)
}

// waiting is how long an item waits for a locked row. Its zero value waits for ever.
type waiting struct {
	left    <-chan struct{} // closed when its caller is gone; nil: never
	caller  bool            // it has one, who waits for callerPatience
	passing bool            // not at all: whoever handed it in comes by again
}

// suspects remembers which rows were locked a moment ago: what comes for them goes
// apart at once, and fails no batch.
type suspects struct {
	n     atomic.Int64
	mu    sync.Mutex
	until map[any]time.Time // guarded by mu
}

func (s *suspects) add(row any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[any]time.Time{}
	}
	s.until[row] = time.Now().Add(suspectFor)
	s.n.Store(int64(len(s.until)))
}

func (s *suspects) has(row any) bool {
	if s.n.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	until, known := s.until[row]
	return known && time.Now().Before(until)
}

// forget drops what is no suspect any more.
func (s *suspects) forget() {
	if s.n.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for row, until := range s.until {
		if now.After(until) {
			delete(s.until, row)
		}
	}
	s.n.Store(int64(len(s.until)))
}

// stuck reports a statement that ended because it had waited or worked for too long. It
// did nothing.
func stuck(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "57014") // lock_timeout, statement_timeout
}

// absent reports that the database is away, or that a table of it is locked: waiting helps,
// and halving does not.
func absent(err error) bool {
	var locked *tablesLocked
	return errors.As(err, &locked) || away(err) && !stuck(err)
}

// flush writes a batch and answers each of it, here or aside.
func (g *group[T]) flush(batch []T) {
	batch = g.besideSuspects(batch)
	if len(batch) == 0 {
		return
	}
	if left, err := g.try(batch, false); err != nil {
		g.b.aside(func() { g.part(left, err) })
	}
}

// besideSuspects sends those apart whose row was locked a moment ago.
func (g *group[T]) besideSuspects(batch []T) []T {
	g.t.suspects.forget()
	if g.t.suspects.n.Load() == 0 {
		return batch
	}
	free := make([]T, 0, len(batch))
	for _, one := range batch {
		if !g.t.suspects.has(g.row(one)) {
			free = append(free, one)
			continue
		}
		g.b.aside(func() {
			if left, err := g.try([]T{one}, true); err != nil {
				g.alone(left[0], err)
			}
		})
	}
	return free
}

// part writes the halves of a batch that could not be written whole.
func (g *group[T]) part(batch []T, err error) {
	if len(batch) == 1 {
		g.b.aside(func() { g.alone(batch[0], err) })
		return
	}
	middle := len(batch) / 2
	for _, half := range [][]T{batch[:middle], batch[middle:]} {
		if left, err := g.try(half, true); err != nil {
			g.part(left, err)
		}
	}
}

// alone goes on with an item that has failed by itself.
func (g *group[T]) alone(one T, err error) {
	waits := g.waits(one)
	begun := time.Now()
	for pause := apartFirst; ; pause = min(2*pause, apartLongest) {
		if !stuck(err) {
			g.t.cfg.Logger.Error("the database refused one of the "+g.what, "row", g.row(one), "error", err)
			g.refuse(one, err)
			return
		}
		g.t.suspects.add(g.row(one))
		if pause == apartFirst && !waits.passing {
			g.t.cfg.Logger.Warn("one of the "+g.what+" waits apart: its row is locked by somebody else", "row", g.row(one), "error", err)
		}
		if waits.passing || (waits.caller && time.Since(begun) > callerPatience) || !g.t.sitOut(pause, waits.left) {
			g.refuse(one, fmt.Errorf("%w: %w", ErrUnavailable, err))
			return
		}
		left, failed := g.try([]T{one}, true)
		if failed == nil {
			return
		}
		one, err = left[0], failed
	}
}

// sitOut waits, and reports whether there is still somebody for whom.
func (t *Tasks) sitOut(d time.Duration, left <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-left:
	case <-t.givenUp.Done():
	}
	return false
}

// try writes a batch and answers it. A database that is away is sat out. What is left
// comes back with the error that an item of it is to blame for.
func (g *group[T]) try(batch []T, brief bool) (left []T, blame error) {
	write := func() error {
		err := g.once(batch, brief)
		if !absent(err) {
			return err
		}
		if batch = g.excuse(batch, err); len(batch) == 0 {
			return nil
		}
		return err
	}
	err := g.t.insistOn(g.t.givenUp, absent, func(level slog.Level, err error, pause time.Duration) {
		g.t.cfg.Logger.Log(g.t.givenUp, level, g.what+" wait for the database", g.what, len(batch), "error", err, "again_in", pause)
	}, write(), write)
	if !absent(err) {
		return batch, err
	}
	for _, one := range batch { // given up
		g.refuse(one, fmt.Errorf("%w: %w", ErrUnavailable, err))
	}
	return nil, nil
}

// once writes a batch in one commit and answers it, and notes whether the database took it.
// Brief ones wait for no lock longer than LockBriefly says.
func (g *group[T]) once(batch []T, brief bool) error {
	err := g.commit(batch, brief)
	if stuck(err) && g.t.lockedTables(g.t.givenUp) {
		err = &tablesLocked{err}
	}
	if err == nil || absent(err) {
		g.t.writes.note(err)
	}
	return err
}

func (g *group[T]) commit(batch []T, brief bool) error {
	if brief {
		g.t.brief <- struct{}{}
		defer func() { <-g.t.brief }()
	}
	return g.t.write(func(ctx context.Context) error {
		if err := g.number(ctx, batch); err != nil {
			return err
		}
		if !brief {
			answer, err := g.write(ctx, g.t.pool, batch)
			if err == nil {
				answer(ctx)
			}
			return err
		}
		var answer func(context.Context)
		err := pgx.BeginFunc(ctx, g.t.pool, func(tx pgx.Tx) (err error) {
			if err = db.New(tx).LockBriefly(ctx); err != nil {
				return err
			}
			answer, err = g.write(ctx, tx, batch)
			return err
		})
		if err == nil {
			answer(ctx)
		}
		return err
	})
}
