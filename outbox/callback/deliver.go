package callback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/redact"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// StatusUpdate is the body of a callback.
type StatusUpdate struct {
	TaskID        string          `json:"taskId"`
	WorkflowID    string          `json:"workflowId"`
	StepID        string          `json:"stepId"` // empty where the task has none
	Status        string          `json:"status"` // after the move, not at the time of the call
	Output        json.RawMessage `json:"output,omitempty"`
	Error         json.RawMessage `json:"error,omitempty"`
	CorrelationID string          `json:"correlationId"`
}

// update is one status update on its way.
type update struct {
	seq  int32
	at   time.Time
	id   string
	body []byte
}

func updateOf(row db.CallbackClaimRow) (update, error) {
	body, err := json.Marshal(StatusUpdate{
		TaskID: row.TaskID.String(), WorkflowID: row.WorkflowID, StepID: deref(row.StepID), Status: string(row.Now),
		Output: row.Output, Error: row.Error, CorrelationID: row.CorrelationID,
	})
	if err != nil {
		return update{}, fmt.Errorf("write update %d of task %s: %w", row.Seq, row.TaskID, err)
	}
	return update{seq: row.Seq, at: row.At, id: outbox.EventID(row.TaskID, row.Seq).String(), body: body}, nil
}

// deliver makes the calls of one trip, until one is in vain.
func (c *Dispatcher) deliver(ctx context.Context, t trip) trip {
	for _, u := range t.updates {
		// The others wait as they are: their host is not there, or there is no time left.
		if time.Now().After(t.until) || ctx.Err() != nil || !t.host.breaker.Allow() {
			return t
		}
		err := c.call(ctx, t.address, u)
		if err == nil {
			t.host.breaker.Done(nil)
			c.taken.Add(1)
			t.told, t.tries = u.seq, 0
			continue
		}
		if ctx.Err() != nil {
			return t // we hung up, which says nothing of the host
		}
		return c.failed(t, u, err)
	}
	return t
}

func (c *Dispatcher) call(ctx context.Context, address string, u update) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	return c.caller.Call(ctx, address, u.id, u.body)
}

// failed says how a trip goes on after a call in vain.
func (c *Dispatcher) failed(t trip, u update, err error) trip {
	longest, final := c.cfg.BackoffMax, false
	var refused *outbox.Refused
	if errors.As(err, &refused) {
		t.host.breaker.Done(nil) // it is there
		longest, final = c.cfg.RefusedMax, refused.Final
	} else {
		t.host.breaker.Done(err)
		t.away = true
		if cause := (*retry.Postponed)(nil); !errors.As(err, &cause) && errors.Unwrap(err) != nil {
			// The row says it without addresses.
			c.cfg.Logger.Info("a callback got no answer", "task", t.task, "host", t.host.name, "error", errors.Unwrap(err))
		}
	}
	t.tries++
	t.problem = shorten(err.Error())
	if final || time.Since(u.at) > c.cfg.GiveUp {
		t.told, t.givenUp = u.seq, true
		return t
	}
	t.wait = backoff(c.cfg.Backoff, longest, t.tries)
	if asked := (*retry.Postponed)(nil); errors.As(err, &asked) {
		t.wait = max(t.wait, min(asked.After, longest))
	}
	return t
}

// backoff doubles with each try, and is spread by a quarter to either side, so that
// those who failed together do not come back together.
func backoff(first, longest time.Duration, tries int32) time.Duration {
	pause := longest
	if tries < 32 && first<<(tries-1) < longest {
		pause = first << (tries - 1)
	}
	return time.Duration(float64(pause) * (0.75 + rand.Float64()/2)) //nolint:gosec // it guards nothing
}

// maxProblem bounds what is kept of a reason, in bytes.
const maxProblem = 200

// shorten makes a reason fit for a text column.
func shorten(reason string) string {
	reason = redact.Text(reason[:min(len(reason), 8*maxProblem)])
	reason = strings.ReplaceAll(strings.ToValidUTF8(reason, "�"), "\x00", "�")
	if len(reason) <= maxProblem {
		return reason
	}
	return strings.ToValidUTF8(reason[:maxProblem], "")
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
