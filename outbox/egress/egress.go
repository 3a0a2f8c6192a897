// Package egress has the HTTP client for addresses that callers choose: the URLs of http tasks
// and of callbacks. It protects the inside of the network (SSRF).
//
// A guard checks the address of each connection after name resolution, directly before the
// connection is made, so that a name cannot change its address between check and use. There is
// no proxy and no redirect.
package egress

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// Config says which addresses a client may call. The zero value is for production.
type Config struct {
	// Allow lists networks that may be called besides the public internet (ports 80 and 443), on
	// any port; default none. Addresses of cloud providers stay refused, unless a network here is
	// as narrow as theirs, such as 169.254.169.254/32.
	Allow []netip.Prefix
	// Resolver; default the system's.
	Resolver *net.Resolver
	// Wrap sees each request and its answer; default nil.
	Wrap func(http.RoundTripper) http.RoundTripper
}

// NewClient returns a client with connections of its own. The client has no time limit: give each
// request a context with one.
func NewClient(cfg Config) *http.Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second, Control: guardDial(cfg.Allow), Resolver: cfg.Resolver}
	below := &http.Transport{
		Proxy:                  nil, // a proxy would connect to an address that the guard does not see
		DialContext:            dialer.DialContext,
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}

	client := &http.Client{
		Transport:     below,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}

	// http.Client closes idle connections by a method of the transport, which a wrapper may lack.
	if cfg.Wrap != nil {
		client.Transport = wrapped{cfg.Wrap(below), below}
	}

	return client
}

// wrapped is a wrapped transport with the method to close its connections, which http.Client calls.
type wrapped struct {
	http.RoundTripper
	below *http.Transport
}

// CloseIdleConnections closes the idle connections of the transport below.
func (w wrapped) CloseIdleConnections() { w.below.CloseIdleConnections() }

// ErrBlocked is wrapped by the error of a request to an address that may not be called.
var ErrBlocked = errors.New("blocked")

// Unknown is the reason for a name that cannot be resolved, and for a name whose addresses may not
// be called. Two reasons would tell a caller which names exist inside the network.
const Unknown = "the host cannot be called: its name is not known, or its address is not one that may be called"

// Reason returns a text for the error of a request that names no address of a host or a name
// server. The error itself is for the log only.
func Reason(err error) string {
	var name *net.DNSError
	var network net.Error
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	var record tls.RecordHeaderError
	switch {
	// The same text for both, see Unknown.
	case errors.Is(err, ErrBlocked), errors.As(err, &name):
		return Unknown
	case errors.As(err, &certificate), errors.As(err, &alert), errors.As(err, &record):
		return "no TLS connection: the host's certificate, or its version of the protocol, is not acceptable"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the connection was refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no way to the host"
	case errors.As(err, &network) && network.Timeout():
		return "no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the connection ended before the answer did"
	}

	return "the answer is not one of HTTP"
}
