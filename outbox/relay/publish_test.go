package relay_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/relay"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

func TestRefusedBatchIsTriedAgainInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var refusals atomic.Int64
	b.Bus.Before = func([]outbox.Message) error {
		if refusals.Add(1) <= 4 {
			return errors.New("the bus is away")
		}
		return nil
	}
	task := b.Task()
	for range 10 {
		b.Flush(task)
	}
	r := b.Relay(b.Bus, func(cfg *relay.Config) { cfg.RangesPerBatch = 2 })
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 10), b.Bus.DeliveredIDs())
	require.EqualValues(t, 4, r.Failures())
}

// A round can fail before the acknowledgement of the one before it is read.
func TestBusThatTakesEveryOtherRound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var rounds atomic.Int64
	b.Bus.Before = func([]outbox.Message) error {
		if n := rounds.Add(1); n%2 == 0 && n < 40 {
			return errors.New("away")
		}
		return nil
	}
	task := b.Task()
	for range 40 {
		b.Flush(task)
	}
	b.Relay(b.Bus, func(cfg *relay.Config) { cfg.RangesPerBatch = 1 })
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 40), b.Bus.DeliveredIDs())
}

// Max retries 10 means that the breaker opens and the row waits. It never means that a
// row is dropped: this bus is away five times as long.
func TestEventPublishingOpensTheBreakerAndDropsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	states := make(chan retry.State, 1000)
	var rounds atomic.Int64
	b.Bus.Before = func([]outbox.Message) error {
		if rounds.Add(1) <= 50 {
			return errors.New("away")
		}
		return nil
	}
	task := b.Task()
	b.Flush(task, task)
	b.Flush(task)
	r := b.Relay(b.Bus, func(cfg *relay.Config) {
		cfg.Retry.MinExecutions = 1000 // so that it is the retries that are used up, not the rate
		cfg.OnBreaker = func(s retry.Status) { states <- s.State }
	})
	for range 11 {
		require.Equal(t, retry.Open, outboxtest.Receive(t, states))
		require.Equal(t, retry.HalfOpen, outboxtest.Receive(t, states))
	}
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 3), b.Bus.DeliveredIDs())
	require.EqualValues(t, 50, r.Failures())
	require.Equal(t, retry.Closed, r.Breaker().Status().State)
}

// A bus that takes every other round is left alone for a while too.
func TestEventPublishingOpensTheBreakerAtHalf(t *testing.T) {
	t.Parallel()
	b := setup(t)
	opened := make(chan struct{}, 1000)
	var rounds atomic.Int64
	b.Bus.Before = func([]outbox.Message) error {
		if n := rounds.Add(1); n%2 == 0 && n < 20 {
			return errors.New("away")
		}
		return nil
	}
	task := b.Task()
	b.Relay(b.Bus, func(cfg *relay.Config) {
		cfg.RangesPerBatch = 1
		cfg.OnBreaker = func(s retry.Status) {
			if s.State == retry.Open {
				opened <- struct{}{}
			}
		}
	})
	for range 20 {
		b.Flush(task)
	}
	outboxtest.Receive(t, opened)
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 20), b.Bus.DeliveredIDs())
}

// tooLarge is what a bus says of a message that it can never take.
type tooLarge struct{ id string }

func (e *tooLarge) Error() string     { return "message " + e.id + " is too large" }
func (e *tooLarge) MessageID() string { return e.id }

func TestMessageThatNeverHealsIsParkedAndTheRestGoesOn(t *testing.T) {
	t.Parallel()
	for name, position := range map[string]int{"first": 0, "in the middle": 2, "last": 4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			task := b.Task()
			all := outboxtest.EventIDs(task, 6)
			never := all[position]
			b.Bus.Before = func(batch []outbox.Message) error {
				for _, m := range batch {
					if m.ID == never {
						return fmt.Errorf("publish: %w", &tooLarge{never})
					}
				}
				return nil
			}
			b.Flush(task, task, task)
			b.Flush(task, task)
			r := b.Relay(b.Bus)
			b.AwaitPublished()
			rest := append(append([]string{}, all[:position]...), all[position+1:5]...)
			require.Equal(t, rest, b.Bus.DeliveredIDs())
			require.Zero(t, r.Failures(), "it is not an outage")
			require.Equal(t, "message "+never+" is too large",
				ask[string](b, "SELECT p.reason FROM outbox_parked p JOIN task_event e ON e.id = p.event_id WHERE e.seq = $1", position+1))

			// A look at the tail does not take the parked one for lost.
			r.Stop()
			b.Relay(b.Bus)
			b.Flush(task)
			b.AwaitPublished()
			require.Equal(t, append(rest, all[5]), b.Bus.DeliveredIDs())
		})
	}
}

func TestRoundOfParkedEventsOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.Task()
	b.Bus.Before = func(batch []outbox.Message) error { return &tooLarge{batch[0].ID} }
	b.Flush(task)
	b.Relay(b.Bus)
	b.AwaitPublished()
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM outbox_parked"))
}

// What no envelope can be made of is parked, and those behind it go on.
func TestEventThatCannotBeWrittenIsParked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.Task()
	broken := b.Task()
	b.Flush(task)
	b.FlushUnencodable(broken)
	b.Flush(task)
	b.Relay(b.Bus)
	b.AwaitPublished()
	require.Equal(t, outboxtest.EventIDs(task, 2), b.Bus.DeliveredIDs())
	require.Equal(t, broken, ask[uuid.UUID](b, "SELECT task_id FROM outbox_parked"))
	require.Contains(t, ask[string](b, "SELECT reason FROM outbox_parked"), "year outside of range")
}
