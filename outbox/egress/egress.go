// Package egress is the way to addresses that are somebody else's word: the URLs of
// http tasks, and of callbacks.
//
// Each connection is judged by the address it is about to be made to, after name
// resolution: a name that changes its address between check and use gains nothing.
// There is no proxy and no redirect.
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

// Config says where a client may go. The zero value is for production.
type Config struct {
	// Allow are networks that may be called, on any port; default none but the public
	// internet, on 80 and 443. What is a cloud provider's alone stays refused, unless a
	// network here is as narrow, such as 169.254.169.254/32.
	Allow    []netip.Prefix
	Resolver *net.Resolver // default the system's
	// Wrap sees each request and its answer; default nobody does.
	Wrap func(http.RoundTripper) http.RoundTripper
}

// NewClient returns a client with connections of its own. It has no time limit: give
// each request a context that has.
func NewClient(cfg Config) *http.Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second, Control: guardDial(cfg.Allow), Resolver: cfg.Resolver}
	below := &http.Transport{
		Proxy:                  nil, // a proxy would make the connection that the guard never sees
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
	if cfg.Wrap != nil {
		client.Transport = wrapped{cfg.Wrap(below), below}
	}
	return client
}

// wrapped keeps the way to the connections, which the client asks its transport for.
type wrapped struct {
	http.RoundTripper
	below *http.Transport
}

// CloseIdleConnections is for http.Client.
func (w wrapped) CloseIdleConnections() { w.below.CloseIdleConnections() }

// ErrBlocked is in the error of a request whose address may not be called.
var ErrBlocked = errors.New("blocked")

// Unknown is what is said of a name that cannot be resolved, and of one whose addresses
// may not be called: to tell them apart would be to say which names exist inside.
const Unknown = "the host cannot be called: its name is not known, or its address is not one that may be called"

// Reason says why there was no answer, in words that name no address: neither the
// host's, nor the name server's. The error itself is for the log.
func Reason(err error) string {
	var name *net.DNSError
	var network net.Error
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	var record tls.RecordHeaderError
	switch {
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
