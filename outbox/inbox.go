package outbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/db"
)

// Inbox remembers which bus messages were acted upon, by their event id.
type Inbox struct{ q *db.Queries }

// NewInbox keeps its memory in the database.
func NewInbox(pool *pgxpool.Pool) *Inbox { return &Inbox{db.New(pool)} }

// Once acts on an event unless it was acted upon before. act must itself be
// harmless when repeated: a crash between the act and the note repeats it. What
// act says becomes the event's outcome.
func (i *Inbox) Once(ctx context.Context, subject, event string, act func(context.Context) (outcome string, err error)) error {
	seen, err := i.q.InboxSeen(ctx, event)
	if err != nil {
		return fmt.Errorf("look up event %s: %w", event, err)
	}
	if seen {
		return nil
	}
	outcome, err := act(ctx)
	if err != nil {
		return err
	}
	if err := i.q.InboxPut(ctx, db.InboxPutParams{EventID: event, Subject: subject, Outcome: outcome}); err != nil {
		return fmt.Errorf("note event %s: %w", event, err)
	}
	return nil
}
