package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// healthcheckCmd is the health probe of images that contain only this binary.
type healthcheckCmd struct {
	URL   string        `help:"The service. Default: TES_HTTP on this machine." placeholder:"URL"`
	Ready bool          `help:"Ask /readyz instead of /livez: whether the service takes requests, and not only whether it runs."`
	Wait  time.Duration `name:"timeout" default:"3s" help:"How long to wait for the answer."`
}

// mostHealth bounds the body of the response.
const mostHealth = 4 << 10

// Run returns nil if the response is a 200.
func (c *healthcheckCmd) Run(s *cmdContext) error {
	base, client := c.URL, http.DefaultClient
	if base == "" {
		address := s.cfg.httpAddress()
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return &usageError{fmt.Sprintf("TES_HTTP: %q is not HOST:PORT: %v", address, err)}
		}

		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1" // a listener on every address includes loopback
		}

		base = "http://" + net.JoinHostPort(host, port)
		if s.cfg.TLSCert != "" {
			base = "https://" + net.JoinHostPort(host, port)
			if client, err = ownClient(s.cfg); err != nil {
				return err
			}
		}
	}

	path := "/livez"
	if c.Ready {
		path = "/readyz"
	}

	// The limit holds for the whole call: a container runtime would kill a probe that hangs, and
	// log no reason.
	ctx, cancel := context.WithTimeout(s.ctx, c.Wait)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+path, nil)
	if err != nil {
		return &usageError{"--url: " + err.Error()}
	}

	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}

	defer response.Body.Close()

	// The body of /readyz names the unavailable part. Container runtimes keep the output of a probe.
	text, _ := io.ReadAll(io.LimitReader(response.Body, mostHealth))
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d: %s", request.URL, response.StatusCode, strings.TrimSpace(string(text)))
	}

	s.printf("%s\n", strings.TrimSpace(string(text)))
	return nil
}

// ownClient returns the TLS client for the service on this machine. The client does not verify the
// certificate, because the certificate names the service and not loopback. The client presents the
// server's certificate: if the listener requires client certificates, the authority of the server's
// certificate must be among TES_TLS_CLIENT_CA.
func ownClient(cfg Config) (*http.Client, error) {
	pair, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("TES_TLS_CERT, TES_TLS_KEY: %w", err)
	}
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, //nolint:gosec // see above
	}}}, nil
}
