package relay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/seed-3f7a0631/tes/db"
)

const (
	// maxUnmarked bounds how many messages at the stream's end are read for their ids. A broken
	// session leaves two batches unmarked at most, right behind the last publication.
	maxUnmarked = 1 << 16
	// minRequeuePage is how small the pages of requeue become when the database cancels
	// statements.
	minRequeuePage = 100
	// checkedOneByOne is how many of the newest batches are looked up in the stream individually.
	// Older ones are looked up in steps that double.
	checkedOneByOne = 256
)

// checkStreamEnd compares the stream with the publications, and moves publications that the
// stream has lost back into the outbox. The result is the stream's last sequence.
//
// No event is published before the last of the lost ones is back, or an event could overtake an
// older event of the same task. An interrupted run leaves the newest lost publications, and the time
// of the stream's creation, unchanged: the next session finds the loss again.
func (s *session) checkStreamEnd(ctx context.Context) (end uint64, err error) {
	end, created, intact, err := s.compare(ctx)
	if err != nil {
		return 0, err
	}

	if intact >= 0 {
		if err := s.requeue(ctx, intact, end); err != nil {
			return 0, err
		}
	}

	ctx, cancel := statementContext(ctx)
	defer cancel()

	if err := s.q.OutboxStreamPut(ctx, db.OutboxStreamPutParams{StreamCreatedAt: created, Term: s.term}); err != nil {
		return 0, fmt.Errorf("record the stream: %w", err)
	}
	return end, nil
}

// compare returns the stream's last sequence, the time of its creation, and the result of
// lastIntact.
func (s *session) compare(ctx context.Context) (end uint64, created time.Time, intact int64, err error) {
	ctx, cancel := statementContext(ctx)
	defer cancel()

	if end, created, err = s.bus.Tail(ctx); err != nil {
		return 0, created, 0, &busError{fmt.Errorf("read the stream's tail: %w", err)}
	}

	intact, err = s.lastIntact(ctx, created)
	return end, created, intact, err
}

// readUnmarked reads the message ids that the stream has behind the last publication, up to its
// end: a batch was published whose acknowledgement was never marked. These events must not be
// published again; the stream itself recognises a repetition for two minutes only.
func (s *session) readUnmarked(ctx context.Context, end uint64) (err error) {
	s.unmarkedSeqs = nil
	if end <= s.highestSeq {
		return nil
	}

	if s.unmarkedSeqs, err = s.bus.IDs(ctx, s.highestSeq+1, min(end, s.highestSeq+maxUnmarked)); err != nil {
		return &busError{fmt.Errorf("read the stream's end: %w", err)}
	}
	return nil
}

// requeue moves the publications after a sequence back into the outbox, oldest first, with one
// statement for each page.
func (s *session) requeue(ctx context.Context, intact int64, end uint64) error {
	n, page := int64(0), s.cfg.RequeuePage
	for after := intact; ; {
		// A requeue of many pages takes minutes; a stop or another leader must not wait.
		if err := s.interrupted(ctx); err != nil {
			return err
		}

		moved, err := s.requeuePage(ctx, after, page)
		// The page takes longer than the timeouts of the database allow.
		if isStatementCanceled(err) && page > minRequeuePage {
			page = max(page/4, minRequeuePage)
			continue
		}
		if err != nil {
			return fmt.Errorf("requeue lost events: %w", err)
		}

		if moved.Flushes == 0 {
			break
		}

		if n == 0 {
			s.cfg.Logger.Error("relay: the stream lost acknowledged events; publishing them again", "after", intact, "stream_ends_at", end)
		}

		n, after = n+moved.Flushes, moved.LastSeq
	}

	if n > 0 {
		s.cfg.Logger.Info("relay: the lost events are back in the outbox", "flushes", n)
	}

	return nil
}

func (s *session) requeuePage(ctx context.Context, after int64, page int32) (db.OutboxRequeueRow, error) {
	ctx, cancel := statementContext(ctx)
	defer cancel()
	return s.q.OutboxRequeue(ctx, db.OutboxRequeueParams{AfterSeq: after, Term: s.term, Page: page})
}

// isStatementCanceled reports that the database ended a statement after statement_timeout or
// lock_timeout.
func isStatementCanceled(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && (refused.Code == "57014" || refused.Code == "55P03")
}

// interrupted returns an error if the lead is lost or the relay is asked to stop: the next
// leader finishes the requeue.
func (s *session) interrupted(ctx context.Context) error {
	select {
	case <-s.lost:
		return s.lostErr
	case <-ctx.Done():
		return context.Cause(ctx)
	default:
		return nil
	}
}

