package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs/canonical"
	"github.com/seed-3f7a0631/tes/outbox"
)

// lastEnd is the call that ended a task: its actor, and the comment, which the row does not have.
type lastEnd struct {
	actor   string
	comment string
}

// isRepeat says whether the task has ended by this very word, from the same mouth: then it
// is answered as the first time. ifMatch may be the version that the first was sent with, or
// the one that it came to. An end that is another's, or another end, is no repetition.
func (t *Tasks) isRepeat(ctx context.Context, task db.Task, ifMatch int32, to Update, reason string, word lastEnd) (bool, error) {
	switch {
	case !Status(task.Status).Terminal() || Status(task.Status) != to.Status:
		return false, nil
	case ifMatch != 0 && ifMatch != task.Version && ifMatch != task.Version-1:
		return false, nil
	case to.Status == Completed && !sameJSON(task.Output, to.Output):
		return false, nil
	case (to.Status == Failed || to.Status == TimedOut) && !sameJSON(withoutTimestamp(task.Error), withoutTimestamp(problemJSON(to.failure(reason), false))):
		return false, nil
	}

	rows, err := t.q.TaskEvents(ctx, db.TaskEventsParams{TaskID: task.TaskID, After: task.Version - 1, Most: longestInput, Page: 1})
	if err != nil {
		return false, readError("events of task "+task.TaskID.String(), err)
	}
	if len(rows) == 0 || rows[0].Actor != word.actor {
		return false, nil
	}

	var note outbox.CompletedNote
	if to.Status == Completed && rows[0].Payload != "" {
		if err := json.Unmarshal([]byte(rows[0].Payload), &note); err != nil {
			return false, fmt.Errorf("read how task %s ended: %w", task.TaskID, err)
		}
	}

	return note.Comment == word.comment, nil
}

// failure is what an update by hand fails a task with.
func (u Update) failure(reason string) *Failure {
	f := u.Error
	if f == nil {
		f = &Failure{Code: CodeExecution, Message: reason}
	}
	if u.Status == TimedOut {
		f = &Failure{Code: CodeTimeout, Message: f.Message, Details: f.Details}
	}
	return f
}

// sameJSON compares documents as idempotency keys do; none is equal to none.
func sameJSON(a, b json.RawMessage) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}

	x, err := canonical.Hash(a)
	if err != nil {
		return false
	}

	y, err := canonical.Hash(b)
	return err == nil && bytes.Equal(x[:], y[:])
}

// withoutTimestamp is an error as it was said, before the move put its time to it.
func withoutTimestamp(problem json.RawMessage) json.RawMessage {
	var members map[string]json.RawMessage
	if json.Unmarshal(problem, &members) != nil {
		return problem
	}

	delete(members, "timestamp")
	text, err := json.Marshal(members)
	if err != nil {
		return problem
	}

	return text
}
