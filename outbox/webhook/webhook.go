// Package webhook posts callbacks, signed as Standard Webhooks says
// (https://www.standardwebhooks.com), so that whoever takes them can tell that they
// are ours.
package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/egress"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// Config says how callbacks are signed and where they may go.
type Config struct {
	Secrets Secrets        // each signs; at least one
	Current func() Secrets // asked at each call instead, where secrets are renewed; default: Secrets
	Allow   []netip.Prefix // private networks that may be called; default none
}

// Caller posts callbacks. It is safe for concurrent use.
type Caller struct {
	client  *http.Client
	secrets func() Secrets
}

// New makes a caller with connections of its own. Close drops the idle ones.
func New(cfg Config) *Caller { return newCaller(cfg, nil) }

// newCaller takes the resolver that a test plays; nil is the system's.
func newCaller(cfg Config, resolver *net.Resolver) *Caller {
	if cfg.Current == nil {
		cfg.Current = func() Secrets { return cfg.Secrets }
	}
	return &Caller{secrets: cfg.Current, client: egress.NewClient(egress.Config{Allow: cfg.Allow, Resolver: resolver})}
}

// Close drops idle connections. Calls that run go on.
func (c *Caller) Close() { c.client.CloseIdleConnections() }

// Call posts body to address under an id. Any 2xx acknowledges it. An answer is an
// *outbox.Refused; no answer, a 5xx, 408 or 429 is another error.
func (c *Caller) Call(ctx context.Context, address, id string, body []byte) error {
	request, err := newRequest(ctx, address, body)
	if err != nil {
		return err
	}
	if err := c.secrets().sign(request.Header, id, body); err != nil {
		return err
	}
	response, err := c.client.Do(request)
	if err != nil {
		return callError(ctx, err)
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, 4<<10) // or the connection could not be used again
	return verdict(response.StatusCode, retry.After(response.Header, time.Now()))
}

func newRequest(ctx context.Context, address string, body []byte) (*http.Request, error) {
	to, err := url.Parse(address)
	if err != nil || to.Host == "" || to.Scheme != "http" && to.Scheme != "https" || to.User != nil {
		return nil, &outbox.Refused{Reason: "the address is not one that can be called", Final: true} // the parser's error quotes it
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), bytes.NewReader(body))
	if err != nil {
		return nil, &outbox.Refused{Reason: "the address is not one that can be called", Final: true}
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "tes")
	return request, nil
}

// callError is why there was no answer, without the URL, which may have keys in its
// query.
func callError(ctx context.Context, err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	switch {
	case errors.Is(err, egress.ErrBlocked):
		return &outbox.Refused{Reason: "the address is not one that may be called", Final: true}
	case ctx.Err() != nil:
		return errors.New("no answer in time")
	}
	return &unanswered{err}
}

// unanswered is no answer: in its words there is no address, neither the host's nor the
// name server's.
type unanswered struct{ cause error }

// Error is what is kept of it.
func (u *unanswered) Error() string { return "no answer: " + egress.Reason(u.cause) }

// Unwrap is the cause, for whoever decides by it.
func (u *unanswered) Unwrap() error { return u.cause }

// verdict is what a status says of a callback, and with it after how long to call again.
func verdict(status int, after time.Duration) error {
	said := fmt.Sprintf("the answer is %d %s", status, http.StatusText(status))
	switch {
	case status >= 200 && status < 300:
		return nil
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500:
		return retry.Postpone(errors.New(said), after)
	case status >= 300 && status < 400:
		said += "; redirects are not followed"
	}
	return retry.Postpone(&outbox.Refused{Reason: said, Final: status == http.StatusGone}, after)
}

// sign adds the three headers of Standard Webhooks. The time is that of this call:
// takers refuse what was signed more than five minutes ago.
func (s Secrets) sign(header http.Header, id string, body []byte) error {
	now := time.Now()
	signatures := make([]string, len(s))
	for i, one := range s {
		var err error
		if signatures[i], err = one.Sign(id, now, body); err != nil {
			return fmt.Errorf("sign: %w", err)
		}
	}
	header.Set(standardwebhooks.HeaderWebhookID, id)
	header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	header.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	return nil
}
