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

// This file tells the errors of a database that is unavailable from those that blame a
// statement, and repeats operations while it is.

// retryLog logs one pause of a retry: at Warn before the policy is used up, at Error when it
// is and a new round begins.
type retryLog func(level slog.Level, err error, pause time.Duration)

// retryWhileUnavailable calls op until it succeeds, fails for a reason of its own, or ctx
// ends. It pauses as the interface document's row for queue operations says: every 5 s, three
// times. Then it logs an error and begins a new round, without end: finished work is never
// thrown away, and the fence decides whether a late write still counts.
func (t *Tasks) retryWhileUnavailable(ctx context.Context, log retryLog, op func(context.Context) error) error {
	return t.retryWhile(ctx, isUnavailable, log, op)
}

// retryWhile is retryWhileUnavailable for the errors that retryable accepts.
func (t *Tasks) retryWhile(ctx context.Context, retryable func(error) bool, log retryLog, op func(context.Context) error) error {
	policy := t.cfg.Queue.Or(retry.QueueOperations)

	// The first call stands outside the policy: nearly all succeed, and a retrier costs more
	// than the call.
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

// retryDeadlock repeats a statement that a deadlock or a serialization failure rolled back.
func retryDeadlock[T any](ctx context.Context, statement func() (T, error)) (T, error) {
	for {
		out, err := statement()
		if !isSerializationFailure(err) || ctx.Err() != nil {
			return out, err
		}
	}
}

// isUnavailable reports that the database did not answer or could not serve: the connection
// was lost, or the server is full, starting, read-only or too slow. Whether the statement
// committed is unknown. pgconn.SafeToRetry is not asked: it can say yes to a commit that
// happened.
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

// isConnError reports that no answer came. Every other error that is not the server's (a
// payload that cannot be encoded, an answer that cannot be decoded) blames its statement.
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

// isLockTimeout reports a statement that waited for a lock, or worked, for too long. It was
// rolled back.
func isLockTimeout(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "57014") // lock_timeout, statement_timeout
}

// isDatabaseAbsent reports that the database is unavailable, or that one of its tables is
// locked: a batch that failed so is written again whole. isLockTimeout alone blames a row.
func isDatabaseAbsent(err error) bool {
	var locked *tableLockError
	return errors.As(err, &locked) || isUnavailable(err) && !isLockTimeout(err)
}

// tableLockError is a statement's wait for a lock on a table. Every writer waits for it, as
// if the database were away.
type tableLockError struct{ err error }

func (e *tableLockError) Error() string {
	return "a table is locked by another session (pg_locks shows whose): " + e.err.Error()
}

func (e *tableLockError) Unwrap() error { return e.err }
