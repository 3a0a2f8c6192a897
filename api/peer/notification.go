package peer

import (
	"context"
	"net/http"
)

// Notifications calls the Notification Service.
type Notifications struct{ caller *caller }

// Notify sends data to a user by one channel, such as in-app or email, in the
// shape of a template. When it fails, the next channel that the definition
// lists is for the caller to try.
func (c *Notifications) Notify(ctx context.Context, channel, userID, template string, data any) error {
	return c.caller.call(ctx, question{
		method: http.MethodPost,
		path:   "/api/notifications",
		body: struct {
			Channel  string `json:"channel"`
			UserID   string `json:"userId"`
			Template string `json:"template"`
			Data     any    `json:"data"`
		}{channel, userID, template, data},
	}, nil)
}
