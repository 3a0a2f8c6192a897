package retry

import (
	"errors"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// State says which calls a breaker lets through.
type State string

// The states of a breaker, by failsafe's names.
const (
	Closed   State = "closed"    // every call
	HalfOpen State = "half-open" // one call, whose result decides
	Open     State = "open"      // no call
)

// Status is the state of a breaker at one moment.
type Status struct {
	Name  string
	State State
	Since time.Time
}

// ErrOpen is the error of a call that an open breaker did not let through.
var ErrOpen = circuitbreaker.ErrOpen

// errAbandoned marks a call that was cancelled by its caller.
var errAbandoned = errors.New("the caller gave up")

// excused is a failure that does not count against the partner.
type excused struct{ error }

func (e excused) Unwrap() error { return e.error }

// Excuse marks a failure that does not count against the partner: the partner answered, and
// another service behind the partner failed.
func Excuse(err error) error { return excused{err} }

// Breaker stops calls to a partner that fails too often. Safe for concurrent use.
type Breaker struct {
	name    string
	openFor time.Duration
	breaker circuitbreaker.CircuitBreaker[any]

	mu    sync.Mutex
	since time.Time // of the current state; guarded by mu
}

// NewBreaker returns a closed breaker. changed is called with each change, must not block, and
// may be nil.
func NewBreaker(name string, p Policy, changed func(Status)) *Breaker {
	b := &Breaker{name: name, openFor: p.OpenFor, since: time.Now()}
	b.breaker = circuitbreaker.NewBuilder[any]().
		WithFailureRateThreshold(p.FailureRate, p.MinExecutions, p.Window).
		WithDelay(p.OpenFor).
		WithSuccessThreshold(1).
		HandleIf(b.isFailure).
		OnStateChanged(func(e circuitbreaker.StateChangedEvent) {
			now := Status{name, State(e.NewState.String()), time.Now()}
			b.mu.Lock()
			b.since = now.Since
			b.mu.Unlock()
			if changed != nil {
				changed(now)
			}
		}).
		Build()
	return b
}

// isFailure reports whether the result of a call counts as a failure. A call that its caller
// has cancelled does not, because many tasks that are cancelled together must not open the
// breaker. The one call of a half-open breaker does, because it must not close the breaker
// either.
func (b *Breaker) isFailure(_ any, err error) bool {
	if errors.Is(err, errAbandoned) {
		return b.breaker.IsHalfOpen()
	}

	var other excused
	return err != nil && !errors.As(err, &other)
}

// Status returns the current state. An open breaker whose time is over counts as half-open.
func (b *Breaker) Status() Status {
	b.mu.Lock()
	s := Status{b.name, State(b.breaker.State().String()), b.since}
	b.mu.Unlock()

	// failsafe changes the state with the next call, and that call may wait for this answer.
	if s.State == Open && b.breaker.RemainingDelay() == 0 {
		s.State, s.Since = HalfOpen, s.Since.Add(b.openFor)
	}
	return s
}

// Allow asks for leave for one call. A caller that gets it must report the result with Done.
func (b *Breaker) Allow() bool { return b.breaker.TryAcquirePermit() }

// Done reports the result of a call.
func (b *Breaker) Done(err error) { b.breaker.RecordError(err) }

// Trip opens the breaker whatever the failure rate: the retries are used up.
func (b *Breaker) Trip() { b.breaker.Open() }

// Probe lets the next call through an open breaker: the partner says that it is back.
func (b *Breaker) Probe() {
	if b.breaker.IsOpen() {
		b.breaker.HalfOpen()
	}
}

// RemainingOpen returns how long the breaker stays open; 0 if it is not open.
func (b *Breaker) RemainingOpen() time.Duration { return b.breaker.RemainingDelay() }
