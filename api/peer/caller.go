package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// maxAnswer bounds the body of a response, in bytes.
const maxAnswer = 4 << 20

// caller sends requests to one peer service.
type caller struct {
	name   string
	base   string
	client *http.Client
	token  func(ctx context.Context) (string, error)
	line   *line
	each   *each // the integrations behind the service; nil for services that do their own work
}

// question is one request, unchanged for every repetition.
type question struct {
	method         string
	path           string // escaped
	query          url.Values
	body           any // marshalled to JSON; nil: no body
	idempotencyKey string
	correlationID  string
	async          bool   // prefer a 202 to waiting for the result
	of             string // the integration that the service shall use; only if each is set
}

// ask sends a request and returns the response, whatever its status: see answer. An error is a
// *jobs.Outage, or a *jobs.Failure for a request that cannot be sent.
func (c *caller) ask(ctx context.Context, q question) (*answer, error) {
	// Encoded once, so that every repetition has the same bytes.
	var body []byte
	if q.body != nil {
		var err error
		if body, err = json.Marshal(q.body); err != nil {
			return nil, refusal("VALIDATION_ERROR", fmt.Sprintf("the request to the %s service is not JSON: %v", c.name, err))
		}
	}

	// The transport would refuse control characters only while sending. The call would look like an
	// outage, be repeated, and count against the peer service.
	if !headerSafe(q.idempotencyKey) || !headerSafe(q.correlationID) {
		return nil, refusal("VALIDATION_ERROR", "a control character in the idempotency key or the correlation id")
	}

	request := func(ctx context.Context) (*answer, error) { return c.exchange(ctx, q, body) }
	// Integrations have breakers of their own, inside the service's.
	if c.each == nil || q.of == "" {
		return c.line.ask(ctx, request)
	}

	return c.line.ask(ctx, func(ctx context.Context) (*answer, error) { return c.each.call(ctx, q.of, request) })
}

// exchange sends one request and reads its response. An error means that there was no response.
func (c *caller) exchange(ctx context.Context, q question, body []byte) (*answer, error) {
	request, err := c.request(ctx, q, body)
	if err != nil {
		return nil, err
	}

	response, err := c.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", c.name, err)
	}
	defer response.Body.Close()
	// One byte more than allowed, so that newAnswer notices a longer body.
	read, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the response of %s: %w", c.name, err)
	}

	got := newAnswer(c.name, response.StatusCode, read)
	got.after = retry.After(response.Header, time.Now())
	// A 5xx with a document is the service's decision, and a refusal. Without one it is an outage.
	if got.status >= 500 && got.document == nil {
		return nil, retry.Postpone(&undocumented{c.name, got.status}, got.after)
	}

	return got, nil
}

// undocumented is an error response without an error document.
type undocumented struct {
	name   string
	status int
}

func (s *undocumented) Error() string {
	return fmt.Sprintf("%s responded with %d and without an error document", s.name, s.status)
}

func (c *caller) request(ctx context.Context, q question, body []byte) (*http.Request, error) {
	target := c.base + q.path
	if len(q.query) > 0 {
		target += "?" + q.query.Encode()
	}

	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}

	request, err := http.NewRequestWithContext(ctx, q.method, target, reader)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", c.name, err)
	}

	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if q.idempotencyKey != "" {
		// In lower case, which is equal on the wire. If net/http finds the canonical name, it repeats
		// a POST by itself when a kept connection is cut, and the policy's count of requests is wrong.
		request.Header["idempotency-key"] = []string{q.idempotencyKey}
	}

	if q.correlationID != "" {
		request.Header.Set("X-Correlation-Id", q.correlationID)
	}
	if q.async {
		request.Header.Set("Prefer", "respond-async") // RFC 7240
	}
	if c.token != nil {
		token, err := c.token(ctx)
		if err != nil {
			return nil, fmt.Errorf("get the service token for %s: %w", c.name, err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
	}

	return request, nil
}

// call sends a request and decodes a 2xx response into out; nil: the body is ignored.
func (c *caller) call(ctx context.Context, q question, out any) error {
	got, err := c.ask(ctx, q)
	if err != nil {
		return err
	}

	if err := got.refused(); err != nil {
		return err
	}
	if out == nil {
		return nil
	}

	return got.decode(out)
}

// segment escapes a value as one segment of a path. Values of dots alone are refused: they would
// lead to a parent directory.
func segment(value string) (string, bool) {
	if value == "" || value == "." || value == ".." || len(value) > 256 {
		return "", false
	}
	return url.PathEscape(value), true
}

func headerSafe(value string) bool {
	for i := range len(value) {
		if value[i] < 0x20 || value[i] == 0x7f {
			return false
		}
	}
	return true
}

// outage returns whether an error means that the peer service was unavailable.
func outage(err error) bool {
	var away *jobs.Outage
	return errors.As(err, &away)
}
