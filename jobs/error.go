package jobs

import (
	"errors"
	"fmt"
	"strings"
)

// Errors by which callers decide. api/error.go has their HTTP statuses.
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
	// ErrUnavailable: the database did not answer. The write may have been committed or not, and the
	// caller may repeat the request.
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

// TaskEnded is the error of a worker's call about a task that another caller has ended.
type TaskEnded struct{ Status Status }

func (e *TaskEnded) Error() string { return "the task has ended: it is " + string(e.Status) }

// Invalid lists the violations of a request, each with its path.
type Invalid struct {
	Message    string
	Violations []Violation
}

func (e *Invalid) Error() string { return e.Message }

func invalid(path, format string, args ...any) *Invalid {
	text := fmt.Sprintf(format, args...)
	return &Invalid{Message: text, Violations: []Violation{{Path: path, Message: text}}}
}

// Conflict is the error of a request that contradicts the task's state.
type Conflict struct{ Message string }

func (e *Conflict) Error() string { return e.Message }
