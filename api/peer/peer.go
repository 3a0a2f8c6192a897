// Package peer calls the peer services: Integration, User, Notification, Resource, Auth and
// Observability. It only contains the clients; callers decide what a result means to a task.
//
// Every call ends in one of three ways:
//
//	a response         the value that was asked for
//	a refusal          *jobs.Failure: the peer service refused the request, or
//	                   its response cannot be used; it was asked once
//	an outage          *jobs.Outage: no response, after all retries of the
//	                   service-call policy; whether the request had an effect
//	                   is unknown
//
// Where the interface document names a fallback for an outage, the client implements it if it can:
// remembered users, default resources. The other fallbacks are the caller's.
package peer

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// The names of the peer services, as outages and circuit breakers carry them.
const (
	nameIntegration   = "integration"
	nameUser          = "user"
	nameNotification  = "notification"
	nameResource      = "resource"
	nameAuth          = "auth"
	nameObservability = "observability"
)

// Config configures New. BaseURL must be set.
type Config struct {
	BaseURL string        // http or https, without query or user; required
	Timeout time.Duration // of one request, including the response's body; default: 10 s, and at most 2 s for notices and resources
	Policy  retry.Policy  // zero fields are as in retry.ServiceCalls

	// OnBreaker is called at each change of a peer service's breaker. It must not block. Default:
	// none.
	OnBreaker func(retry.Status)

	// Token returns this service's own token, sent as a bearer token. It is called for each request,
	// so that tokens can be renewed. Default: no token.
	Token func(ctx context.Context) (string, error)

	// TLS is called for each new connection to an https address, so that certificates and authorities
	// can be renewed. The client may modify the result, which names no server. Default: the system's
	// authorities, no client certificate.
	TLS func() *tls.Config

	// Wrap wraps the transport, for tracing. Default: not wrapped.
	Wrap func(http.RoundTripper) http.RoundTripper
}

// Services are the clients of all peer services. They share one pool of connections. Each has a
// circuit breaker; the Notification Service has one for each channel.
type Services struct {
	Integrations  *Integrations
	Users         *Users
	Notifications *Notifications
	Resources     *Resources
	Auth          *Auth
	Tracing       *Tracing

	transport *http.Transport
}

// failFast makes a call fail at once while the breaker is open: for calls that have a fallback, or a
// caller who waits.
const failFast = true

// shortTimeout bounds a request whose fallback is nearly as good as the response: another channel,
// the default resources. With all retries the fallback comes after 20 s.
const shortTimeout = 2 * time.Second

// New makes the clients. It sends no request, so peer services may be unavailable.
func New(cfg Config) (*Services, error) {
	base, err := fixedBase(cfg.BaseURL)
	if err != nil {
		return nil, err
	}

	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}

	// One transport for all services, which may be behind one gateway.
	transport := newTransport(cfg.TLS)
	var tripper http.RoundTripper = transport
	if cfg.Wrap != nil {
		tripper = cfg.Wrap(transport)
	}

	client := &http.Client{
		Transport: tripper,
		Timeout:   cfg.Timeout,
		// Following a redirect would send a task's parameters to an unconfigured address.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}

	to := func(name string, p retry.Policy, failFast bool) *caller {
		return &caller{name: name, base: base, client: client, token: cfg.Token, line: newLine(name, p, failFast, cfg.OnBreaker)}
	}

	// Notices and resources share the pool of connections, with a shorter timeout.
	quick := *client
	quick.Timeout = min(cfg.Timeout, shortTimeout)
	// A breaker for each channel: a failing mail server must not stop chat.
	channels := map[string]*caller{}
	for _, channel := range jobs.Channels {
		c := to(nameNotification, cfg.Policy, failFast)
		c.client, c.line = &quick, newLine(nameNotification+"/"+channel, cfg.Policy, failFast, cfg.OnBreaker)
		channels[channel] = c
	}

	resource := to(nameResource, cfg.Policy, failFast)
	resource.client = &quick
	// Spans are best effort: one request, no retries.
	once := cfg.Policy
	once.Retries = -1
	integration := to(nameIntegration, cfg.Policy, !failFast)
	integration.each = &each{policy: cfg.Policy.Or(retry.ServiceCalls), changed: cfg.OnBreaker}
	// Reading the state of a connection: the breaker is shared, without retries.
	asking := *integration
	asking.line = integration.line.once()
	return &Services{
		Integrations:  &Integrations{integration, &asking},
		Users:         newUsers(to(nameUser, cfg.Policy, failFast)),
		Notifications: &Notifications{channels},
		Resources:     &Resources{resource},
		Auth:          newAuth(to(nameAuth, cfg.Policy, failFast)),
		Tracing:       &Tracing{to(nameObservability, once, failFast)},
		transport:     transport,
	}, nil
}

// Breaker of the Integration Service.
func (c *Integrations) Breaker() *retry.Breaker { return c.caller.line.breaker }

// Resting returns the breakers of single integrations that are not closed, by name:
// integration/<id>.
func (c *Integrations) Resting() []retry.Status { return c.caller.each.states() }

// Breaker of the User Service.
func (c *Users) Breaker() *retry.Breaker { return c.caller.line.breaker }

// Breakers of the Notification Service, one for each of jobs.Channels.
func (c *Notifications) Breakers() []*retry.Breaker {
	all := make([]*retry.Breaker, len(jobs.Channels))
	for i, channel := range jobs.Channels {
		all[i] = c.channels[channel].line.breaker
	}
	return all
}

// Breaker of the Resource Service.
func (c *Resources) Breaker() *retry.Breaker { return c.caller.line.breaker }

// Breaker of the Auth Service.
func (c *Auth) Breaker() *retry.Breaker { return c.caller.line.breaker }

// Breaker of the Observability Service.
func (c *Tracing) Breaker() *retry.Breaker { return c.caller.line.breaker }

// Close closes idle connections. Running calls continue.
func (n *Services) Close() { n.transport.CloseIdleConnections() }

// fixedBase validates the base address and removes its trailing slash.
func fixedBase(raw string) (string, error) {
	base, err := url.Parse(raw)
	if err != nil {
		return "", fmt.Errorf("address of the peer services: %w", err)
	}

	if base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return "", fmt.Errorf("address of the peer services: %q is not an http or https URL", base.Redacted())
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return "", fmt.Errorf("address of the peer services: %q has more than scheme, host and path", base.Redacted())
	}

	return strings.TrimRight(base.String(), "/"), nil
}

// newTransport ignores the proxy settings of the environment: the peer services are in the same
// network.
func newTransport(secure func() *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	transport := &http.Transport{
		Proxy:                  nil,
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    5 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           256,
		MaxIdleConnsPerHost:    128, // all peer services may be behind one gateway
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}

	if secure != nil {
		transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			config := secure()
			// Go offers HTTP/2 for a custom TLS configuration only if NextProtos names h2.
			config.NextProtos = []string{"h2", "http/1.1"}
			return (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, network, address)
		}
	}

	return transport
}
