package relay

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/outbox"
)

// lastWords bounds how long a relay that is asked to stop goes on publishing what
// is committed; the next one continues.
const lastWords = 5 * time.Second

// Old publications are forgotten a page with each look until a page is short, and then not
// for forgetEvery. A look notes a few dozen flushes at most, so that forgetting keeps up
// with any rate, and a page takes some milliseconds.
const (
	forgetEvery = time.Minute
	forgetPage  = 2000
)

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
	over   chan struct{}   // closed when the reader has gone: nobody wants acks any more
	voice  context.Context // of publishing; ends lastWords after the relay is asked to stop
	hush   func()          // ends voice

	term     int64     // of this lead; every write names it
	keyed    bool      // the session holds the older programs' key; owned by the reader
	keyAsked time.Time // when the key was last asked for; owned by the reader

	lost    chan struct{}      // closed when the heartbeat found the lead gone, or failed
	whyLost error              // written before lost is closed
	doubts  chan chan struct{} // asks for a heartbeat at once; the answer closes what was sent

	mu        sync.Mutex
	confirmed time.Time // when the last heartbeat that was written, or found the row locked, set out; guarded by mu

	highest uint64            // sequence that was ever logged; owned by the reader
	early   *ack              // came before the one ahead of it was noted; owned by the reader
	unknown map[string]bool   // ids of events that the bus has and the database lost; owned by the reader
	stored  map[string]uint64 // places of what the stream has and nobody noted; owned by the reader
	forgot  time.Time         // when old publications were, to the last; owned by the reader
	swept   int64             // id up to which the sweep under way has come; owned by the reader
}

// round is what some flushes left to tell.
type round struct {
	flushes []db.OutboxAdvanceRow
	batch   []told
}

// ack says what became of a round.
type ack struct {
	flushes []int64
	seqs    []int64 // the round's place in the stream; 0 for a flush that told nothing
	n       int     // messages
	last    uint64
	err     error
}

// told is the acknowledgement of what was told of a round. A flush without a message
// stands nowhere in the stream, and must not speak for what does.
func (r round) told(batch []told, last uint64) ack {
	a := ack{n: len(batch), last: last}
	for _, flush := range r.flushes {
		seq := int64(0)
		if slices.ContainsFunc(batch, func(m told) bool { return m.row.ID >= flush.Lo && m.row.ID < flush.Hi }) {
			seq = int64(last)
		}
		a.flushes, a.seqs = append(a.flushes, flush.ID), append(a.seqs, seq)
	}
	return a
}

// none acknowledges nothing. Its arrays are not nil, which SQL takes for NULL.
var none = ack{flushes: []int64{}, seqs: []int64{}}

// first is the place of the round's first message, had it been alone.
func (a ack) first() uint64 { return a.last - min(a.last, uint64(a.n)) + 1 }

// read hands rounds to the publisher and logs what it has told. ctx ends it once
// the outbox is empty, or lastWords later.
func (t *turn) read(ctx context.Context) error {
	underWay := []int64{} // handed over, not told yet; not nil, which SQL takes for NULL
	done := none
	var asked time.Time
	behind := false // the last look did not show all that waits
	for {
		select {
		case <-t.lost:
			return t.whyLost
		default:
		}
		if done.n >= busyRound && !behind {
			t.gather(ctx)
		}
		rows, err := t.look(ctx, done, underWay)
		if err != nil {
			return err
		}
		behind = len(rows) == int(t.cfg.Flushes)
		if ctx.Err() != nil && asked.IsZero() {
			asked = time.Now()
		}
		if !asked.IsZero() && len(underWay) == 0 && (len(rows) == 0 || time.Since(asked) > lastWords) {
			return nil
		}
		if len(rows) == 0 && len(underWay) == 0 {
			t.well()
		}
		var next round
		var rounds chan round // nil: nothing to hand over
		// A check waits until nothing is under way, and nothing more sets out before.
		if len(rows) > 0 && !t.check.Load() && (asked.IsZero() || time.Since(asked) <= lastWords) {
			if next, err = t.prepare(ctx, rows); err != nil {
				return err
			}
			rounds = t.rounds
		}
		if done, err = t.await(ctx, rounds, next, &underWay); err != nil {
			return err
		}
	}
}

// lookTime bounds what is asked of the database at a time: a host that vanished must
// not keep the lead, and its process, for as long as TCP is patient.
const lookTime = time.Minute

// bounded is for one question. It does not end with ctx: a statement that is cut short
// takes the connection with it, and the lead.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), lookTime)
}

// look logs what was told, even if we are asked to stop, and returns what comes next.
func (t *turn) look(ctx context.Context, done ack, underWay []int64) ([]db.OutboxAdvanceRow, error) {
	if err := t.maintain(ctx, len(underWay)+done.n > 0); err != nil {
		return nil, err
	}
	ctx, enough := bounded(ctx)
	defer enough()
	if done.n > 0 && done.first() <= t.highest {
		if err := t.verifyOverlap(ctx, done.first()); err != nil {
			return nil, err
		}
	}
	t.highest = max(t.highest, done.last)
	rows, err := t.q.OutboxAdvance(ctx, db.OutboxAdvanceParams{
		Term: t.term, Told: done.flushes, LastSeqs: done.seqs, UnderWay: underWay, Flushes: t.cfg.Flushes,
	})
	if err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	return rows, nil
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
		*underWay = append(*underWay, next.ids()...)
	case a := <-t.acks:
		return acknowledged(a)
	case <-wake:
	case <-poll:
	case <-stop:
	case <-t.lost:
		return none, t.whyLost
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
	*underWay = append(*underWay, next.ids()...)
}

