package relay

import (
	"context"
	"fmt"
	"slices"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// batch is some outbox ranges and the messages of their events, in order.
type batch struct {
	ranges   []db.OutboxAdvanceRow
	messages []message
}

// message is a message with the row that it was made of.
type message struct {
	outbox.Message
	row db.OutboxEventsRow
	seq uint64 // its sequence if the stream has it already; else 0
}

// unencodable is an event of which no envelope can be made, now or later.
type unencodable struct {
	row    db.OutboxEventsRow
	reason error
}

// ack is the result of publishing a batch.
type ack struct {
	ranges   []int64
	seqs     []int64 // for each range the batch's last sequence; 0 for a range without messages
	messages int
	last     uint64 // the stream sequence of the last message
	err      error
}

// noAck acknowledges nothing. Its slices are not nil, because SQL would take nil for NULL.
var noAck = ack{ranges: []int64{}, seqs: []int64{}}

// ackFor returns the acknowledgement of the published part of the batch. An outbox range
// without messages has no stream position (0), so that stream reconciliation never checks it.
func (b batch) ackFor(published []message, last uint64) ack {
	a := ack{messages: len(published), last: last}
	for _, r := range b.ranges {
		seq := int64(0)
		if slices.ContainsFunc(published, func(m message) bool { return m.row.ID >= r.Lo && m.row.ID < r.Hi }) {
			seq = int64(last)
		}

		a.ranges, a.seqs = append(a.ranges, r.ID), append(a.seqs, seq)
	}
	return a
}

// first is the sequence of the batch's first message, if no other publisher's message is
// between its messages.
func (a ack) first() uint64 { return a.last - min(a.last, uint64(a.messages)) + 1 }

func (b batch) rangeIDs() []int64 {
	ids := make([]int64, len(b.ranges))
	for i, r := range b.ranges {
		ids[i] = r.ID
	}
	return ids
}

// readMessages returns the messages of some outbox ranges, and the events of which no message
// can be made.
func (r *Relay) readMessages(ctx context.Context, q *db.Queries, ranges []db.OutboxAdvanceRow) ([]message, []unencodable, error) {
	var params db.OutboxEventsParams
	for _, one := range ranges {
		params.Ids = append(params.Ids, one.ID)
		params.Los = append(params.Los, one.Lo)
		params.His = append(params.His, one.Hi)
	}

	events, err := q.OutboxEvents(ctx, params)
	if err != nil {
		return nil, nil, fmt.Errorf("read events: %w", err)
	}

	messages := make([]message, 0, len(events))
	var broken []unencodable
	for _, row := range events {
		m, ok, err := outbox.NewMessage(row)
		switch {
		case err != nil:
			broken = append(broken, unencodable{row, err})
		case ok:
			messages = append(messages, message{Message: m, row: row})
		}
	}

	return messages, broken, nil
}
