package relay

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// The stream may know more than the database: an asynchronous standby was promoted, or a
// backup restored. Behind the last publication that was noted stand then events that nobody
// here knows. A leader that was killed leaves such events as well, of two rounds at most, but
// theirs wait in the outbox still.
//
// What is unknown is written down, and told loudly. A task that has survived will be moved
// again, and its next event has the id of a lost one: an id is a task and a number. It is
// parked and not published, for a consumer that remembers ids would drop it, and another would
// have one id with two contents.

// uuidVersion is that of our event ids; what somebody else publishes has others.
const uuidVersion = 8

// errUnknownID is why an event is parked.
var errUnknownID = errors.New("the bus has another event of this id, from before the database went back in time")

// pageOfKeys is how many flushes are looked at in one statement.
const pageOfKeys = 100

// noteUnknown keeps in stored what waits to be noted, and writes down what is unknown.
func (t *turn) noteUnknown(ctx context.Context) error {
	lost, err := t.unknownOf(ctx)
	if err != nil {
		return err
	}
	if len(lost) > 0 {
		var p db.EventUnknownAddParams
		for id, seq := range lost {
			delete(t.stored, id.String())
			p.EventIds, p.StreamSeqs = append(p.EventIds, id), append(p.StreamSeqs, int64(seq))
		}
		p.Term = t.term
		fresh, err := t.q.EventUnknownAdd(ctx, p)
		if err != nil {
			return fmt.Errorf("write down the unknown events: %w", err)
		}
		if fresh > 0 {
			t.cfg.Logger.Error("relay: the database went back in time: the stream has events that it does not know; tasks that were acknowledged may be lost",
				"events", fresh, "after", t.highest)
		}
	}
	all, err := t.q.EventUnknownList(ctx)
	if err != nil {
		return fmt.Errorf("read the unknown events: %w", err)
	}
	t.unknown = make(map[string]bool, len(all))
	for _, id := range all {
		t.unknown[id.String()] = true
	}
	return nil
}

// unknownOf are the events of stored that do not wait in the outbox. Where nothing is noted
// of the last day, nothing can be said.
func (t *turn) unknownOf(ctx context.Context) (map[uuid.UUID]uint64, error) {
	lost := map[uuid.UUID]uint64{}
	if t.highest == 0 {
		return lost, nil
	}
	for text, seq := range t.stored {
		if id, err := uuid.Parse(text); err == nil && id.Version() == uuidVersion {
			lost[id] = seq
		}
	}
	for after := int64(0); len(lost) > 0; {
		waits, err := t.q.OutboxEventKeys(ctx, db.OutboxEventKeysParams{After: after, Page: pageOfKeys})
		if err != nil {
			return nil, fmt.Errorf("read what waits: %w", err)
		}
		if len(waits) == 0 {
			break
		}
		for _, row := range waits {
			delete(lost, outbox.EventID(row.TaskID, row.Seq))
			after = row.ID
		}
	}
	return lost, nil
}

// withoutUnknown parks what has the id of an event that was lost here.
func (t *turn) withoutUnknown(ctx context.Context, batch []told) ([]told, error) {
	if len(t.unknown) == 0 {
		return batch, nil
	}
	kept := make([]told, 0, len(batch))
	for _, m := range batch {
		if !t.unknown[m.ID] {
			kept = append(kept, m)
			continue
		}
		if err := t.park(ctx, t.q, m.row, errUnknownID); err != nil {
			return nil, err
		}
	}
	return kept, nil
}
