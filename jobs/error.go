package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Meanings that somebody branches on; package api has the table to HTTP.
var (
	// ErrNotFound: no such task, or one of another tenant.
	ErrNotFound = errors.New("not found")
	// ErrStale: If-Match names a version that is no longer the newest.
	ErrStale = errors.New("the version has changed")
	// ErrKeyReused: the idempotency key was used with another body.
	ErrKeyReused = errors.New("the idempotency key was used with another body")
	// ErrLeaseLost: the attempt is no longer the one that runs.
	ErrLeaseLost = errors.New("lease lost")
	// ErrForbidden: the task is not this person's to take, or to end.
	ErrForbidden = errors.New("the task is not this person's")
	// ErrUnavailable: the database did not answer; nothing is known to have
	// happened, and the same request may be sent again.
	ErrUnavailable = errors.New("the database is not available")
)

// IllegalMove says where a task stands and where it may go.
type IllegalMove struct {
	From  Status
	To    Status
	Legal []Status
}

func (e *IllegalMove) Error() string {
	if len(e.Legal) == 0 {
		return fmt.Sprintf("a task that is %s cannot become %s: it has ended", e.From, e.To)
	}
	names := make([]string, len(e.Legal))
	for i, s := range e.Legal {
		names[i] = string(s)
	}
	return fmt.Sprintf("a task that is %s cannot become %s; it may become %s", e.From, e.To, strings.Join(names, ", "))
}

// illegal leaves out the way back from an end: only a redrive takes it.
func illegal(from, to Status) *IllegalMove {
	e := &IllegalMove{From: from, To: to}
	if !from.Terminal() {
		e.Legal = Legal(from)
	}
	return e
}

// TaskEnded is a worker's word about a task that has ended without it.
type TaskEnded struct{ Status Status }

func (e *TaskEnded) Error() string { return "the task has ended: it is " + string(e.Status) }

// Invalid says what is wrong with a request, path by path.
type Invalid struct {
	Message    string
	Violations []Violation
}

func (e *Invalid) Error() string { return e.Message }

func invalid(path, format string, args ...any) *Invalid {
	text := fmt.Sprintf(format, args...)
	return &Invalid{Message: text, Violations: []Violation{{Path: path, Message: text}}}
}

// Conflict is a request that contradicts what the task is.
type Conflict struct{ Message string }

func (e *Conflict) Error() string { return e.Message }

// away reports an error that does not blame what was written: the connection was
// lost, or the server is full, starting, read-only or too slow. After it, whether
// the statement committed is unknown; pgconn.SafeToRetry is not asked, for it can
// say yes to a commit that happened.
func away(err error) bool {
	if err == nil {
		return false
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return unreachable(err)
	}
	switch pg.Code[:2] {
	case "21", "22", "23", "42", "44", "54", "P0": // cardinality, data, constraints, syntax and rights, views, limits, our guard
		return false
	}
	return !again(err)
}

// unreachable reports that no answer came. What is neither this nor the server's
// word (a payload that cannot be written, an answer that cannot be read) blames
// what was handed in.
func unreachable(err error) bool {
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
	// pgconn and puddle keep these to themselves.
	text := err.Error()
	return strings.Contains(text, "conn closed") || strings.Contains(text, "conn busy") || strings.Contains(text, "closed pool")
}

// again reports a deadlock or a serialization failure: the statement did nothing.
func again(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && slices.Contains([]string{"40P01", "40001"}, pg.Code)
}
