package jobs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// This file distinguishes the errors of an unavailable database from the errors of a statement, and
// repeats operations while the database is unavailable.

// retryLog logs one pause of a retry: at Warn within a round of the policy, at Error between two
// rounds.
type retryLog func(level slog.Level, err error, pause time.Duration)

// retryWhileUnavailable calls op until op succeeds, op fails for a reason of its own, or ctx ends. The
// pauses follow the interface document's row for queue operations: every 5 s, three times. Then an
// error is logged and a new round begins, without end: finished work is never thrown away, and the
// fence decides whether a late write still counts.
func (t *Tasks) retryWhileUnavailable(ctx context.Context, log retryLog, op func(context.Context) error) error {
	return t.retryWhile(ctx, isUnavailable, log, op)
}

// retryWhile is retryWhileUnavailable for the errors that retryable accepts.
func (t *Tasks) retryWhile(ctx context.Context, retryable func(error) bool, log retryLog, op func(context.Context) error) error {
	policy := t.cfg.Queue.Or(retry.QueueOperations)

	// The first call is outside the policy: nearly every call succeeds, and a retrier costs more than
	// the call.
	err := op(ctx)

	for retryable(err) && ctx.Err() == nil {
		first := err // the round's first failure, so that the policy begins with a pause
		retrier := retry.New[struct{}](policy, retry.Options{Retryable: retryable, Paused: func(_ context.Context, err error, pause time.Duration) {
			log(slog.LevelWarn, err, pause)
		}})

		_, err = retrier.Do(ctx, func(ctx context.Context) (struct{}, error) {
			if known := first; known != nil {
				first = nil
				return struct{}{}, known
			}
			return struct{}{}, op(ctx)
		})

		if retryable(err) && ctx.Err() == nil {
			log(slog.LevelError, err, policy.Pause(1))
		}
	}

	return err
}

// retryDeadlock repeats a statement after a deadlock or a serialization failure, which has rolled the
// statement back.
func retryDeadlock[T any](ctx context.Context, statement func() (T, error)) (T, error) {
	for {
		out, err := statement()
		// Without a pause: the rollback has let the other session go on.
		if !isSerializationFailure(err) || ctx.Err() != nil {
			return out, err
		}
	}
}

// isUnavailable reports a database that did not answer or could not serve: the connection was lost, or
// the server is full, starting, read-only or too slow. The statement may have committed.
// pgconn.SafeToRetry is not used: its answer can be yes after a commit.
func isUnavailable(err error) bool {
	if err == nil {
		return false
	}

	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return isConnError(err)
	}

	switch pg.Code[:2] {
	case "21", "22", "23", "42", "44", "54", "P0": // cardinality, data, constraints, syntax and rights, views, limits, our guard
		return false
	}

	return !isSerializationFailure(err)
}

// isConnError reports that no answer came. Every other error on this side (an unencodable payload, an
// undecodable answer) blames its statement.
func isConnError(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	if errors.As(err, &connect) || errors.As(err, &network) {
		return true
	}

	for _, known := range []error{context.DeadlineExceeded, context.Canceled, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, known) {
			return true
		}
	}

	// pgconn and puddle do not export these errors.
	text := err.Error()
	return strings.Contains(text, "conn closed") || strings.Contains(text, "conn busy") || strings.Contains(text, "closed pool")
}

// isSerializationFailure reports a deadlock or a serialization failure: the statement was
// rolled back.
func isSerializationFailure(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && slices.Contains([]string{"40P01", "40001"}, pg.Code)
}

// isLockTimeout reports a statement that waited for a lock, or worked, for too long. The statement was
// rolled back.
func isLockTimeout(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "57014") // lock_timeout, statement_timeout
}

// isDatabaseAbsent reports an unavailable database, or a locked table. The whole batch is then written
// again; a lock timeout without a locked table blames a row.
func isDatabaseAbsent(err error) bool {
	var locked *tableLockError
	return errors.As(err, &locked) || isUnavailable(err) && !isLockTimeout(err)
}

// tableLockError reports that a statement waited for a lock on a table. Every writer waits for such a
// lock, as if the database were unavailable.
type tableLockError struct{ err error }

func (e *tableLockError) Error() string {
	return "a table is locked by another session (pg_locks shows whose): " + e.err.Error()
}

func (e *tableLockError) Unwrap() error { return e.err }
