// Package outside is the way to addresses that are somebody else's word: the URLs of
// http tasks, and of callbacks.
//
// Each connection is judged by the address it is about to be made to, after name
// resolution: a name that changes its address between check and use gains nothing.
// There is no proxy and no redirect.
package outside

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// Config says where a client may go. The zero value is for production.
type Config struct {
	Allow    []netip.Prefix // networks that may be called, on any port; default none but the public internet, on 80 and 443
	Resolver *net.Resolver  // default the system's
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

// guardDial refuses every address that is not public, but for the allowed
// networks, and says so before a packet leaves.
func guardDial(allow []netip.Prefix) func(network, address string, c syscall.RawConn) error {
	public := ssrf.New()
	return func(network, address string, c syscall.RawConn) error {
		if to, err := netip.ParseAddrPort(address); err == nil && strings.HasPrefix(network, "tcp") {
			ip := to.Addr().Unmap()
			if slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(ip) }) {
				return nil
			}
		}
		if err := public.Safe(network, address, c); err != nil {
			return fmt.Errorf("%w: %w", ErrBlocked, err)
		}
		return nil
	}
}
