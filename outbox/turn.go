package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// lastWords bounds how long a relay that is asked to stop goes on publishing what
// is committed; the next one continues.
const lastWords = 5 * time.Second

// forgetEvery spaces the forgetting of old publications, ten thousand at a time.
const forgetEvery = time.Minute

// busyRound is how many messages make a round after which the next may gather: a
// batch costs the bus the same dozen syncs whether it holds ten or a thousand.
const busyRound = 64

// turn is one time of leading: a reader, which owns the connection, prepares the
// next round while the publisher has one on its way. One round at a time is on
// its way, so order is kept.
type turn struct {
	*Relay
	conn   *pgx.Conn
	q      *db.Queries
	rounds chan round
	acks   chan ack
	over   chan struct{} // closed when the reader has gone: nobody wants acks any more

	highest uint64 // sequence that was ever logged; owned by the reader
	early   *ack   // came before the one ahead of it was noted; owned by the reader
}

// round is what some flushes left to tell.
type round struct {
	flushes []int64
	batch   []told
}

// ack says what became of a round.
type ack struct {
	flushes []int64
	n       int // messages
	last    uint64
	err     error
}

// first is the place of the round's first message, had it been alone.
func (a ack) first() uint64 { return a.last - min(a.last, uint64(a.n)) + 1 }

// read hands rounds to the publisher and logs what it has told. ctx ends it once
// the outbox is empty, or lastWords later.
func (t *turn) read(ctx context.Context) error {
	underWay := []int64{} // handed over, not told yet; not nil, which SQL takes for NULL
	done := ack{flushes: []int64{}}
	// A statement that is cut short takes the connection with it, and the lead.
	work := context.WithoutCancel(ctx)
	var asked, forgot time.Time
	behind := false // the last look did not show all that waits
	for {
		if done.n >= busyRound && !behind {
			t.gather(ctx)
		}
		if err := t.maintain(work, len(underWay) > 0, &forgot); err != nil {
			return err
		}
		if done.n > 0 && done.first() <= t.highest {
			if err := t.verifyOverlap(work, t.q, done.first()); err != nil {
				return err
			}
		}
		t.highest = max(t.highest, done.last)
		// What was acknowledged is logged even if we are asked to stop.
		rows, err := t.q.OutboxAdvance(work, db.OutboxAdvanceParams{
			Told: done.flushes, LastSeq: int64(done.last), UnderWay: underWay, Flushes: t.cfg.Flushes,
		})
		if err != nil {
			return fmt.Errorf("read the outbox: %w", err)
		}
		behind = len(rows) == int(t.cfg.Flushes)
		if ctx.Err() != nil && asked.IsZero() {
			asked = time.Now()
		}
		if !asked.IsZero() && len(underWay) == 0 && (len(rows) == 0 || time.Since(asked) > lastWords) {
			return nil
		}
		var next round
		var rounds chan round // nil: nothing to hand over
		// A check waits until nothing is under way, and nothing more sets out before.
		if len(rows) > 0 && !t.check.Load() && (asked.IsZero() || time.Since(asked) <= lastWords) {
			if next, err = t.prepare(work, rows); err != nil {
				return err
			}
			rounds = t.rounds
		}
		if done, err = t.await(ctx, rounds, next, &underWay); err != nil {
			return err
		}
	}
}

// gather lets more collect.
func (t *turn) gather(ctx context.Context) {
	rest := time.NewTimer(t.cfg.Poll)
	defer rest.Stop()
	select {
	case <-ctx.Done():
	case <-rest.C:
	}
}

// await hands a round over, or waits for the acknowledgement of the one under way,
// or for something to do.
func (t *turn) await(ctx context.Context, rounds chan round, next round, underWay *[]int64) (ack, error) {
	none := ack{flushes: []int64{}}
	acknowledged := func(a ack) (ack, error) {
		if a.err != nil {
			return none, a.err
		}
		*underWay = slices.DeleteFunc(*underWay, func(id int64) bool { return slices.Contains(a.flushes, id) })
		if rounds != nil {
			t.handOver(rounds, next, underWay)
		}
		return a, nil
	}
	if a := t.early; a != nil {
		t.early = nil
		return acknowledged(*a)
	}
	idle := rounds == nil && len(*underWay) == 0
	var wake chan struct{}
	var poll <-chan time.Time
	var stop <-chan struct{}
	if idle {
		wake, poll, stop = t.wake, time.After(t.cfg.Poll), ctx.Done()
	}
	select {
	case rounds <- next:
		*underWay = append(*underWay, next.flushes...)
	case a := <-t.acks:
		return acknowledged(a)
	case <-wake:
	case <-poll:
	case <-stop:
	}
	return none, nil
}

// handOver keeps the publisher busy before its acknowledgement is noted: it takes the
// next round at once. It may have told another meanwhile, for the acknowledgement waited
// to be read. That one is noted after it and not with it: had the stream lost its tail
// between the two, one place would speak for both.
func (t *turn) handOver(rounds chan round, next round, underWay *[]int64) {
	select {
	case rounds <- next:
	case a := <-t.acks:
		t.early = &a
		if a.err != nil {
			return // the publisher has gone
		}
		rounds <- next
	}
	*underWay = append(*underWay, next.flushes...)
}

