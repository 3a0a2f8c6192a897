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

// StatusUpdate is the body of a callback, as JSON.
type StatusUpdate struct {
	TaskID        string          `json:"taskId"`
	WorkflowID    string          `json:"workflowId"`
	StepID        string          `json:"stepId"` // empty if the task has none
	Status        string          `json:"status"` // after the transition, not at the time of the post
	Output        json.RawMessage `json:"output,omitempty"`
	Error         json.RawMessage `json:"error,omitempty"`
	CorrelationID string          `json:"correlationId"`
}

// update is one status update, ready to be posted.
type update struct {
	seq  int32     // of the event
	at   time.Time // of the transition
	id   string    // of the event; the same at every repetition
	body []byte
}

func newUpdate(row db.CallbackClaimRow) (update, error) {
	body, err := json.Marshal(StatusUpdate{
		TaskID: row.TaskID.String(), WorkflowID: row.WorkflowID, StepID: deref(row.StepID), Status: string(row.Now),
		Output: row.Output, Error: row.Error, CorrelationID: row.CorrelationID,
	})
	if err != nil {
		return update{}, fmt.Errorf("write update %d of task %s: %w", row.Seq, row.TaskID, err)
	}
	return update{seq: row.Seq, at: row.At, id: outbox.EventID(row.TaskID, row.Seq).String(), body: body}, nil
}

// deliver posts the updates of a delivery in order, until a post fails, and returns the delivery
// with the result.
func (d *Dispatcher) deliver(ctx context.Context, one delivery) delivery {
	for _, u := range one.updates {
		// The other updates stay due: the breaker is open, or the claim is about to run out.
		if time.Now().After(one.deadline) || ctx.Err() != nil || !one.host.breaker.Allow() {
			return one
		}

		err := d.post(ctx, one.address, u)
		if err == nil {
			one.host.breaker.Done(nil)
			d.delivered.Add(1)
			one.delivered, one.tries = u.seq, 0
			continue
		}

		// Run is stopping and has cancelled the post, which is no failure of the host.
		if ctx.Err() != nil {
			return one
		}
		return d.recordFailure(one, u, err)
	}

	return one
}

func (d *Dispatcher) post(ctx context.Context, address string, u update) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	return d.caller.Call(ctx, address, u.id, u.body)
}

// recordFailure returns the delivery after a failed post: abandoned, or with the pause before
// the next try.
func (d *Dispatcher) recordFailure(one delivery, u update, err error) delivery {
	maxPause, final := d.cfg.BackoffMax, false
	var refused *outbox.Refused
	if errors.As(err, &refused) {
		one.host.breaker.Done(nil) // the host works
		maxPause, final = d.cfg.RefusedMax, refused.Final
	} else {
		one.host.breaker.Done(err)
		one.noAnswer = true

		// The wrapped error names addresses inside the network. It goes to the log only; the
		// row has the outer error's text.
		if postponed := (*retry.Postponed)(nil); !errors.As(err, &postponed) && errors.Unwrap(err) != nil {
			d.cfg.Logger.Info("callback got no answer", "task", one.task, "host", one.host.name, "error", errors.Unwrap(err))
		}
	}

	one.tries++
	one.problem = shorten(err.Error())
	if final || time.Since(u.at) > d.cfg.AbandonAfter {
		one.delivered, one.abandoned = u.seq, true
		return one
	}

	one.wait = backoff(d.cfg.Backoff, maxPause, one.tries)
	// The host's Retry-After counts, up to the policy's longest pause.
	if postponed := (*retry.Postponed)(nil); errors.As(err, &postponed) {
		one.wait = max(one.wait, min(postponed.After, maxPause))
	}
	return one
}

// backoff returns a pause that doubles with each try and varies by a quarter to either side, so
// that tasks that failed together are not posted together again.
func backoff(first, longest time.Duration, tries int32) time.Duration {
	pause := longest
	if tries < 32 && first<<(tries-1) < longest { // a larger shift would overflow
		pause = first << (tries - 1)
	}
	return time.Duration(float64(pause) * (0.75 + rand.Float64()/2)) //nolint:gosec // jitter needs no secret
}

// maxProblem bounds the stored reason of a failure, in bytes.
const maxProblem = 200

// shorten removes secrets from a reason and makes it fit for a text column.
func shorten(reason string) string {
	// Secrets first, and in more than is kept: a cut could leave half of a secret, which no
	// pattern finds.
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
