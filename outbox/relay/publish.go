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

// busError marks an error of the bus. Errors of the database are not marked.
type busError struct{ error }

func (e *busError) Unwrap() error { return e.error }

// publishBatches publishes and acknowledges batch after batch. After a failure the goroutine ends,
// because later batches must not overtake the failed batch.
func (s *session) publishBatches() {
	for next := range s.batches {
		var published []message
		var last uint64
		// The process may have been stopped since the last heartbeat.
		err := s.confirmLead(s.publishCtx)
		if err == nil {
			published, last, err = s.publishMissing(s.publishCtx, next.messages)
		}

		a := next.ackFor(published, last)
		a.err = err
		select {
		case s.acks <- a:
		case <-s.readerDone:
		}

		if err != nil {
			return
		}
	}
}

// publishMissing publishes the messages the stream does not have yet. The result is the
// part of the batch in the stream, in order, and its last sequence.
func (s *session) publishMissing(ctx context.Context, messages []message) (stored []message, last uint64, err error) {
	missing := slices.DeleteFunc(slices.Clone(messages), func(m message) bool { return m.seq > 0 })
	published, last, err := s.publish(ctx, missing)
	if err != nil || len(published) == len(messages) {
		return published, last, err
	}

	// Merge both in the order of the batch. A missing message that was not published was
	// quarantined.
	for _, m := range messages {
		isMissing := m.seq == 0
		if isMissing && (len(published) == 0 || published[0].ID != m.ID) {
			continue
		}
		if isMissing {
			published = published[1:]
		}

		stored = append(stored, m)
	}

	if n := len(stored); n > 0 && stored[n-1].seq > 0 {
		last = stored[n-1].seq
	}

	return stored, last, nil
}

// publish publishes messages if the breaker allows, and reports the answer of the bus to the
// breaker. The result is the messages that were not quarantined, and the sequence of the last.
func (s *session) publish(ctx context.Context, messages []message) ([]message, uint64, error) {
	if len(messages) == 0 {
		return nil, 0, nil // the batch has transitions for the audit trail only, or the stream has it
	}
	if !s.breaker.Allow() {
		return nil, 0, &busError{fmt.Errorf("publish: %w", retry.ErrOpen)}
	}

	published, last, err := s.publishAll(ctx, messages)
	// A failed quarantine is the database's error and does not count for the bus.
	var bus *busError
	if errors.As(err, &bus) {
		s.breaker.Done(bus)
	} else {
		s.breaker.Done(nil)
	}
	return published, last, err
}

// publishAll publishes messages, and again without messages the bus can never take. There is no
// deadline: the bus bounds every request, and messages that a broken batch has left in
// the stream are skipped individually, which may take longer than any deadline, and would start
// over after it.
func (s *session) publishAll(ctx context.Context, messages []message) (_ []message, last uint64, err error) {
	ctx, span := s.startSpan(ctx, messages)
	defer func() { endSpan(span, err) }()

	for len(messages) > 0 {
		last, err := s.bus.Publish(ctx, busMessages(messages))
		if err == nil {
			s.published.Add(int64(len(messages)))
			s.recordSuccess()
			return messages, last, nil
		}

		var refused interface {
			error
			MessageID() string
		}
		if !errors.As(err, &refused) {
			return nil, 0, &busError{fmt.Errorf("publish: %w", err)}
		}

		if messages, err = s.quarantineOne(ctx, messages, refused.MessageID(), refused); err != nil {
			return nil, 0, err
		}
	}

	return nil, 0, nil
}

func busMessages(messages []message) []outbox.Message {
	out := make([]outbox.Message, len(messages))
	for i := range messages {
		out[i] = messages[i].Message
	}
	return out
}

// quarantineOne quarantines the message with an id and returns the rest.
func (s *session) quarantineOne(ctx context.Context, messages []message, id string, reason error) ([]message, error) {
	for i, m := range messages {
		if m.ID == id {
			// The reader uses the session's connection at this moment; hence the pool.
			return append(messages[:i:i], messages[i+1:]...), s.quarantine(ctx, db.New(s.pool), m.row, reason)
		}
	}
	return nil, fmt.Errorf("publish: %w", reason)
}

// quarantine records an event that can never be published in the table outbox_parked, where
// operators find it.
func (s *session) quarantine(ctx context.Context, q *db.Queries, row db.OutboxEventsRow, reason error) error {
	id := outbox.EventID(row.TaskID, row.Seq)
	s.cfg.Logger.Error("relay: event quarantined, it can never be published", "event", id, "task", row.TaskID, "reason", reason)
	if err := q.OutboxPark(ctx, db.OutboxParkParams{Term: s.term, EventID: row.ID, TaskID: row.TaskID, Reason: reason.Error()}); err != nil {
		return fmt.Errorf("quarantine event %s: %w", id, err)
	}
	return nil
}