// maintain does now and then what a long lead needs.
func (t *turn) maintain(ctx context.Context, busy bool) error {
	if !busy && t.check.Swap(false) {
		if err := t.verify(ctx); err != nil {
			t.check.Store(true)
			return err
		}
	}
	ctx, enough := bounded(ctx)
	defer enough()
	if err := t.forget(ctx); err != nil {
		return err
	}
	if err := t.keepKey(ctx); err != nil {
		return err
	}
	return pgpool.Replan(ctx, t.conn)
}

// verify looks at the stream's tail and where the last publication stands after that.
func (t *turn) verify(ctx context.Context) error {
	end, err := t.verifyTail(ctx)
	if err != nil {
		return err
	}
	ctx, enough := bounded(ctx)
	defer enough()
	newest, err := t.q.OutboxRounds(ctx, db.OutboxRoundsParams{FirstSeq: 1, EndSeq: math.MaxInt64, Rounds: 1})
	if err != nil {
		return fmt.Errorf("read the last publication: %w", err)
	}
	if t.highest = 0; len(newest) > 0 {
		t.highest = uint64(newest[0].LastSeq)
	}
	if err := t.readUnnoted(ctx, end); err != nil {
		return err
	}
	return t.noteUnknown(ctx)
}

// forget removes a page of old publications, if it is time to. Publishing does not depend
// on it: a statement that was refused is tried again in a while.
func (t *turn) forget(ctx context.Context) error {
	if time.Since(t.forgot) < forgetEvery {
		return nil
	}
	page, err := t.q.OutboxForget(ctx, db.OutboxForgetParams{After: t.swept, Term: t.term, Page: forgetPage, Hours: keepHours})
	if err != nil && t.conn.IsClosed() {
		return fmt.Errorf("forget old publications: %w", err)
	}
	if err != nil {
		t.cfg.Logger.Warn("relay: old publications are not forgotten yet", "error", err)
	}
	t.swept = page.LastID
	if err != nil || page.Forgotten < forgetPage {
		t.forgot, t.swept = time.Now(), 0
	}
	return nil
}

// keepKey asks again for the older programs' key where a stranger, or a leader whose
// session would not end, had it. If such a program has got it meanwhile, it publishes, and
// this one stands back.
func (t *turn) keepKey(ctx context.Context) error {
	if t.keyed || time.Since(t.keyAsked) < t.cfg.Silence/beatsInSilence {
		return nil
	}
	t.keyAsked = time.Now()
	key, err := t.q.RelayKey(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("take the older programs' key: %w", err)
	case key.OlderLeads:
		return errSuperseded
	}
	t.keyed = key.Held
	return nil
}

// prepare reads a round and puts it into envelopes.
func (t *turn) prepare(ctx context.Context, rows []db.OutboxAdvanceRow) (round, error) {
	ctx, enough := bounded(ctx)
	defer enough()
	batch, broken, err := t.Relay.read(ctx, t.q, rows)
	if err != nil {
		return round{}, err
	}
	for _, event := range broken {
		if err := t.park(ctx, t.q, event.row, event.why); err != nil {
			return round{}, err
		}
	}
	if batch, err = t.withoutUnknown(ctx, batch); err != nil {
		return round{}, err
	}
	for i, m := range batch {
		if seq, found := t.stored[m.ID]; found {
			batch[i].at = seq
			delete(t.stored, m.ID)
		}
	}
	return round{rows, batch}, nil
}

func (r round) ids() []int64 {
	ids := make([]int64, len(r.flushes))
	for i, flush := range r.flushes {
		ids[i] = flush.ID
	}
	return ids
}

// read returns the messages of some flushes, and what cannot be made one.
func (r *Relay) read(ctx context.Context, q *db.Queries, rows []db.OutboxAdvanceRow) (batch []told, broken []unspeakable, err error) {
	var ask db.OutboxEventsParams
	for _, row := range rows {
		ask.Ids = append(ask.Ids, row.ID)
		ask.Los = append(ask.Los, row.Lo)
		ask.His = append(ask.His, row.Hi)
	}
	events, err := q.OutboxEvents(ctx, ask)
	if err != nil {
		return nil, nil, fmt.Errorf("read events: %w", err)
	}
	batch = make([]told, 0, len(events))
	for _, row := range events {
		m, ok, err := outbox.NewMessage(row)
		switch {
		case err != nil:
			broken = append(broken, unspeakable{row, err})
		case ok:
			batch = append(batch, told{Message: m, row: row})
		}
	}
	return batch, broken, nil
}

// unspeakable is an event that no envelope can be made of, today or ever.
type unspeakable struct {
	row db.OutboxEventsRow
	why error
}
