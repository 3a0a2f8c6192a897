package outbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// keepHours is how long it is remembered what was published where.
const keepHours = 24

// verifyTail asks whether the stream still ends with what it acknowledged. A bus
// may lose its tail (a power cut before fsync) or its whole stream; whatever lies
// behind the surviving end goes back into the outbox. Consumers know the ids.
func (t *turn) verifyTail(ctx context.Context) error {
	end, created, err := t.bus.Tail(ctx)
	if err != nil {
		return &busError{fmt.Errorf("read the stream's tail: %w", err)}
	}
	survived, err := t.surviving(ctx, t.q, created)
	if err != nil {
		return err
	}
	if survived >= 0 {
		n, err := t.q.OutboxRequeue(ctx, db.OutboxRequeueParams{SurvivingSeq: survived, Term: t.term})
		if err != nil {
			return fmt.Errorf("requeue what the stream lost: %w", err)
		}
		if n > 0 {
			t.cfg.Logger.Error("relay: the stream lost acknowledged events; telling them again", "flushes", n, "stream_ends_at", end)
		}
	}
	if err := t.q.OutboxStreamPut(ctx, db.OutboxStreamPutParams{StreamCreatedAt: created, Term: t.term}); err != nil {
		return fmt.Errorf("note the stream: %w", err)
	}
	return nil
}

// rememberedRounds is how far back the stream is compared with what was logged;
// if none of these rounds is where it was, nothing is trusted.
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
