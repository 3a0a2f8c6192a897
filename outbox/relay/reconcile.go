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

// keepHours is how long it is remembered what was published where.
const keepHours = 24

// verifyTail asks whether the stream still ends with what it acknowledged. A bus
// may lose its tail (a power cut before fsync) or its whole stream; whatever lies
// behind the surviving end goes back into the outbox. Consumers know the ids.
//
// Nothing is published before all of it is back, or an event could overtake an older one
// of its task. Whoever is cut short leaves the newest of what was lost where the next look
// finds it, and the stream that was noted as it was.
func (t *turn) verifyTail(ctx context.Context) (end uint64, err error) {
	end, created, survived, err := t.compare(ctx)
	if err != nil {
		return 0, err
	}
	if survived >= 0 {
		if err := t.requeue(ctx, survived, end); err != nil {
			return 0, err
		}
	}
	ctx, enough := bounded(ctx)
	defer enough()
	if err := t.q.OutboxStreamPut(ctx, db.OutboxStreamPutParams{StreamCreatedAt: created, Term: t.term}); err != nil {
		return 0, fmt.Errorf("note the stream: %w", err)
	}
	return end, nil
}

// mostUnnoted bounds how many messages of the stream's end are read for their ids. What a
// broken round leaves unnoted are two rounds at most, right behind what was noted last.
const mostUnnoted = 1 << 16

// readUnnoted reads what the stream has behind the last publication that was noted: it was
// published by a round whose acknowledgement never came, and is not to be told again. The
// stream itself recognises a repetition for two minutes only.
func (t *turn) readUnnoted(ctx context.Context, end uint64) (err error) {
	t.stored = nil
	if end <= t.highest {
		return nil
	}
	if t.stored, err = t.bus.IDs(ctx, t.highest+1, min(end, t.highest+mostUnnoted)); err != nil {
		return &busError{fmt.Errorf("read the stream's end: %w", err)}
	}
	return nil
}

func (t *turn) compare(ctx context.Context) (end uint64, created time.Time, survived int64, err error) {
	ctx, enough := bounded(ctx)
	defer enough()
	if end, created, err = t.bus.Tail(ctx); err != nil {
		return 0, created, 0, &busError{fmt.Errorf("read the stream's tail: %w", err)}
	}
	survived, err = t.surviving(ctx, t.q, created)
	return end, created, survived, err
}

// smallestPage is as far as the pages of a requeue shrink when the database ends statements.
const smallestPage = 100

// requeue puts what was published after a sequence back into the outbox, page by page,
// each in a statement of its own and in order.
func (t *turn) requeue(ctx context.Context, survived int64, end uint64) error {
	n, page := int64(0), t.cfg.Page
	for after := survived; ; {
		if err := t.interrupted(ctx); err != nil {
			return err
		}
		moved, err := t.requeuePage(ctx, after, page)
		if tooLong(err) && page > smallestPage {
			page = max(page/4, smallestPage)
			continue
		}
		if err != nil {
			return fmt.Errorf("requeue what the stream lost: %w", err)
		}
		if moved.Flushes == 0 {
			break
		}
		if n == 0 {
			t.cfg.Logger.Error("relay: the stream lost acknowledged events; telling them again", "after", survived, "stream_ends_at", end)
		}
		n, after = n+moved.Flushes, moved.LastSeq
	}
	if n > 0 {
		t.cfg.Logger.Info("relay: what the stream lost is back in the outbox", "flushes", n)
	}
	return nil
}

func (t *turn) requeuePage(ctx context.Context, after int64, page int32) (db.OutboxRequeueRow, error) {
	ctx, enough := bounded(ctx)
	defer enough()
	return t.q.OutboxRequeue(ctx, db.OutboxRequeueParams{AfterSeq: after, Term: t.term, Page: page})
}

// tooLong says that the database ended a statement for its time, or for a lock's.
func tooLong(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && (refused.Code == "57014" || refused.Code == "55P03")
}

// interrupted says why a long work should be left to whoever leads next.
func (t *turn) interrupted(ctx context.Context) error {
	select {
	case <-t.lost:
		return t.whyLost
	case <-ctx.Done():
		return context.Cause(ctx)
	default:
		return nil
	}
}

// rememberedRounds is how far back the stream is compared with what was logged round by
// round; further back it is looked at in steps that double.
const rememberedRounds = 256

