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

// Pooler is a pooler in transaction or session mode, for machines without PgBouncer. It
// implements only the part of the protocol that pooling needs.
type Pooler struct {
	// BySession selects session mode. Default: transaction mode.
	BySession bool
	// Swallow accepts every startup parameter and ignores it. Default: unknown parameters
	// are rejected.
	Swallow bool

	config *pgconn.Config
	slots  chan struct{} // one for each session with the server

	mu   sync.Mutex
	idle []*pgconn.HijackedConn // last in, first out; guarded by mu
	open map[net.Conn]struct{}  // all connections; guarded by mu
	all  sync.WaitGroup
}

// Start listens in front of the server of a URL, and returns the URL of the pooler. The
// pooler ends with the test.
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

	p.slots, p.open = make(chan struct{}, 10), map[net.Conn]struct{}{}
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

// track registers a connection until done is called, which closes the connection.
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

// knownParameters are the startup parameters that PgBouncer accepts by default.
var knownParameters = []string{"user", "database", "application_name", "client_encoding", "datestyle", "timezone", "standard_conforming_strings"}

func (p *Pooler) serve(client net.Conn) {
	defer p.track(client)()

	parameters := greeting(client)
	for i := 0; i+1 < len(parameters) && !p.Swallow; i += 2 {
		// As PgBouncer answers; package pgpool recognizes the message.
		if name := strings.ToLower(parameters[i]); name != "" && !slices.Contains(knownParameters, name) {
			text := "SFATAL\x00VFATAL\x00C08P01\x00Munsupported startup parameter: " + name + "\x00\x00"
			_, _ = client.Write(message('E', []byte(text)))
			return
		}
	}

	if parameters == nil {
		return
	}

	// The client expects the server's parameters before its first statement.
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

// greeting reads the startup messages of a client and returns the parameters, alternating
// names and values; nil for any other message.
func greeting(client net.Conn) []string {
	for {
		_, text, err := readMessage(client, true)
		if err != nil || len(text) < 8 {
			return nil
		}

		switch binary.BigEndian.Uint32(text[4:]) {
		case 80877103, 80877104:
			// A request for TLS or GSS encryption: no.
			if _, err := client.Write([]byte{'N'}); err != nil {
				return nil
			}
		case 196608, 196610:
			return strings.Split(strings.TrimRight(string(text[8:]), "\x00"), "\x00")
		default:
			// A request to cancel a statement.
			return nil
		}
	}
}

func (p *Pooler) take() (*pgconn.HijackedConn, error) {
	p.slots <- struct{}{}
	p.mu.Lock()

	// The most recently used session, as PgBouncer does.
	if n := len(p.idle); n > 0 {
		conn := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return conn, nil
	}

	p.mu.Unlock()
	conn, err := pgconn.ConnectConfig(context.Background(), p.config.Copy())
	if err != nil {
		<-p.slots
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
	<-p.slots
}

// lose ends a session whose client left in the middle of a transaction.
func (p *Pooler) lose(session *pgconn.HijackedConn) {
	p.track(session.Conn)()
	<-p.slots
}

// pooled is one client of a Pooler.
type pooled struct {
	pooler *Pooler
	client net.Conn

	mu      sync.Mutex
	session *pgconn.HijackedConn // nil between transactions; guarded by mu
	asked   int                  // answers (ReadyForQuery) still expected; guarded by mu
	begun   bool                 // messages were sent and not yet followed by Sync; guarded by mu
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

// pass forwards a message to the session. A client without a session gets one first.
func (c *pooled) pass(kind byte, text []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()

	// The beginning of a transaction: the client gets a session.
	if c.session == nil {
		session, err := c.pooler.take()
		if err != nil {
			return err
		}

		c.session = session
		c.pooler.all.Go(func() { c.answers(session) })
	}

	// Sync and Query are answered by ReadyForQuery, other messages only after a Sync.
	if c.begun = kind != 'S' && kind != 'Q'; !c.begun {
		c.asked++
	}

	_, err := c.session.Conn.Write(text)
	return err
}

// answers forwards the messages of a session until the session is given back.
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

	// 'I' is idle: the transaction is over, and the session can serve another client.
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

// readMessage reads one whole message. The first message of a client has no type byte.
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
