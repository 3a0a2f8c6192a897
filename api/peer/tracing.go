package peer

import (
	"context"
	"net/http"
)

// Tracing calls the Observability Service.
type Tracing struct{ caller *caller }

// Send delivers a batch of spans with one request, without a retry: spans are best effort. It
// blocks until the request ends, so the exporter calls it in its own goroutine and counts the spans
// that an error dropped.
func (c *Tracing) Send(ctx context.Context, batch any) error {
	return c.caller.call(ctx, question{method: http.MethodPost, path: "/api/tracing/span", body: batch}, nil)
}
