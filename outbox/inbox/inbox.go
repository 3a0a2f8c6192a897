package inbox

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/batch"
	"github.com/seed-3f7a0631/tes/outbox"
)

// dead is the outcome of a dead letter.
const dead = "dead"

// changedNothing lists the outcomes of acts that changed no task. Table inbound counts these
// outcomes as ignored.
var changedNothing = []string{outbox.Late, outbox.Unknown, outbox.Elsewhere}

// statementTimeout bounds a statement. Not the context of a caller: the statement is
// shared, and a caller may leave early.
const statementTimeout = 20 * time.Second

// Inbox records the outcome of each event from the bus. Safe for concurrent use.
type Inbox struct {
	q       *db.Queries
	lookups *batch.Batcher[*lookup]
	records *batch.Batcher[*record]
}

// lookup asks whether an event was recorded before.
type lookup struct {
	event string
	seen  bool       // valid once done has answered nil
	done  chan error // holds one
}

// record is one row for table inbox.
type record struct {
	subject, event string
	outcome        outbox.Outcome
	done           chan error // holds one
}

// New returns an Inbox that keeps its records in the database of pool.
func New(pool db.DBTX) *Inbox {
	i := &Inbox{q: db.New(pool)}
	i.lookups = batch.New(i.flushLookups, batch.Config[*lookup]{})
	i.records = batch.New(i.flushRecords, batch.Config[*record]{})
	return i
}

// Once calls act unless the event was recorded before, and records the outcome that act
// returns. act must be harmless when repeated: a process that dies between act and record
// leaves no trace of the act. An error of act is returned unchanged, without a record.
func (i *Inbox) Once(ctx context.Context, subject, event string, act func(context.Context) (outbox.Outcome, error)) error {
	l := &lookup{event: event, done: make(chan error, 1)}
	i.lookups.Add(l)
	if err := await(ctx, l.done); err != nil {
		return fmt.Errorf("look up event %s: %w", event, err)
	}

	// A repetition is recorded too, because the metrics count repetitions.
	outcome := outbox.Outcome{Result: outbox.Repeated}
	if !l.seen {
		var err error
		if outcome, err = act(ctx); err != nil {
			return err
		}
	}

	return i.record(ctx, &record{subject: subject, event: event, outcome: outcome})
}

// Dead records a dead letter with the reason for its death, once for each id.
func (i *Inbox) Dead(ctx context.Context, id, subject, reason string) error {
	return i.record(ctx, &record{subject: subject, event: id, outcome: outbox.Outcome{Result: dead, Detail: reason}})
}

// record waits until a record is committed.
func (i *Inbox) record(ctx context.Context, r *record) error {
	r.done = make(chan error, 1)
	i.records.Add(r)
	if err := await(ctx, r.done); err != nil {
		return fmt.Errorf("record event %s: %w", r.event, err)
	}
	return nil
}

func await(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// flushLookups answers a batch of look-ups with one query.
func (i *Inbox) flushLookups(lookups []*lookup) {
	ctx, cancel := context.WithTimeout(context.Background(), statementTimeout)
	defer cancel()

	events := make([]string, len(lookups))
	for k, l := range lookups {
		events[k] = l.event
	}

	// Every caller of the batch waits for this answer, so no single caller may cancel the query.
	known, err := i.q.InboxSeen(ctx, events)

	seen := make(map[string]bool, len(known))
	for _, event := range known {
		seen[event] = true
	}

	for _, l := range lookups {
		l.seen = seen[l.event]
		l.done <- err
	}
}

// flushRecords writes a batch of records, and their counts, with a single statement.
func (i *Inbox) flushRecords(records []*record) {
	ctx, cancel := context.WithTimeout(context.Background(), statementTimeout)
	defer cancel()

	p := db.InboxPutParams{ChangedNothing: changedNothing}
	for _, r := range records {
		p.EventIds, p.Subjects = append(p.EventIds, r.event), append(p.Subjects, r.subject)
		p.Outcomes, p.Details = append(p.Outcomes, r.outcome.Result), append(p.Details, r.outcome.Detail)
	}

	err := i.q.InboxPut(ctx, p)

	for _, r := range records {
		r.done <- err
	}
}
