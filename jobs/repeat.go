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

// isRepeat reports whether this call repeats the call that ended the task: same actor, status and
// result. A repeated call gets the first answer again. ifMatch may be the version before the end or
// after the end.
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

	// The row has the result of the task; only the event of the end has actor and comment.
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

// failure returns the failure of an update to FAILED or TIMED_OUT.
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

// sameJSON compares documents as idempotency keys do. Two missing documents are equal.
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

// withoutTimestamp removes the timestamp of a stored error, which TaskMove has added.
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