// maintain does now and then what a long lead needs.
func (t *turn) maintain(ctx context.Context, busy bool, forgot *time.Time) error {
	if !busy && t.check.Swap(false) {
		if err := t.verifyTail(ctx, t.q); err != nil {
			t.check.Store(true)
			return err
		}
		newest, err := t.q.OutboxRounds(ctx, db.OutboxRoundsParams{FirstSeq: 0, Rounds: 1})
		if err != nil {
			return fmt.Errorf("read the last publication: %w", err)
		}
		if t.highest = 0; len(newest) > 0 {
			t.highest = uint64(newest[0].LastSeq)
		}
	}
	if time.Since(*forgot) > forgetEvery {
		if _, err := t.q.OutboxForget(ctx, keepHours); err != nil {
			return fmt.Errorf("forget old publications: %w", err)
		}
		*forgot = time.Now()
	}
	return pgpool.Replan(ctx, t.conn)
}

// prepare reads a round and puts it into envelopes.
func (t *turn) prepare(ctx context.Context, rows []db.OutboxAdvanceRow) (round, error) {
	batch, err := t.Relay.read(ctx, t.q, rows)
	if err != nil {
		return round{}, err
	}
	next := round{batch: batch}
	for _, row := range rows {
		next.flushes = append(next.flushes, row.ID)
	}
	return next, nil
}

// publish tells one round after the other. After a failure it tells no more: what
// follows must not overtake.
func (t *turn) publish() {
	for next := range t.rounds {
		last, err := t.tell(next.batch)
		select {
		case t.acks <- ack{next.flushes, len(next.batch), last, err}:
		case <-t.over:
		}
		if err != nil {
			return
		}
	}
}

// tell publishes a batch and returns the sequence of its last message. The breaker
// counts it by what the bus said.
func (r *Relay) tell(batch []told) (uint64, error) {
	if !r.breaker.Allow() {
		return 0, &busError{fmt.Errorf("publish: %w", retry.ErrOpen)}
	}
	last, err := r.tellAll(batch)
	var bus *busError
	if errors.As(err, &bus) {
		r.breaker.Done(bus)
	} else {
		r.breaker.Done(nil)
	}
	return last, err
}

func (r *Relay) tellAll(batch []told) (last uint64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), publishTime)
	defer cancel()
	ctx, span := r.span(ctx, batch)
	defer func() { endSpan(span, err) }()
	for len(batch) > 0 {
		last, err := r.bus.Publish(ctx, messages(batch))
		if err == nil {
			r.published.Add(int64(len(batch)))
			return last, nil
		}
		var never interface {
			error
			MessageID() string
		}
		if !errors.As(err, &never) {
			return 0, &busError{fmt.Errorf("publish: %w", err)}
		}
		if batch, err = r.park(ctx, batch, never.MessageID(), never); err != nil {
			return 0, err
		}
	}
	last, _, err = r.bus.Tail(ctx)
	if err != nil {
		return 0, &busError{fmt.Errorf("read the stream's tail: %w", err)}
	}
	return last, nil
}

// publishTime bounds one round on its way; the next try begins with the same.
const publishTime = 30 * time.Second

// busError says that it was the bus that failed, and not the database.
type busError struct{ error }

func (e *busError) Unwrap() error { return e.error }

// told is a message with the row it came from.
type told struct {
	Message
	row db.OutboxEventsRow
}

func (r *Relay) read(ctx context.Context, q *db.Queries, rows []db.OutboxAdvanceRow) ([]told, error) {
	var ask db.OutboxEventsParams
	for _, row := range rows {
		ask.Ids = append(ask.Ids, row.ID)
		ask.Los = append(ask.Los, row.Lo)
		ask.His = append(ask.His, row.Hi)
	}
	events, err := q.OutboxEvents(ctx, ask)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	batch := make([]told, 0, len(events))
	for _, row := range events {
		m, ok, err := envelope(row)
		if err != nil {
			return nil, err
		}
		if ok {
			batch = append(batch, told{m, row})
		}
	}
	return batch, nil
}

func messages(batch []told) []Message {
	out := make([]Message, len(batch))
	for i := range batch {
		out[i] = batch[i].Message
	}
	return out
}

// park sets one event aside and returns the others.
func (r *Relay) park(ctx context.Context, batch []told, id string, reason error) ([]told, error) {
	for i, m := range batch {
		if m.ID != id {
			continue
		}
		r.cfg.Logger.Error("relay: event parked, the bus can never take it", "event", m.ID, "task", m.row.TaskID, "reason", reason)
		if err := db.New(r.pool).OutboxPark(ctx, db.OutboxParkParams{EventID: m.row.ID, TaskID: m.row.TaskID, Reason: reason.Error()}); err != nil {
			return nil, fmt.Errorf("park event %s: %w", m.ID, err)
		}
		return append(batch[:i:i], batch[i+1:]...), nil
	}
	return nil, fmt.Errorf("publish: %w", reason)
}
