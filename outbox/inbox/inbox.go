package inbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// dead is the outcome of a dead letter.
const dead = "dead"

var changedNothing = []string{outbox.Late, outbox.Unknown, outbox.Elsewhere}

// Inbox remembers which bus messages were acted upon, by their event id, and counts
// what became of them. It is safe for concurrent use.
type Inbox struct {
	q     *db.Queries
	looks gather[*look]
	notes gather[*note]
}

// look asks whether an event is known.
type look struct {
	event string
	seen  bool
	done  chan error // holds one
}

// note is what is to be remembered of one message.
type note struct {
	subject, event string
	said           outbox.Outcome
	done           chan error // holds one
}

// New keeps its memory in the database.
func New(pool db.DBTX) *Inbox {
	i := &Inbox{q: db.New(pool)}
	i.looks.flush, i.notes.flush = i.look, i.write
	return i
}

// gather collects while what was collected before is flushed.
type gather[T any] struct {
	flush func([]T) // answers every item

	mu      sync.Mutex
	waiting []T  // guarded by mu
	busy    bool // guarded by mu
}

func (g *gather[T]) add(item T) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, item)
	if !g.busy {
		g.busy = true
		go g.run()
	}
}

func (g *gather[T]) run() {
	for {
		g.mu.Lock()
		batch := g.waiting
		g.waiting, g.busy = nil, len(batch) > 0
		g.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		g.flush(batch)
	}
}

// Once acts on an event unless it was acted upon before. act must itself be
// harmless when repeated: a crash between the act and the note repeats it. What
// act says becomes the event's outcome.
func (i *Inbox) Once(ctx context.Context, subject, event string, act func(context.Context) (outbox.Outcome, error)) error {
	known := &look{event: event, done: make(chan error, 1)}
	i.looks.add(known)
	if err := settled(ctx, known.done); err != nil {
		return fmt.Errorf("look up event %s: %w", event, err)
	}
	said := outbox.Outcome{Word: outbox.Repeated}
	if !known.seen {
		var err error
		if said, err = act(ctx); err != nil {
			return err
		}
	}
	return i.put(ctx, &note{subject: subject, event: event, said: said})
}

// Dead notes a dead letter with its reason, once for each id.
func (i *Inbox) Dead(ctx context.Context, id, subject, reason string) error {
	return i.put(ctx, &note{subject: subject, event: id, said: outbox.Outcome{dead, reason}})
}

// put waits until a note is written, in one commit with those that are handed in
// while the one before it is written.
func (i *Inbox) put(ctx context.Context, n *note) error {
	n.done = make(chan error, 1)
	i.notes.add(n)
	if err := settled(ctx, n.done); err != nil {
		return fmt.Errorf("note event %s: %w", n.event, err)
	}
	return nil
}

func settled(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// inboxTime bounds one statement: others share it, whoever still waits.
const inboxTime = 20 * time.Second

func (i *Inbox) look(batch []*look) {
	ctx, cancel := context.WithTimeout(context.Background(), inboxTime)
	defer cancel()
	events := make([]string, len(batch))
	for k, l := range batch {
		events[k] = l.event
	}
	known, err := i.q.InboxSeen(ctx, events)
	seen := make(map[string]bool, len(known))
	for _, event := range known {
		seen[event] = true
	}
	for _, l := range batch {
		l.seen = seen[l.event]
		l.done <- err
	}
}

func (i *Inbox) write(batch []*note) {
	ctx, cancel := context.WithTimeout(context.Background(), inboxTime)
	defer cancel()
	p := db.InboxPutParams{ChangedNothing: changedNothing}
	for _, n := range batch {
		p.EventIds, p.Subjects = append(p.EventIds, n.event), append(p.Subjects, n.subject)
		p.Outcomes, p.Details = append(p.Outcomes, n.said.Word), append(p.Details, n.said.Detail)
	}
	err := i.q.InboxPut(ctx, p)
	for _, n := range batch {
		n.done <- err
	}
}
