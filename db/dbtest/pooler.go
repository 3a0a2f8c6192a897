package dbtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// Pooler hands out sessions of a server by the transaction, or by the session, as PgBouncer
// does, for machines that have none. It knows no more of the protocol than that takes.
type Pooler struct {
	// BySession keeps a session for as long as its client is there. Default: by the transaction.
	BySession bool
	// Swallow takes every parameter of a session and does nothing with it. Default: those
	// that it does not know are refused.
	Swallow bool

	config *pgconn.Config
	places chan struct{} // one for each session that there may be

	mu   sync.Mutex
	idle []*pgconn.HijackedConn // the last one is taken first; guarded by mu
	open map[net.Conn]struct{}  // guarded by mu
	all  sync.WaitGroup
}

// Start listens before the server of a URL and returns the URL through it. It ends with the
// test.
func (p *Pooler) Start(t testing.TB, dsn string) string {
	t.Helper()
	var err error
	if p.config, err = pgconn.ParseConfig(dsn); err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	p.places, p.open = make(chan struct{}, 10), map[net.Conn]struct{}{}
	p.all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.all.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.mu.Lock()
		for conn := range p.open {
			_ = conn.Close()
		}
		p.mu.Unlock()
		p.all.Wait()
	})
	return "postgres://" + p.config.User + "@" + listener.Addr().String() + "/" + p.config.Database + "?sslmode=disable"
}

// track remembers a connection until it is closed.
func (p *Pooler) track(conn net.Conn) (done func()) {
	p.mu.Lock()
	p.open[conn] = struct{}{}
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		delete(p.open, conn)
		p.mu.Unlock()
		_ = conn.Close()
	}
}

// knownParameters are those that PgBouncer takes as installed.
var knownParameters = []string{"user", "database", "application_name", "client_encoding", "datestyle", "timezone", "standard_conforming_strings"}

func (p *Pooler) serve(client net.Conn) {
	defer p.track(client)()
	parameters := greeting(client)
	for i := 0; i+1 < len(parameters) && !p.Swallow; i += 2 {
		if name := strings.ToLower(parameters[i]); name != "" && !slices.Contains(knownParameters, name) {
			text := "SFATAL\x00VFATAL\x00C08P01\x00Munsupported startup parameter: " + name + "\x00\x00"
			_, _ = client.Write(message('E', []byte(text)))
			return
		}
	}
	if parameters == nil {
		return
	}
	first, err := p.take()
	if err != nil {
		return
	}
	hello := message('R', []byte{0, 0, 0, 0})
	for name, value := range first.ParameterStatuses {
		hello = append(hello, message('S', []byte(name+"\x00"+value+"\x00"))...)
	}
	p.give(first)
	hello = append(hello, message('K', []byte{0, 0, 0, 1, 0, 0, 0, 1})...)
	if _, err := client.Write(append(hello, message('Z', []byte{'I'})...)); err != nil {
		return
	}
	(&pooled{pooler: p, client: client}).run()
}

// greeting reads the start of a session and returns its parameters, names and values by
// turns; nil if it is none.
func greeting(client net.Conn) []string {
	for {
		_, text, err := readMessage(client, true)
		if err != nil || len(text) < 8 {
			return nil
		}
		switch binary.BigEndian.Uint32(text[4:]) {
		case 80877103, 80877104: // in TLS, please
			if _, err := client.Write([]byte{'N'}); err != nil {
				return nil
			}
		case 196608, 196610:
			return strings.Split(strings.TrimRight(string(text[8:]), "\x00"), "\x00")
		default:
			return nil // to cancel something
		}
	}
}

func (p *Pooler) take() (*pgconn.HijackedConn, error) {
	p.places <- struct{}{}
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		conn := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return conn, nil
	}
	p.mu.Unlock()
	conn, err := pgconn.ConnectConfig(context.Background(), p.config.Copy())
	if err != nil {
		<-p.places
		return nil, err
	}
	session, err := conn.Hijack()
	if err == nil {
		p.mu.Lock()
		p.open[session.Conn] = struct{}{}
		p.mu.Unlock()
	}
	return session, err
}

func (p *Pooler) give(session *pgconn.HijackedConn) {
	p.mu.Lock()
	p.idle = append(p.idle, session)
	p.mu.Unlock()
	<-p.places
}

// lose ends a session whose client has gone in the middle.
func (p *Pooler) lose(session *pgconn.HijackedConn) {
	p.track(session.Conn)()
	<-p.places
}

// pooled is one client.
type pooled struct {
	pooler *Pooler
	client net.Conn

	mu      sync.Mutex
	session *pgconn.HijackedConn // nil between transactions; guarded by mu
	asked   int                  // answers that are still to come; guarded by mu
	begun   bool                 // something was sent that no Sync has followed; guarded by mu
}

func (c *pooled) run() {
	for {
		kind, text, err := readMessage(c.client, false)
		if err != nil || kind == 'X' || c.pass(kind, text) != nil {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != nil {
		c.pooler.lose(c.session)
		c.session = nil
	}
}

// pass sends a message to the session, which there is from now on until it is idle.
func (c *pooled) pass(kind byte, text []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		session, err := c.pooler.take()
		if err != nil {
			return err
		}
		c.session = session
		c.pooler.all.Go(func() { c.answers(session) })
	}
	if c.begun = kind != 'S' && kind != 'Q'; !c.begun {
		c.asked++
	}
	_, err := c.session.Conn.Write(text)
	return err
}

// answers passes on what a session says, until it is given back.
func (c *pooled) answers(session *pgconn.HijackedConn) {
	for {
		kind, text, err := readMessage(session.Conn, false)
		if err == nil {
			var last bool
			if last, err = c.answer(session, kind, text); last {
				return
			}
		}
		if err != nil {
			_ = c.client.Close()
			return
		}
	}
}

func (c *pooled) answer(session *pgconn.HijackedConn, kind byte, text []byte) (last bool, err error) {
	if kind != 'Z' {
		_, err = c.client.Write(text)
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked--
	if last = c.asked == 0 && !c.begun && bytes.HasSuffix(text, []byte{'I'}) && !c.pooler.BySession && c.session == session; last {
		c.session = nil
		c.pooler.give(session)
	}
	_, err = c.client.Write(text)
	return last, err
}

func message(kind byte, text []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(text)+4)), text...)
}

// readMessage reads one message, whole; the first of a client has no kind.
func readMessage(from io.Reader, first bool) (kind byte, text []byte, err error) {
	head := make([]byte, 5)
	if first {
		head = head[1:]
	}
	if _, err := io.ReadFull(from, head); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[len(head)-4:])
	if size < 4 || size > 1<<30 {
		return 0, nil, io.ErrUnexpectedEOF
	}
	text = append(head, make([]byte, size-4)...)
	_, err = io.ReadFull(from, text[len(head):])
	if !first {
		kind = head[0]
	}
	return kind, text, err
}
