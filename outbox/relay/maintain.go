package relay

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// Old publications are deleted one page with each read of the outbox, until a page is short,
// and then not for forgetEvery. A read marks a few dozen ranges at most, so that deleting keeps
// up with any rate of events. A page takes some milliseconds.
const (
	forgetEvery = time.Minute
	forgetPage  = 2000
	keepHours   = 24 // how long outbox_published keeps a publication
)

// maintain runs before each read of the outbox, for the work of a long session. busy says that
// a batch is in flight or not marked yet.
func (s *session) maintain(ctx context.Context, busy bool) error {
	if !busy && s.recheck.Swap(false) {
		if err := s.reconcile(ctx); err != nil {
			// The next session must not publish before a reconciliation has succeeded.
			s.recheck.Store(true)
			return err
		}
	}

	ctx, cancel := statementContext(ctx)
	defer cancel()

	if err := s.forget(ctx); err != nil {
		return err
	}

	if err := s.keepOldLock(ctx); err != nil {
		return err
	}
	// A session lives for days. A generic plan from when the outbox was empty would read the whole
	// table for each batch.
	return pgpool.Replan(ctx, s.conn)
}

// reconcile makes the outbox agree with the stream: lost events go back into the outbox, and
// events that were published but not marked are remembered.
func (s *session) reconcile(ctx context.Context) error {
	end, err := s.checkStreamEnd(ctx)
	if err != nil {
		return err
	}

	ctx, cancel := statementContext(ctx)
	defer cancel()

	newest, err := s.q.OutboxRounds(ctx, db.OutboxRoundsParams{FirstSeq: 1, EndSeq: math.MaxInt64, Rounds: 1})
	if err != nil {
		return fmt.Errorf("read the last publication: %w", err)
	}

	if s.highestSeq = 0; len(newest) > 0 {
		s.highestSeq = uint64(newest[0].LastSeq)
	}

	if err := s.readUnmarked(ctx, end); err != nil {
		return err
	}
	return s.recordUnknown(ctx)
}

// forget deletes a page of old publications if it is time to. A statement that the database
// refuses is tried again after forgetEvery, because publishing does not depend on it.
func (s *session) forget(ctx context.Context) error {
	if time.Since(s.forgottenAt) < forgetEvery {
		return nil
	}

	page, err := s.q.OutboxForget(ctx, db.OutboxForgetParams{After: s.forgetCursor, Term: s.term, Page: forgetPage, Hours: keepHours})
	// Without the connection the lead is lost.
	if err != nil && s.conn.IsClosed() {
		return fmt.Errorf("delete old publications: %w", err)
	}
	if err != nil {
		s.cfg.Logger.Warn("relay: old publications are not deleted yet", "error", err)
	}

	s.forgetCursor = page.LastID
	if err != nil || page.Forgotten < forgetPage {
		s.forgottenAt, s.forgetCursor = time.Now(), 0
	}
	return nil
}

// keepOldLock asks again for the advisory lock of the programs from before relay_leader if
// another session had it when this one began. If such a program has got the lock meanwhile, it
// publishes, and this session ends.
func (s *session) keepOldLock(ctx context.Context) error {
	if s.hasOldLock || time.Since(s.oldLockAsked) < s.cfg.HeartbeatTimeout/heartbeatsPerTimeout {
		return nil
	}

	s.oldLockAsked = time.Now()
	key, err := s.q.RelayKey(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("take the older programs' lock: %w", err)
	case key.OlderLeads:
		return errSuperseded
	}

	s.hasOldLock = key.Held
	return nil
}
