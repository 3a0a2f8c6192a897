package peer

import (
	"context"
	"net/http"
)

// Notifications calls the Notification Service. Each channel has its own circuit breaker, because
// the channels are each other's fallback.
type Notifications struct{ channels map[string]*caller }

// NotifyRequest is a notice for one user through one channel, such as in-app or email.
type NotifyRequest struct {
	Channel  string `json:"channel"`
	UserID   string `json:"userId"`
	Template string `json:"template"`
	Data     any    `json:"data"`

	IdempotencyKey string `json:"-"` // the same for every repetition
}

// Notify sends a notice. After a failure the caller tries the definition's next channel.
func (c *Notifications) Notify(ctx context.Context, r NotifyRequest) error {
	caller, found := c.channels[r.Channel]
	if !found {
		return refusal("VALIDATION_ERROR", "no such channel")
	}
	return caller.call(ctx, question{
		method: http.MethodPost, path: "/api/notifications", body: r, idempotencyKey: r.IdempotencyKey,
	}, nil)
}
