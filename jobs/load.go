package jobs

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
)

// loadSpan is how old a task may be to count as work that somebody has: it bounds what
// is read of a person's history. Who has had one for longer has put it aside.
const loadSpan = 90 * 24 * time.Hour

// OpenTasks is how many manual tasks of the last 90 days each of these users has to do.
func (w *Worklist) OpenTasks(ctx context.Context, users []string) (map[string]int, error) {
	open := map[string]int{}
	if len(users) == 0 {
		return open, nil
	}

	rows, err := w.t.q.AssigneeLoad(ctx, db.AssigneeLoadParams{UserIds: users, Since: firstIDAt(time.Now().Add(-loadSpan))})
	if err != nil {
		return nil, readError("what people have to do", err)
	}

	for _, row := range rows {
		open[row.UserID] = int(row.Open)
	}

	return open, nil
}

// firstIDAt is below every task id that was made at that moment or later (UUIDv7: 48
// bits of milliseconds).
func firstIDAt(at time.Time) (id uuid.UUID) {
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(id[:6], ms[2:])
	return id
}
