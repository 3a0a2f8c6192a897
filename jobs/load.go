package jobs

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
)

// loadSpan is the age up to which a task counts as open work of a person. The span bounds
// the reading of a person's history; a task that is open for longer was put aside.
const loadSpan = 90 * 24 * time.Hour

// OpenTasks returns the number of open manual tasks of each user, of the last 90 days.
func (w *Worklist) OpenTasks(ctx context.Context, users []string) (map[string]int, error) {
	open := map[string]int{}
	if len(users) == 0 {
		return open, nil
	}

	// Task ids have the time of the creating process, so this process's clock is near enough.
	rows, err := w.t.q.AssigneeLoad(ctx, db.AssigneeLoadParams{UserIds: users, Since: firstIDAt(time.Now().Add(-loadSpan))})
	if err != nil {
		return nil, readError("what people have to do", err)
	}

	for _, row := range rows {
		open[row.UserID] = int(row.Open)
	}

	return open, nil
}

// firstIDAt is below the id of every task created at this moment or later: a UUIDv7 begins
// with 48 bits of milliseconds.
func firstIDAt(at time.Time) (id uuid.UUID) {
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(id[:6], ms[2:])
	return id
}
