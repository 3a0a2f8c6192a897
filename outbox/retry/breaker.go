package retry

import (
	"errors"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// State is what a breaker lets through.
type State string

// The states, by failsafe's names.
const (
	Closed   State = "closed"    // everything
	HalfOpen State = "half-open" // one try, which decides
	Open     State = "open"      // nothing
)

// Status is a breaker at one moment.
type Status struct {
	Name  string
	State State
	Since time.Time
}

// ErrOpen is a try that an open breaker did not let through.
var ErrOpen = circuitbreaker.ErrOpen

// errAbandoned marks a try that ended because its caller did not want it any more.
var errAbandoned = errors.New("the caller gave up")

// excused is a failure that is not the partner's.
type excused struct{ error }

func (e excused) Unwrap() error { return e.error }

// Excuse marks a failure that is not held against the partner, who was there: it is that of
// somebody behind it.
func Excuse(err error) error { return excused{err} }

// Breaker keeps us from a partner that fails too often.
type Breaker struct {
	name    string
	openFor time.Duration
	breaker circuitbreaker.CircuitBreaker[any]

	mu    sync.Mutex
	since time.Time // guarded by mu
}

// NewBreaker makes a closed one. changed is told each change, may be nil, and must
// not block.
func NewBreaker(name string, p Policy, changed func(Status)) *Breaker {
	b := &Breaker{name: name, openFor: p.OpenFor, since: time.Now()}
	b.breaker = circuitbreaker.NewBuilder[any]().
		WithFailureRateThreshold(p.FailureRate, p.MinExecutions, p.Window).
		WithDelay(p.OpenFor).
		WithSuccessThreshold(1).
		HandleIf(b.counts).
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

// counts says whether a try was a failure. One that its caller gave up says nothing
// of the partner: many tasks cancelled together must not open the breaker. But as the
// trial of a half-open one it must not close it either.
func (b *Breaker) counts(_ any, err error) bool {
	if errors.Is(err, errAbandoned) {
		return b.breaker.IsHalfOpen()
	}
	var other excused
	return err != nil && !errors.As(err, &other)
}

// Status is what the breaker would let through now.
func (b *Breaker) Status() Status {
	b.mu.Lock()
	s := Status{b.name, State(b.breaker.State().String()), b.since}
	b.mu.Unlock()
	if s.State == Open && b.breaker.RemainingDelay() == 0 {
		// It half-opens when the next try comes, which may wait for being told so.
		s.State, s.Since = HalfOpen, s.Since.Add(b.openFor)
	}
	return s
}

// Allow asks leave for one try. Who got it must say how it ended: Done.
func (b *Breaker) Allow() bool { return b.breaker.TryAcquirePermit() }

// Done says how a try ended.
func (b *Breaker) Done(err error) { b.breaker.RecordError(err) }

// Trip opens the breaker whatever the rate: the retries are used up.
func (b *Breaker) Trip() { b.breaker.Open() }

// Probe lets the next try through an open breaker: the partner says that it is back.
func (b *Breaker) Probe() {
	if b.breaker.IsOpen() {
		b.breaker.HalfOpen()
	}
}

// Rest is how long the breaker stays open; 0 where it is not.
func (b *Breaker) Rest() time.Duration { return b.breaker.RemainingDelay() }