// surviving returns the last sequence that is known to be there, or -1 if all is.
// It looks back from the newest round until one is found where it was.
func (r *Relay) surviving(ctx context.Context, q *db.Queries, created time.Time) (int64, error) {
	known, err := q.OutboxStream(ctx)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return -1, nil // nothing was ever published
	case err != nil:
		return 0, fmt.Errorf("read the noted stream: %w", err)
	case !known.Equal(created.Truncate(time.Microsecond)):
		return 0, nil // another stream: it has none of it
	}
	rounds, err := q.OutboxRounds(ctx, db.OutboxRoundsParams{FirstSeq: 1, EndSeq: math.MaxInt64, Rounds: rememberedRounds})
	if err != nil {
		return 0, fmt.Errorf("read the last publications: %w", err)
	}
	for i, round := range rounds {
		holds, err := r.holds(ctx, q, round)
		switch {
		case err != nil:
			return 0, err
		case holds && i == 0:
			return -1, nil
		case holds:
			return round.LastSeq, nil
		}
	}
	if len(rounds) == 0 {
		return -1, nil
	}
	return r.survivingFar(ctx, q, rounds)
}

// survivingFar goes back from rounds that are all lost, each step twice as far, until a
// round is where it was. What lies behind that one is told again: at most about twice of
// what was lost.
func (r *Relay) survivingFar(ctx context.Context, q *db.Queries, lost []db.OutboxRoundsRow) (int64, error) {
	newest := lost[0].LastSeq
	for end := lost[len(lost)-1].LastSeq; end > 1; end -= newest - end + 1 {
		round, err := q.OutboxRounds(ctx, db.OutboxRoundsParams{FirstSeq: 1, EndSeq: end, Rounds: 1})
		if err != nil {
			return 0, fmt.Errorf("read the last publications: %w", err)
		}
		if len(round) == 0 {
			break
		}
		holds, err := r.holds(ctx, q, round[0])
		if err != nil {
			return 0, err
		}
		if holds {
			return round[0].LastSeq, nil
		}
	}
	return 0, nil
}

// holds says whether the stream still has the end of a round where it put it.
func (r *Relay) holds(ctx context.Context, q *db.Queries, round db.OutboxRoundsRow) (bool, error) {
	want, _, err := r.read(ctx, q, []db.OutboxAdvanceRow{{ID: round.ID, Lo: round.Lo, Hi: round.Hi}})
	if err != nil {
		return false, err
	}
	parked, err := q.OutboxParkedIDs(ctx, db.OutboxParkedIDsParams{Lo: round.Lo, Hi: round.Hi})
	if err != nil {
		return false, fmt.Errorf("read the parked events: %w", err)
	}
	want = slices.DeleteFunc(want, func(m told) bool { return slices.Contains(parked, m.row.ID) })
	if len(want) == 0 {
		return true, nil // it left nothing that could be looked for
	}
	id, err := r.bus.Stored(ctx, uint64(round.LastSeq))
	if err != nil {
		return false, &busError{fmt.Errorf("read the stream at %d: %w", round.LastSeq, err)}
	}
	return id == want[len(want)-1].ID, nil
}

// verifyOverlap looks at the rounds whose places a new one has been given: the
// stream hands a sequence out twice only if it has lost what stood there, or if
// the new round was partly told before. Call it before the new round is logged.
func (t *turn) verifyOverlap(ctx context.Context, first uint64) error {
	end := int64(math.MaxInt64)
	for {
		// All of them: what is not found now is passed by what comes next.
		rounds, err := t.q.OutboxRounds(ctx, db.OutboxRoundsParams{FirstSeq: int64(first), EndSeq: end, Rounds: rememberedRounds})
		if err != nil {
			return fmt.Errorf("read the last publications: %w", err)
		}
		for _, round := range rounds {
			holds, err := t.holds(ctx, t.q, round)
			if err != nil {
				return err
			}
			if holds {
				continue
			}
			t.cfg.Logger.Error("relay: the stream lost acknowledged events; telling them again", "was_at", round.LastSeq)
			if _, err := t.q.OutboxRequeueRound(ctx, db.OutboxRequeueRoundParams{LastSeq: round.LastSeq, Term: t.term}); err != nil {
				return fmt.Errorf("requeue what the stream lost: %w", err)
			}
		}
		if len(rounds) < rememberedRounds {
			return nil
		}
		end = rounds[len(rounds)-1].LastSeq
	}
}
