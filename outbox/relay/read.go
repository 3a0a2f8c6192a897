package relay

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

// largeBatch is how many messages make a batch large: before the next one the reader waits for
// more events. A batch costs the bus the same dozen syncs whether it has ten messages or a
// thousand.
const largeBatch = 64

// read hands batches to the publisher and marks acknowledged batches. After the end of ctx, read
// goes on until the outbox is empty, or for drainTimeout.
func (s *session) read(ctx context.Context) error {
	inFlight := []int64{} // ranges that the publisher has; not nil, which SQL would take for NULL
	acked := noAck
	var stopAsked time.Time
	behind := false // the last read did not show all waiting ranges
	for {
		select {
		case <-s.lost:
			return s.lostErr
		default:
		}

		// Events come fast and no range waits: let more events collect, or the bus syncs the disk for
		// small batches.
		if acked.messages >= largeBatch && !behind {
			s.letCollect(ctx)
		}

		ranges, err := s.advance(ctx, acked, inFlight)
		if err != nil {
			return err
		}

		behind = len(ranges) == int(s.cfg.RangesPerBatch)

		if ctx.Err() != nil && stopAsked.IsZero() {
			stopAsked = time.Now()
		}

		drainOver := !stopAsked.IsZero() && time.Since(stopAsked) > drainTimeout
		if !stopAsked.IsZero() && len(inFlight) == 0 && (len(ranges) == 0 || drainOver) {
			return nil
		}
		// An empty outbox ends an outage: the database answers, and no event waits for the bus.
		if len(ranges) == 0 && len(inFlight) == 0 {
			s.recordSuccess()
		}

		var next batch
		var batches chan batch // nil: there is no batch to hand over
		// A reconciliation waits until no batch is in flight, so no batch may start before.
		if len(ranges) > 0 && !s.recheck.Load() && !drainOver {
			if next, err = s.prepare(ctx, ranges); err != nil {
				return err
			}

			batches = s.batches
		}

		if acked, err = s.await(ctx, batches, next, &inFlight); err != nil {
			return err
		}
	}
}

// advance marks an acknowledged batch and returns the next ranges of the outbox, without those
// in flight.
func (s *session) advance(ctx context.Context, acked ack, inFlight []int64) ([]db.OutboxAdvanceRow, error) {
	if err := s.maintain(ctx, len(inFlight)+acked.messages > 0); err != nil {
		return nil, err
	}

	ctx, cancel := statementContext(ctx)
	defer cancel()

	// A sequence at or below the highest was used before. Look for the older batch before
	// the mark below hides the loss.
	if acked.messages > 0 && acked.first() <= s.highestSeq {
		if err := s.checkReusedSequences(ctx, acked.first()); err != nil {
			return nil, err
		}
	}

	s.highestSeq = max(s.highestSeq, acked.last)

	ranges, err := s.q.OutboxAdvance(ctx, db.OutboxAdvanceParams{
		Term: s.term, Told: acked.ranges, LastSeqs: acked.seqs, UnderWay: inFlight, Flushes: s.cfg.RangesPerBatch,
	})
	if err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	return ranges, nil
}

// letCollect waits for PollInterval, so that the next batch is larger.
func (s *session) letCollect(ctx context.Context) {
	timer := time.NewTimer(s.cfg.PollInterval)
	defer timer.Stop()

	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// prepare reads the messages of some ranges, quarantines the events that cannot be published,
// and looks up the messages the stream has already.
func (s *session) prepare(ctx context.Context, ranges []db.OutboxAdvanceRow) (batch, error) {
	ctx, cancel := statementContext(ctx)
	defer cancel()

	messages, broken, err := s.readMessages(ctx, s.q, ranges)
	if err != nil {
		return batch{}, err
	}

	for _, event := range broken {
		if err := s.quarantine(ctx, s.q, event.row, event.reason); err != nil {
			return batch{}, err
		}
	}

	// The database went back in time once: a lost event may have the same id.
	if messages, err = s.quarantineUnknown(ctx, messages); err != nil {
		return batch{}, err
	}

	// The stream has these messages from an unmarked batch. The mark of this batch covers them too.
	for i, m := range messages {
		if seq, found := s.unmarkedSeqs[m.ID]; found {
			messages[i].seq = seq
			delete(s.unmarkedSeqs, m.ID)
		}
	}

	return batch{ranges, messages}, nil
}

// await hands over the next batch if batches is not nil, or returns the acknowledgement of the
// one in flight. If there is neither a next batch nor one in flight, it waits for Wake, for
// PollInterval, or for ctx.
func (s *session) await(ctx context.Context, batches chan batch, next batch, inFlight *[]int64) (ack, error) {
	// The pending acknowledgement is the oldest: the publisher acknowledges in order.
	if a := s.pendingAck; a != nil {
		s.pendingAck = nil
		return s.accept(*a, batches, next, inFlight)
	}

	var wake chan struct{}
	var poll <-chan time.Time
	var stop <-chan struct{}
	// Only an idle reader waits for new events; the nil channels of a busy reader are never ready.
	if batches == nil && len(*inFlight) == 0 {
		wake, poll, stop = s.wake, time.After(s.cfg.PollInterval), ctx.Done()
	}

	select {
	case batches <- next:
		*inFlight = append(*inFlight, next.rangeIDs()...)
	case a := <-s.acks:
		return s.accept(a, batches, next, inFlight)
	case <-wake:
	case <-poll:
	case <-stop:
	case <-s.lost:
		return noAck, s.lostErr
	}

	return noAck, nil
}

// accept takes an acknowledgement. The next batch, if there is one, is handed over first, so
// that the publisher works while the reader marks the last one.
func (s *session) accept(a ack, batches chan batch, next batch, inFlight *[]int64) (ack, error) {
	if a.err != nil {
		return noAck, a.err
	}

	*inFlight = slices.DeleteFunc(*inFlight, func(id int64) bool { return slices.Contains(a.ranges, id) })
	if batches != nil {
		s.handOver(batches, next, inFlight)
	}
	return a, nil
}

// handOver gives the publisher the next batch. The publisher may have finished yet another one
// meanwhile, because its last acknowledgement waited to be read. The newer acknowledgement
// is kept and marked after the older, not together: if the stream has lost messages between the two
// batches, a single sequence would stand for both.
func (s *session) handOver(batches chan batch, next batch, inFlight *[]int64) {
	select {
	case batches <- next:
	case a := <-s.acks:
		s.pendingAck = &a
		if a.err != nil {
			return // the publisher has ended
		}

		batches <- next
	}

	*inFlight = append(*inFlight, next.rangeIDs()...)
}
