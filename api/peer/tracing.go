package peer

import (
	"context"
	"net/http"
)

// Tracing calls the Observability Service.
type Tracing struct{ caller *caller }

// Send delivers a batch of spans, with one request and no retry: spans are best
// effort. It blocks for as long as the request may take, so the exporter calls
// it from a goroutine of its own and counts what an error dropped.
func (c *Tracing) Send(ctx context.Context, batch any) error {
	return c.caller.call(ctx, question{method: http.MethodPost, path: "/api/tracing/span", body: batch}, nil)
}
