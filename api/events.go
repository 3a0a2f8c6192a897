package api

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox"
)

// IntegrationResponses hears integration.response_received and ends the attempt
// that waits for it. A late, repeated or unknown response is recorded and changes
// nothing; one that comes before its task waits for it is asked for again.
func IntegrationResponses(tasks *jobs.Tasks, inbox *outbox.Inbox) outbox.Handler {
	return func(ctx context.Context, d outbox.Delivery) error {
		var event outbox.Envelope[outbox.IntegrationResponse]
		if err := jobs.GuardJSON(d.Body); err != nil {
			return &outbox.Poison{Reason: "not acceptable JSON: " + err.Error()}
		}
		if err := json.Unmarshal(d.Body, &event); err != nil {
			return &outbox.Poison{Reason: "not an integration response: " + err.Error()}
		}
		if event.Data.TaskID == "" {
			event.Data.TaskID = event.Metadata.TaskID
		}
		if event.ID == "" || event.Data.TaskID == "" || event.Data.Status == "" {
			return &outbox.Poison{Reason: "an integration response needs id, data.taskId and data.status"}
		}
		return inbox.Once(ctx, d.Subject, event.ID, func(ctx context.Context) (string, error) {
			outcome, err := tasks.Respond(ctx, event.Data)
			if errors.Is(err, jobs.ErrNotYet) && d.Redelivered > earlyTries {
				return "late", nil
			}
			return outcome, err
		})
	}
}

// earlyTries is how often a response may come before its task waits for it; with
// the bus's growing pauses, some minutes.
const earlyTries = 12
