package jobs

import (
	"errors"
	"fmt"
	"strings"
)

// Errors by which callers decide. api/error.go has their HTTP statuses.
var (
	// ErrNotFound: no such task, or a task of another tenant.
	ErrNotFound = errors.New("not found")
	// ErrNeverPaused: a resume without a pause. Wraps ErrNotFound.
	ErrNeverPaused = fmt.Errorf("never paused: %w", ErrNotFound)
	// ErrStale: If-Match names another version than the newest.
	ErrStale = errors.New("the version has changed")
	// ErrKeyReused: the idempotency key was used with another body.
	ErrKeyReused = errors.New("the idempotency key was used with another body")
	// ErrLeaseLost: the attempt was superseded, or has ended.
	ErrLeaseLost = errors.New("lease lost")
	// ErrForbidden: this person may not claim the task, or may not end the task.
	ErrForbidden = errors.New("the task is not this person's")
	// ErrUnavailable: the database did not answer. The write may have been committed or not, and the
	// caller may repeat the request.
	ErrUnavailable = errors.New("the database is not available")
)

// IllegalTransition names a task's status, the requested status, and the possible ones.
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

// illegal lists no legal status for a task that has ended, although a redrive leads back to PENDING:
// no caller requests a redrive by a status.
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
