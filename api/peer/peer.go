// Package peer calls the peer services: Integration, User, Notification, Resource,
// Auth and Observability. It is the client's side only; what a call means to a
// task is for its caller.
//
// Every call ends in one of three ways:
//
//	an answer          the value that was asked for
//	a refusal          *jobs.Failure: the peer service was there and said no, or
//	                   answered what cannot be used; it was asked once
//	an outage          *jobs.Outage: no answer came, however often the
//	                   service-call policy asked; nothing is known to have happened
//
// Where the interface document names a fallback for an outage, it stands beside
// the call: cached users, default resources. The others are the caller's.
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

// The names of the peer services, as outages and breakers carry them.
const (
	nameIntegration   = "integration"
	nameUser          = "user"
	nameNotification  = "notification"
	nameResource      = "resource"
	nameAuth          = "auth"
	nameObservability = "observability"
)

// Config says where the peer services are and how patiently they are called.
type Config struct {
	BaseURL string        // http or https, without query or user; required
	Timeout time.Duration // of one request, its answer's body included; default 10 s, and at most 2 s for notices and resources
	Policy  retry.Policy  // what it leaves open is as in retry.ServiceCalls

	// OnBreaker is told each change of a peer service's breaker. Default nobody. It must
	// not block.
	OnBreaker func(retry.Status)

	// Token is our own service token, sent as a bearer. Default none is sent.
	// It is asked for each request, so it may expire and be renewed.
	Token func(ctx context.Context) (string, error)

	// TLS is asked for at each new connection to an https address, so that certificates and
	// authorities may be renewed. The result is the client's from then on, and names no server.
	// Default: the system's authorities, no certificate of ours.
	TLS func() *tls.Config

	// Wrap goes round the transport, for tracing. Default nothing does.
	Wrap func(http.RoundTripper) http.RoundTripper
}

// Services are the clients of all peer services: one pool of connections, and a
// circuit breaker each; the Notification Service has one for each channel.
type Services struct {
	Integrations  *Integrations
	Users         *Users
	Notifications *Notifications
	Resources     *Resources
	Auth          *Auth
	Tracing       *Tracing

	transport *http.Transport
}

// brisk calls end at once when the breaker is open: they have a fallback, or somebody
// who waits.
const brisk = true

// hastyTimeout bounds a request where the fallback is as good as the answer, nearly:
// another channel, the default resources. With all retries it comes after 20 s.
const hastyTimeout = 2 * time.Second

// New makes the clients. It calls nobody: a peer service may be away at start.
func New(cfg Config) (*Services, error) {
	base, err := fixedBase(cfg.BaseURL)
	if err != nil {
		return nil, err
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	transport := newTransport(cfg.TLS)
	var tripper http.RoundTripper = transport
	if cfg.Wrap != nil {
		tripper = cfg.Wrap(transport)
	}
	client := &http.Client{
		Transport: tripper,
		Timeout:   cfg.Timeout,
		// A redirect is an answer nobody asked for; following it would carry the
		// parameters of a task to wherever it points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	to := func(name string, p retry.Policy, failFast bool) *caller {
		return &caller{name: name, base: base, client: client, token: cfg.Token, line: newLine(name, p, failFast, cfg.OnBreaker)}
	}
	hasty := *client
	hasty.Timeout = min(cfg.Timeout, hastyTimeout)
	channels := map[string]*caller{}
	for _, channel := range jobs.Channels {
		c := to(nameNotification, cfg.Policy, brisk)
		c.client, c.line = &hasty, newLine(nameNotification+"/"+channel, cfg.Policy, brisk, cfg.OnBreaker)
		channels[channel] = c
	}
	resource := to(nameResource, cfg.Policy, brisk)
	resource.client = &hasty
	once := cfg.Policy
	once.Retries = -1
	integration := to(nameIntegration, cfg.Policy, !brisk)
	integration.each = &each{policy: cfg.Policy.Or(retry.ServiceCalls), changed: cfg.OnBreaker}
	asking := *integration
	asking.line = integration.line.once()
	return &Services{
		Integrations:  &Integrations{integration, &asking},
		Users:         newUsers(to(nameUser, cfg.Policy, brisk)),
		Notifications: &Notifications{channels},
		Resources:     &Resources{resource},
		Auth:          newAuth(to(nameAuth, cfg.Policy, brisk)),
		Tracing:       &Tracing{to(nameObservability, once, brisk)},
		transport:     transport,
	}, nil
}

// Breaker of the Integration Service.
func (c *Integrations) Breaker() *retry.Breaker { return c.caller.line.breaker }

// Resting are the breakers of single integrations that are not closed, by name:
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

// Close drops idle connections. Calls under way go on.
func (n *Services) Close() { n.transport.CloseIdleConnections() }

// fixedBase is the address that every path is appended to.
func fixedBase(raw string) (string, error) {
	base, err := url.Parse(raw)
	if err != nil {
		return "", fmt.Errorf("peer services' address: %w", err)
	}
	if base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return "", fmt.Errorf("peer services' address %q is not an http or https URL", base.Redacted())
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return "", fmt.Errorf("peer services' address %q has more than scheme, host and path", base.Redacted())
	}
	return strings.TrimRight(base.String(), "/"), nil
}

// newTransport takes no proxy from the environment: the peer services are inside.
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
			config.NextProtos = []string{"h2", "http/1.1"} // else HTTP/2 would not be offered
			return (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, network, address)
		}
	}
	return transport
}
