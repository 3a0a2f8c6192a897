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

// maxAnswer is the most that is read of an answer.
const maxAnswer = 4 << 20

// caller asks one peer service.
type caller struct {
	name   string
	base   string
	client *http.Client
	token  func(ctx context.Context) (string, error)
	line   *line
	each   *each // for whom the peer service works; nil for those who do their own work
}

// question is one request, the same for every time that it is asked.
type question struct {
	method         string
	path           string // escaped already
	query          url.Values
	body           any // marshalled to JSON; nil for none
	idempotencyKey string
	correlationID  string
	async          bool   // prefer an acceptance to an answer
	of             string // whom the peer service is to ask; only where there is each
}

// ask answers what the peer service answered, refusals included: see answer. The
// error is a *jobs.Outage, or a *jobs.Failure for what cannot be asked.
func (c *caller) ask(ctx context.Context, q question) (*answer, error) {
	var body []byte
	if q.body != nil {
		var err error
		if body, err = json.Marshal(q.body); err != nil {
			return nil, refusal("VALIDATION_ERROR", fmt.Sprintf("the request to the %s service is not JSON: %v", c.name, err))
		}
	}
	// Caught here because the transport refuses them too late: as a request
	// that failed, which would be tried again and held against the peer service.
	if !headerSafe(q.idempotencyKey) || !headerSafe(q.correlationID) {
		return nil, refusal("VALIDATION_ERROR", "a control character in the idempotency key or the correlation id")
	}
	request := func(ctx context.Context) (*answer, error) { return c.exchange(ctx, q, body) }
	if c.each == nil || q.of == "" {
		return c.line.ask(ctx, request)
	}
	return c.line.ask(ctx, func(ctx context.Context) (*answer, error) { return c.each.call(ctx, q.of, request) })
}

// exchange is one request and its answer. An error means that there was no
// answer.
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
	read, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.name, err)
	}
	got := newAnswer(c.name, response.StatusCode, read)
	got.after = retry.After(response.Header, time.Now())
	if got.status >= 500 && got.document == nil {
		return nil, retry.Postpone(&speechless{c.name, got.status}, got.after)
	}
	return got, nil
}

// speechless is an answer that says nothing but that something is wrong.
type speechless struct {
	name   string
	status int
}

func (s *speechless) Error() string {
	return fmt.Sprintf("%s answered %d without an error document", s.name, s.status)
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
		// In lower case, which is the same on the wire, because net/http looks
		// for the canonical name: where it finds it, it repeats a POST by itself
		// when a kept connection is cut, and the policy's count is wrong.
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
			return nil, fmt.Errorf("get our token for %s: %w", c.name, err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
	}
	return request, nil
}

// call asks and decodes a 2xx answer into out; nil when nothing is expected.
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

// segment is a value as one segment of a path. Dots alone would climb: they are
// no id of anything.
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

// outage reports whether an error says that the peer service was away.
func outage(err error) bool {
	var away *jobs.Outage
	return errors.As(err, &away)
}
