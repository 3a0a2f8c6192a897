package peer

import (
	"context"
	"net/http"
)

// Notifications calls the Notification Service. Each channel has a breaker of its own:
// with one for all, a channel that is down would take those with it that stand in for it.
type Notifications struct{ channels map[string]*caller }

// NotifyRequest is something that one user is told by one channel, such as in-app or
// email, in the shape of a template.
type NotifyRequest struct {
	Channel  string `json:"channel"`
	UserID   string `json:"userId"`
	Template string `json:"template"`
	Data     any    `json:"data"`

	IdempotencyKey string `json:"-"` // the same, whenever it is sent again
}

// Notify sends it. When it fails, the next channel that the definition lists is for
// the caller to try.
func (c *Notifications) Notify(ctx context.Context, r NotifyRequest) error {
	caller, found := c.channels[r.Channel]
	if !found {
		return refusal("VALIDATION_ERROR", "there can be no channel of that name")
	}
	return caller.call(ctx, question{
		method: http.MethodPost, path: "/api/notifications", body: r, idempotencyKey: r.IdempotencyKey,
	}, nil)
}
