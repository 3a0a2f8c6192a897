package jobs

import (
	"errors"
	"fmt"
	"strings"
)

// Meanings that somebody branches on; package api has the table to HTTP.
var (
	// ErrNotFound: no such task, or one of another tenant.
	ErrNotFound = errors.New("not found")
	// ErrNeverPaused: what is to be resumed was never paused. It is an ErrNotFound.
	ErrNeverPaused = fmt.Errorf("never paused: %w", ErrNotFound)
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

// IllegalTransition names a task's status, the requested one, and those that are possible.
type IllegalTransition struct {
	From  Status
	To    Status
	Legal []Status
}

func (e *IllegalTransition) Error() string {
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
func illegal(from, to Status) *IllegalTransition {
	e := &IllegalTransition{From: from, To: to}
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
