package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// healthcheckCmd asks a running service how it is: an image of one binary has nothing else
// that could.
type healthcheckCmd struct {
	URL   string        `help:"The service. Default: TES_HTTP on this machine." placeholder:"URL"`
	Ready bool          `help:"Ask /readyz instead of /livez: whether it takes requests, and not only whether it lives."`
	Wait  time.Duration `name:"timeout" default:"3s" help:"How long to wait for the answer."`
}

// mostHealth bounds what is read of the answer.
const mostHealth = 4 << 10

// Run exits without an error if the answer is 200.
func (c *healthcheckCmd) Run(s *shell) error {
	base := c.URL
	if base == "" {
		address := s.cfg.httpAddress()
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return &usageError{fmt.Sprintf("TES_HTTP: %q is no address: %v", address, err)}
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1" // it listens everywhere
		}
		base = "http://" + net.JoinHostPort(host, port)
	}
	path := "/livez"
	if c.Ready {
		path = "/readyz"
	}
	ctx, cancel := context.WithTimeout(s.ctx, c.Wait)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+path, nil)
	if err != nil {
		return &usageError{"--url: " + err.Error()}
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, mostHealth))
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d: %s", request.URL, response.StatusCode, strings.TrimSpace(string(text)))
	}
	s.printf("%s\n", strings.TrimSpace(string(text)))
	return nil
}
