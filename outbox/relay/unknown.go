package relay

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// The stream may have events that the database lost: an asynchronous standby was promoted, or a
// backup was restored. Lost events are behind the last known publication. A killed
// leader leaves events there too, of two batches at most, but their ranges are still in
// the outbox.
//
// The lost events are recorded in event_unknown and logged. A task that survived may produce
// another event with the id of a lost one, because an id is made of the task and a number. The
// new event is quarantined: a consumer with a memory of ids would drop the new event, and another
// consumer would see an id with two contents.

const (
	// eventIDVersion is the UUID version of our event ids. Other publishers use other versions.
	eventIDVersion = 8
	// eventKeysPage is how many outbox ranges are compared with the stream in a single statement.
	eventKeysPage = 100
)

// errUnknownID is the reason for the quarantine of an event whose id is taken.
var errUnknownID = errors.New("the bus has another event of this id, from before the database went back in time")

// recordUnknown records the events that the stream has and the database does not, removes the
// events from unmarkedSeqs, and loads the ids of every recorded event.
func (s *session) recordUnknown(ctx context.Context) error {
	lost, err := s.lostEvents(ctx)
	if err != nil {
		return err
	}

	if len(lost) > 0 {
		p := db.EventUnknownAddParams{Term: s.term}
		for id, seq := range lost {
			delete(s.unmarkedSeqs, id.String())
			p.EventIds, p.StreamSeqs = append(p.EventIds, id), append(p.StreamSeqs, int64(seq))
		}

		added, err := s.q.EventUnknownAdd(ctx, p)
		if err != nil {
			return fmt.Errorf("record the unknown events: %w", err)
		}

		if added > 0 {
			s.cfg.Logger.Error("relay: the database went back in time: the stream has events that the database does not know; acknowledged tasks may be lost",
				"events", added, "after", s.highestSeq)
		}
	}

	recorded, err := s.q.EventUnknownList(ctx)
	if err != nil {
		return fmt.Errorf("read the unknown events: %w", err)
	}

	s.unknownIDs = make(map[string]bool, len(recorded))
	for _, id := range recorded {
		s.unknownIDs[id.String()] = true
	}

	return nil
}

// lostEvents returns the events of unmarkedSeqs that no outbox range has. Without a publication
// of the last day there is no sequence to begin at, and the result is empty.
func (s *session) lostEvents(ctx context.Context) (map[uuid.UUID]uint64, error) {
	lost := map[uuid.UUID]uint64{}
	if s.highestSeq == 0 {
		return lost, nil
	}

	// Messages of other publishers have ids of another form.
	for text, seq := range s.unmarkedSeqs {
		if id, err := uuid.Parse(text); err == nil && id.Version() == eventIDVersion {
			lost[id] = seq
		}
	}

	// An event whose range still waits is not lost: a leader died before it marked the batch.
	for after := int64(0); len(lost) > 0; {
		waiting, err := s.q.OutboxEventKeys(ctx, db.OutboxEventKeysParams{After: after, Page: eventKeysPage})
		if err != nil {
			return nil, fmt.Errorf("read the waiting events: %w", err)
		}

		if len(waiting) == 0 {
			break
		}

		for _, row := range waiting {
			delete(lost, outbox.EventID(row.TaskID, row.Seq))
			after = row.ID
		}
	}

	return lost, nil
}

// quarantineUnknown quarantines the messages whose id is that of a lost event, and returns the
// others.
func (s *session) quarantineUnknown(ctx context.Context, messages []message) ([]message, error) {
	if len(s.unknownIDs) == 0 {
		return messages, nil
	}

	kept := make([]message, 0, len(messages))
	for _, m := range messages {
		if !s.unknownIDs[m.ID] {
			kept = append(kept, m)
			continue
		}

		if err := s.quarantine(ctx, s.q, m.row, errUnknownID); err != nil {
			return nil, err
		}
	}

	return kept, nil
}
