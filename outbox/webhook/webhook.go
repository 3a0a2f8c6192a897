// Package webhook posts callbacks, signed by Standard Webhooks (https://www.standardwebhooks.com),
// so that a receiver can verify the sender.
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

// Config says how callbacks are signed and which networks they may go to.
type Config struct {
	// Secrets sign each callback; at least one.
	Secrets Secrets
	// Current returns the secrets of the next call, for secrets that are renewed; default:
	// Secrets.
	Current func() Secrets
	// Allow lists private networks that may be called; default none.
	Allow []netip.Prefix
}

// Caller posts callbacks. Safe for concurrent use.
type Caller struct {
	client  *http.Client
	secrets func() Secrets
}

// New returns a caller with connections of its own. Close drops the idle connections.
func New(cfg Config) *Caller { return newCaller(cfg, nil) }

// newCaller is New with a resolver, which tests replace; nil is the system's.
func newCaller(cfg Config, resolver *net.Resolver) *Caller {
	// Without renewal the secrets of the start are used.
	if cfg.Current == nil {
		cfg.Current = func() Secrets { return cfg.Secrets }
	}
	return &Caller{secrets: cfg.Current, client: egress.NewClient(egress.Config{Allow: cfg.Allow, Resolver: resolver})}
}

// Close drops idle connections. Calls in flight go on.
func (c *Caller) Close() { c.client.CloseIdleConnections() }

// Call posts body to address under an id and returns nil if the answer is a 2xx. Another answer
// is an *outbox.Refused, except that 5xx, 408, 429 and no answer are other errors.
func (c *Caller) Call(ctx context.Context, address, id string, body []byte) error {
	request, err := newRequest(ctx, address, body)
	if err != nil {
		return err
	}

	// The secrets of this moment: they may have been renewed since the last call.
	if err := c.secrets().sign(request.Header, id, body); err != nil {
		return err
	}

	response, err := c.client.Do(request)
	if err != nil {
		return callError(ctx, err)
	}

	defer response.Body.Close()

	// A connection whose answer was not read to its end cannot be used again.
	_, _ = io.CopyN(io.Discard, response.Body, 4<<10)
	return verdict(response.StatusCode, retry.After(response.Header, time.Now()))
}

func newRequest(ctx context.Context, address string, body []byte) (*http.Request, error) {
	to, err := url.Parse(address)
	if err != nil || to.Host == "" || to.Scheme != "http" && to.Scheme != "https" || to.User != nil {
		// Without the parser's error, which quotes the address and the keys in its query.
		return nil, &outbox.Refused{Reason: "the address is not one that can be called", Final: true}
	}

	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), bytes.NewReader(body))
	if err != nil {
		return nil, &outbox.Refused{Reason: "the address is not one that can be called", Final: true}
	}

	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "tes")
	return request, nil
}

// callError returns the reason for a missing answer, without the URL, whose query may have keys.
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

// unanswered is a missing answer. Its text names no address of a host or a name server.
type unanswered struct{ cause error }

// Error returns the text that is stored.
func (u *unanswered) Error() string { return "no answer: " + egress.Reason(u.cause) }

// Unwrap returns the cause, which may name addresses: for the log only.
func (u *unanswered) Unwrap() error { return u.cause }

// verdict returns the result of a call by the status of the answer, and by the time after which
// the host asks to be called again.
func verdict(status int, after time.Duration) error {
	reason := fmt.Sprintf("the answer is %d %s", status, http.StatusText(status))
	switch {
	case status >= 200 && status < 300:
		return nil
	// The host is overloaded or broken, and may work later.
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500:
		return retry.Postpone(errors.New(reason), after)
	case status >= 300 && status < 400:
		reason += "; redirects are not followed"
	}
	return retry.Postpone(&outbox.Refused{Reason: reason, Final: status == http.StatusGone}, after)
}

// sign sets the three headers of Standard Webhooks. The timestamp is that of this call, because
// receivers refuse a signature that is older than five minutes.
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