// lastIntact returns the sequence of the newest batch that the stream still has, 0 if the
// stream has none, or -1 if no event is lost.
func (s *session) lastIntact(ctx context.Context, created time.Time) (int64, error) {
	known, err := s.q.OutboxStream(ctx)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return -1, nil // nothing was ever published
	case err != nil:
		return 0, fmt.Errorf("read the recorded stream: %w", err)
	case !known.Equal(created.Truncate(time.Microsecond)):
		return 0, nil // the stream was recreated
	}

	published, err := s.q.OutboxRounds(ctx, db.OutboxRoundsParams{FirstSeq: 1, EndSeq: math.MaxInt64, Rounds: checkedOneByOne})
	if err != nil {
		return 0, fmt.Errorf("read the last publications: %w", err)
	}

	// Newest first: if the newest batch is there, no older batch is lost.
	for i, p := range published {
		stored, err := s.stillStored(ctx, p)
		switch {
		case err != nil:
			return 0, err
		case stored && i == 0:
			return -1, nil
		case stored:
			return p.LastSeq, nil
		}
	}

	if len(published) == 0 {
		return -1, nil
	}

	return s.lastIntactBefore(ctx, published)
}

// lastIntactBefore goes on from lost batches, newest first, in doubling steps. Some intact batches
// may be behind the found batch: about as many events as are lost are published again without need,
// at most.
func (s *session) lastIntactBefore(ctx context.Context, lost []db.OutboxRoundsRow) (int64, error) {
	newest := lost[0].LastSeq
	for end := lost[len(lost)-1].LastSeq; end > 1; end -= newest - end + 1 {
		published, err := s.q.OutboxRounds(ctx, db.OutboxRoundsParams{FirstSeq: 1, EndSeq: end, Rounds: 1})
		if err != nil {
			return 0, fmt.Errorf("read the last publications: %w", err)
		}

		if len(published) == 0 {
			break
		}

		stored, err := s.stillStored(ctx, published[0])
		if err != nil {
			return 0, err
		}

		if stored {
			return published[0].LastSeq, nil
		}
	}

	return 0, nil
}

// stillStored reports whether the stream has the last message of a batch at the batch's
// sequence.
func (s *session) stillStored(ctx context.Context, published db.OutboxRoundsRow) (bool, error) {
	want, _, err := s.readMessages(ctx, s.q, []db.OutboxAdvanceRow{{ID: published.ID, Lo: published.Lo, Hi: published.Hi}})
	if err != nil {
		return false, err
	}

	quarantined, err := s.q.OutboxParkedIDs(ctx, db.OutboxParkedIDsParams{Lo: published.Lo, Hi: published.Hi})
	if err != nil {
		return false, fmt.Errorf("read the quarantined events: %w", err)
	}

	want = slices.DeleteFunc(want, func(m message) bool { return slices.Contains(quarantined, m.row.ID) })
	if len(want) == 0 {
		return true, nil // every event of the range was quarantined: there is no message to look for
	}

	id, err := s.bus.Stored(ctx, uint64(published.LastSeq))
	if err != nil {
		return false, &busError{fmt.Errorf("read the stream at %d: %w", published.LastSeq, err)}
	}
	return id == want[len(want)-1].ID, nil
}

// checkReusedSequences looks up the batches from a sequence on in the stream, because a new
// batch was given these sequences: the stream has lost the old batches, or had a part of
// the new batch before. Call checkReusedSequences before the new batch is marked, because the mark
// hides the old batches.
func (s *session) checkReusedSequences(ctx context.Context, first uint64) error {
	end := int64(math.MaxInt64)
	for {
		// Page by page to the end: later checks begin behind the new batch.
		published, err := s.q.OutboxRounds(ctx, db.OutboxRoundsParams{FirstSeq: int64(first), EndSeq: end, Rounds: checkedOneByOne})
		if err != nil {
			return fmt.Errorf("read the last publications: %w", err)
		}

		for _, p := range published {
			stored, err := s.stillStored(ctx, p)
			if err != nil {
				return err
			}

			if stored {
				continue
			}

			s.cfg.Logger.Error("relay: the stream lost acknowledged events; publishing them again", "was_at", p.LastSeq)
			if _, err := s.q.OutboxRequeueRound(ctx, db.OutboxRequeueRoundParams{LastSeq: p.LastSeq, Term: s.term}); err != nil {
				return fmt.Errorf("requeue lost events: %w", err)
			}
		}

		// A short page is the last page.
		if len(published) < checkedOneByOne {
			return nil
		}

		end = published[len(published)-1].LastSeq
	}
}
