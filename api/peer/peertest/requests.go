package peertest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// How many requests of a peer service are remembered. Batches of spans are long and frequent.
const (
	maxRequests = 1000
	maxBatches  = 100
)

// redacted replaces a secret.
const redacted = "[redacted]"

// Request is one request to a peer service, whatever the response was.
type Request struct {
	Method  string            `json:"method"`
	Path    string            `json:"path"`            // as sent, escapes and all
	Query   string            `json:"query,omitempty"` // as sent, without the question mark
	Headers map[string]string `json:"headers"`         // canonical names; several values are joined with ", "; secrets redacted
	Body    json.RawMessage   `json:"body,omitempty"`  // a JSON string if it was not JSON
	At      time.Time         `json:"at"`              // UTC
}

func newRequest(r *http.Request, body []byte) Request {
	headers := make(map[string]string, len(r.Header))
	for name, values := range r.Header {
		headers[name] = strings.Join(values, ", ")
	}

	for _, name := range []string{"Authorization", "Proxy-Authorization", "X-User-Token", "Cookie"} {
		if value, found := headers[name]; found {
			headers[name] = redact(value)
		}
	}

	return Request{
		Method:  r.Method,
		Path:    r.URL.EscapedPath(),
		Query:   r.URL.RawQuery,
		Headers: headers,
		Body:    redactBody(body),
		At:      time.Now().UTC(),
	}
}

// redact keeps the scheme of a credential, for tests that check for one.
func redact(value string) string {
	if scheme, _, found := strings.Cut(value, " "); found && (scheme == "Bearer" || scheme == "Basic") {
		return scheme + " " + redacted
	}
	return redacted
}

// redactBody hides the only secret in a body: the token that the Auth Service is asked about.
func redactBody(body []byte) json.RawMessage {
	if len(body) == 0 {
		return nil
	}

	if !json.Valid(body) {
		quoted, _ := json.Marshal(string(body))
		return quoted
	}

	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) == nil && members["token"] != nil {
		members["token"] = json.RawMessage(`"` + redacted + `"`)
		body, _ = json.Marshal(members)
	}

	return body
}

func (p *part) record(r Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.requests) == p.most {
		p.requests = slices.Delete(p.requests, 0, 1)
	}
	p.requests = append(p.requests, r)
	close(p.grown)
	p.grown = make(chan struct{})
}

func (p *part) recorded() ([]Request, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests), p.grown
}

// Requests lists the requests to a peer service, oldest first: the last thousand (Observability:
// hundred) since Clear.
func (s *Server) Requests(service string) []Request {
	p, found := s.parts[service]
	if !found {
		panic("peertest: there is no peer service " + service)
	}
	requests, _ := p.recorded()
	return requests
}

// Await waits until there are n requests or more, and returns them.
func (s *Server) Await(ctx context.Context, service string, n int) ([]Request, error) {
	p, found := s.parts[service]
	if !found {
		return nil, fmt.Errorf("there is no peer service %q", service)
	}

	for {
		requests, grown := p.recorded()
		if len(requests) >= n {
			return requests, nil
		}
		select {
		case <-grown:
		case <-s.ctx.Done():
			return requests, fmt.Errorf("await %d requests to %s: the fake peer services closed at %d", n, service, len(requests))
		case <-ctx.Done():
			return requests, fmt.Errorf("await %d requests to %s, have %d: %w", n, service, len(requests), context.Cause(ctx))
		}
	}
}

// Clear forgets the requests to a peer service.
func (s *Server) Clear(service string) {
	if p, found := s.parts[service]; found {
		p.clear()
	}
}

func (p *part) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = nil
}

func (s *Server) getRequests(w http.ResponseWriter, r *http.Request) {
	if p := s.find(w, r); p != nil {
		requests, _ := p.recorded()
		if requests == nil {
			requests = []Request{}
		}
		writeJSON(w, http.StatusOK, requests)
	}
}

func (s *Server) deleteRequests(w http.ResponseWriter, r *http.Request) {
	if p := s.find(w, r); p != nil {
		p.clear()
		w.WriteHeader(http.StatusNoContent)
	}
}
