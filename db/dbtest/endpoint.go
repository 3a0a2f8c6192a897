package dbtest

import (
	"bytes"
	"context"
	"net"
	"net/url"
	"sync"
	"testing"
)

// Endpoint is a TCP address in front of a database server. A test can change the server, as a
// failover does, and silence connections, as a router does.
type Endpoint struct {
	listener net.Listener
	all      sync.WaitGroup

	mu     sync.Mutex
	target string             // host:port or socket path; guarded by mu
	wires  map[*wire]struct{} // open connections; guarded by mu
	made   int                // connections made so far; guarded by mu
}

// wire is one connection through an Endpoint.
type wire struct {
	near, far net.Conn
	mu        sync.Mutex
	listens   bool // a LISTEN was sent; guarded by mu
	mute      bool // all bytes are dropped, and both ends stay open; guarded by mu
}

// NewEndpoint returns an endpoint that leads to the server of a URL. It ends with the test.
func NewEndpoint(t testing.TB, dsn string) *Endpoint {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}

	e := &Endpoint{listener: listener, wires: map[*wire]struct{}{}}
	e.LeadTo(t, dsn)
	e.all.Go(e.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		e.Cut()
		e.all.Wait()
	})

	return e
}

// URL returns dsn with the endpoint's address in place of the server's address.
func (e *Endpoint) URL(t testing.TB, dsn string) string {
	t.Helper()
	parsed, err := url.Parse(dsn)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}

	parsed.Host = e.listener.Addr().String()
	query := parsed.Query()

	// The parameters of a socket.
	query.Del("host")
	query.Del("port")
	query.Set("sslmode", "disable")
	parsed.RawQuery = query.Encode()

	return parsed.String()
}

// LeadTo directs new connections to the server of a URL, and cuts the open connections.
func (e *Endpoint) LeadTo(t testing.TB, dsn string) {
	t.Helper()
	parsed, err := url.Parse(dsn)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}

	target := parsed.Host

	// The server listens on a socket.
	if dir := parsed.Query().Get("host"); dir != "" {
		target = dir + "/.s.PGSQL." + parsed.Query().Get("port")
	}

	e.mu.Lock()
	e.target = target
	e.mu.Unlock()
	e.Cut()
}

// Cut closes all connections.
func (e *Endpoint) Cut() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for w := range e.wires {
		w.close()
	}
}

// MuteListeners silences the connections on which a LISTEN was sent: they stay open, and no
// byte passes in either direction. The result is their number. Other connections work.
func (e *Endpoint) MuteListeners() (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()

	for w := range e.wires {
		w.mu.Lock()
		if w.listens && !w.mute {
			w.mute = true
			n++
		}

		w.mu.Unlock()
	}

	return n
}

// Made returns the number of connections made so far.
func (e *Endpoint) Made() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.made
}

func (e *Endpoint) accept() {
	for {
		near, err := e.listener.Accept()
		if err != nil {
			return
		}
		e.all.Go(func() { e.serve(near) })
	}
}

func (e *Endpoint) serve(near net.Conn) {
	e.mu.Lock()
	target := e.target
	e.mu.Unlock()
	network := "tcp"
	if target[0] == '/' {
		network = "unix"
	}

	far, err := (&net.Dialer{}).DialContext(context.Background(), network, target)
	if err != nil {
		_ = near.Close()
		return
	}

	w := &wire{near: near, far: far}
	e.mu.Lock()
	e.made++
	// LeadTo may have cut the connections while this one was being made.
	stale := target != e.target
	e.wires[w] = struct{}{}
	e.mu.Unlock()
	if stale {
		w.close()
	}

	var both sync.WaitGroup
	both.Go(func() { w.copy(far, near) })
	both.Go(func() { w.copy(near, far) })
	both.Wait()
	e.mu.Lock()
	delete(e.wires, w)
	e.mu.Unlock()
}

func (w *wire) close() { _, _ = w.near.Close(), w.far.Close() }

func (w *wire) copy(to, from net.Conn) {
	defer func() {
		// Closing would tell the other end.
		if !w.muted() {
			w.close()
		}
	}()

	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}

		if !w.passes(buf[:n]) {
			continue
		}

		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// passes reports whether bytes are forwarded.
func (w *wire) passes(some []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listens = w.listens || bytes.Contains(some, []byte("LISTEN "))
	return !w.mute
}

func (w *wire) muted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mute
}
