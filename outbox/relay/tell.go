package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// What the publisher of a turn does: it tells the bus of one round after the other, and parks
// what can never be told.

// publish tells one round after the other. After a failure it tells no more: what
// follows must not overtake.
func (t *turn) publish() {
	for next := range t.rounds {
		var batch []told
		var last uint64
		err := t.sure(t.voice)
		if err == nil {
			batch, last, err = t.tellRest(t.voice, next.batch)
		}
		a := next.told(batch, last)
		a.err = err
		select {
		case t.acks <- a:
		case <-t.over:
		}
		if err != nil {
			return
		}
	}
}

// tellRest publishes what the stream does not have yet, and returns all that it has then,
// in order, with the place of the last message.
func (t *turn) tellRest(ctx context.Context, batch []told) (all []told, last uint64, err error) {
	rest := slices.DeleteFunc(slices.Clone(batch), func(m told) bool { return m.at > 0 })
	rest, last, err = t.tell(ctx, rest)
	if err != nil || len(rest) == len(batch) {
		return rest, last, err
	}
	for _, m := range batch {
		isNew := m.at == 0
		if isNew && (len(rest) == 0 || rest[0].ID != m.ID) {
			continue // it was parked
		}
		if isNew {
			rest = rest[1:]
		}
		all = append(all, m)
	}
	if n := len(all); n > 0 && all[n-1].at > 0 {
		last = all[n-1].at
	}
	return all, last, nil
}

// tell publishes a batch and returns what of it the bus has taken, and the sequence of
// the last message. The breaker counts it by what the bus said.
func (t *turn) tell(ctx context.Context, batch []told) ([]told, uint64, error) {
	if len(batch) == 0 {
		return nil, 0, nil // moves for the audit trail alone
	}
	if !t.breaker.Allow() {
		return nil, 0, &busError{fmt.Errorf("publish: %w", retry.ErrOpen)}
	}
	batch, last, err := t.tellAll(ctx, batch)
	var bus *busError
	if errors.As(err, &bus) {
		t.breaker.Done(bus)
	} else {
		t.breaker.Done(nil)
	}
	return batch, last, err
}

// tellAll has no deadline of its own: the bus bounds each of its questions, and what a
// broken round has left in the stream is stepped over message by message, which may
// take longer than any deadline, and would begin anew after it.
func (t *turn) tellAll(ctx context.Context, batch []told) (_ []told, last uint64, err error) {
	ctx, span := t.span(ctx, batch)
	defer func() { endSpan(span, err) }()
	for len(batch) > 0 {
		last, err := t.bus.Publish(ctx, messages(batch))
		if err == nil {
			t.published.Add(int64(len(batch)))
			t.well()
			return batch, last, nil
		}
		var never interface {
			error
			MessageID() string
		}
		if !errors.As(err, &never) {
			return nil, 0, &busError{fmt.Errorf("publish: %w", err)}
		}
		if batch, err = t.setAside(ctx, batch, never.MessageID(), never); err != nil {
			return nil, 0, err
		}
	}
	return nil, 0, nil
}

// busError says that it was the bus that failed, and not the database.
type busError struct{ error }

func (e *busError) Unwrap() error { return e.error }

// told is a message with the row it came from.
type told struct {
	outbox.Message
	row db.OutboxEventsRow
	at  uint64 // where the stream has it already; 0: it has not
}

func messages(batch []told) []outbox.Message {
	out := make([]outbox.Message, len(batch))
	for i := range batch {
		out[i] = batch[i].Message
	}
	return out
}

// setAside parks one event and returns the others.
func (t *turn) setAside(ctx context.Context, batch []told, id string, reason error) ([]told, error) {
	for i, m := range batch {
		if m.ID == id {
			return append(batch[:i:i], batch[i+1:]...), t.park(ctx, db.New(t.pool), m.row, reason)
		}
	}
	return nil, fmt.Errorf("publish: %w", reason)
}

// park keeps an event that can never be told where operators find it; those behind it
// go on.
func (t *turn) park(ctx context.Context, q *db.Queries, row db.OutboxEventsRow, reason error) error {
	id := outbox.EventID(row.TaskID, row.Seq)
	t.cfg.Logger.Error("relay: event parked, it can never be told", "event", id, "task", row.TaskID, "reason", reason)
	if err := q.OutboxPark(ctx, db.OutboxParkParams{Term: t.term, EventID: row.ID, TaskID: row.TaskID, Reason: reason.Error()}); err != nil {
		return fmt.Errorf("park event %s: %w", id, err)
	}
	return nil
}
