package peertest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// maxBody bounds the body of a request.
const maxBody = 8 << 20

// The modes of a peer service.
const (
	ModeOK    = "ok"
	ModeError = "error"
	ModeSlow  = "slow"
	ModeHang  = "hang"
	ModeGone  = "gone"
)

// Steering is the behaviour of a peer service.
type Steering struct {
	Mode    string          `json:"mode"`             // default ok
	Status  int             `json:"status,omitempty"` // default 503 in mode error, 200 elsewhere
	Body    json.RawMessage `json:"body,omitempty"`   // the document to answer with; default none in mode error, the usual one elsewhere
	DelayMs int             `json:"delayMs"`          // default 2000 in mode slow, 0 elsewhere
	Times   int             `json:"times"`            // requests until ok again; default 0, until changed
}

func (st *Steering) setDefaults() error {
	switch st.Mode {
	case "":
		st.Mode = ModeOK
	case ModeError:
		if st.Status == 0 {
			st.Status = http.StatusServiceUnavailable
		}
	case ModeSlow:
		if st.DelayMs == 0 {
			st.DelayMs = 2000
		}
	case ModeOK, ModeHang, ModeGone:
	default:
		return fmt.Errorf("mode %q is none of ok, error, slow, hang, gone", st.Mode)
	}
	if st.Status != 0 && (st.Status < 200 || st.Status > 599) {
		return fmt.Errorf("status %d is not between 200 and 599", st.Status)
	}

	if st.DelayMs < 0 || st.Times < 0 {
		return fmt.Errorf("delayMs and times are not negative")
	}
	if string(st.Body) == "null" {
		st.Body = nil
	}
	return nil
}

// part is the state of one peer service.
type part struct {
	most     int // the number of remembered requests
	mu       sync.Mutex
	steering Steering      // owned by mu
	changed  chan struct{} // owned by mu; closed and replaced by Steer
	requests []Request     // owned by mu; the last ones
	grown    chan struct{} // owned by mu; closed and replaced when a request arrives
}

func newPart(most int) *part {
	return &part{
		most:     most,
		steering: Steering{Mode: ModeOK},
		changed:  make(chan struct{}),
		grown:    make(chan struct{}),
	}
}

func (p *part) steer(st Steering) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.steering = st
	close(p.changed)
	p.changed = make(chan struct{})
}

// take uses up one of the steering's times. The request that uses the last still gets the steering;
// hanging requests are not woken by that.
func (p *part) take() (Steering, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.steering
	if st.Times > 0 {
		p.steering.Times--
		if p.steering.Times == 0 {
			p.steering = Steering{Mode: ModeOK}
		}
	}

	return st, p.changed
}

// Steer sets the behaviour of a peer service from now on. Hanging requests get the response of st.
// It panics for an unknown service or mode.
func (s *Server) Steer(service string, st Steering) {
	p, found := s.parts[service]
	if !found {
		panic("peertest: there is no peer service " + service)
	}
	if err := st.setDefaults(); err != nil {
		panic("peertest: " + err.Error())
	}
	p.steer(st)
}

// answerFunc is the usual response of a peer service.
type answerFunc func(w http.ResponseWriter, r *http.Request, st Steering)

// play records the request and responds as the service is steered.
func (s *Server) play(service string, answer answerFunc) http.Handler {
	p := s.parts[service]
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.enter() {
			panic(http.ErrAbortHandler)
		}
		defer s.busy.Done()
		// Read completely before anything else: net/http notices a disconnected client only after the
		// body has been read.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			writeError(w, http.StatusRequestEntityTooLarge, "VALIDATION_ERROR", "the body could not be read")
			return
		}
		p.record(newRequest(r, body))
		r.Body = io.NopCloser(bytes.NewReader(body))

		st, changed := p.take()
		for st.Mode == ModeHang {
			select {
			case <-changed:
				st, changed = p.take()
			case <-r.Context().Done():
				panic(http.ErrAbortHandler)
			}
		}

		if st.DelayMs > 0 {
			select {
			case <-time.After(time.Duration(st.DelayMs) * time.Millisecond):
			case <-r.Context().Done():
				panic(http.ErrAbortHandler)
			}
		}

		switch {
		case st.Mode == ModeGone:
			// Closes the connection without a response.
			panic(http.ErrAbortHandler)
		case st.Mode == ModeError, st.Body != nil, st.Status >= 300:
			steered(w, st)
		default:
			answer(w, r, st)
		}
	})
}

// with lets the steering of another peer service apply too if it is gone or hangs, as if both were
// on one machine. The request is not recorded for the other.
func (s *Server) with(other string, then http.Handler) http.Handler {
	p := s.parts[other]
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for {
			p.mu.Lock()
			mode, changed := p.steering.Mode, p.changed
			p.mu.Unlock()
			switch mode {
			case ModeGone:
				panic(http.ErrAbortHandler)
			case ModeHang:
				select {
				case <-changed:
				case <-r.Context().Done():
					panic(http.ErrAbortHandler)
				}
			default:
				then.ServeHTTP(w, r)
				return
			}
		}
	})
}

// steered writes the response of the steering.
func steered(w http.ResponseWriter, st Steering) {
	status := st.Status
	if status == 0 {
		status = http.StatusOK
	}

	if st.Body != nil {
		w.Header().Set("Content-Type", "application/json")
	}

	w.WriteHeader(status)
	_, _ = w.Write(st.Body)
}

// getAll is the page at the address that tes dev prints.
func (s *Server) getAll(w http.ResponseWriter, _ *http.Request) {
	services := map[string]Steering{}
	for name, p := range s.parts {
		p.mu.Lock()
		services[name] = p.steering
		p.mu.Unlock()
	}

	writeJSON(w, http.StatusOK, map[string]any{
		"services": services,
		"usage": map[string]string{
			"GET /_standin/{service}":             "how it behaves",
			"PUT /_standin/{service}":             `how it shall: {"mode": "ok, error, slow, hang or gone", "status": 503, "body": {}, "delayMs": 0, "times": 0}; all but mode may be left out, and times 0 is until it is changed`,
			"GET /_standin/{service}/requests":    "what it was sent",
			"DELETE /_standin/{service}/requests": "forget that",
		},
	})
}

func (s *Server) getSteering(w http.ResponseWriter, r *http.Request) {
	if p := s.find(w, r); p != nil {
		p.mu.Lock()
		st := p.steering
		p.mu.Unlock()
		writeJSON(w, http.StatusOK, st)
	}
}

func (s *Server) putSteering(w http.ResponseWriter, r *http.Request) {
	p := s.find(w, r)
	if p == nil {
		return
	}

	var st Steering
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	// A misspelt member would have no effect.
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&st)
	if err == nil {
		err = st.setDefaults()
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, "VALIDATION_ERROR", err.Error())
		return
	}

	p.steer(st)
	writeJSON(w, http.StatusOK, st)
}

// find is the peer service of the path, or nil after a 404.
func (s *Server) find(w http.ResponseWriter, r *http.Request) *part {
	service := r.PathValue("service")
	p := s.parts[service]
	if p == nil {
		writeError(w, http.StatusNotFound, "NOT_FOUND", fmt.Sprintf("there is no peer service %q", service))
	}
	return p
}
