package jobs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// proxy stands between a process and PostgreSQL, and can do what networks do. It
// understands just enough of the protocol to know which statement is on its way.
type proxy struct {
	listener net.Listener
	network  string // of the server
	address  string

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	refuse bool
	faults map[string][]fault // by the name of a query
	struck chan string        // the queries that a fault has struck
}

// fault is what happens to an execution of a query.
type fault int

const (
	loseQuestion fault = iota // the server never hears of it
	loseAnswer                // the server has committed it, and the client is not told
	hangUp                    // the server has it, and the client is gone before there is an answer
)

func newProxy(t *testing.T, pool *pgxpool.Pool) *proxy {
	t.Helper()
	server := pool.Config().ConnConfig
	p := &proxy{conns: map[net.Conn]struct{}{}, faults: map[string][]fault{}, struck: make(chan string, 100)}
	p.network, p.address = "tcp", net.JoinHostPort(server.Host, fmt.Sprint(server.Port))
	if strings.HasPrefix(server.Host, "/") {
		p.network, p.address = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", server.Host, server.Port)
	}
	var err error
	p.listener, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := p.listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		_ = p.listener.Close()
		p.cut()
		all.Wait()
	})
	return p
}

// pool is an engine's pool through the proxy.
func (p *proxy) pool(t *testing.T, like *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	to := like.Config().ConnConfig
	address := p.listener.Addr().(*net.TCPAddr)
	url := fmt.Sprintf("host=127.0.0.1 port=%d user=%s password='%s' dbname=%s sslmode=disable", address.Port, to.User, to.Password, to.Database)
	pool, err := pgpool.Open(t.Context(), url, pgpool.Config{Engine: true, Name: "behind the proxy", MaxConns: 20})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// next says what happens to the next executions of a query.
func (p *proxy) next(query string, faults ...fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[query] = append(p.faults[query], faults...)
}

// away makes the database unreachable, back brings it back.
func (p *proxy) away() { p.set(true); p.cut() }
func (p *proxy) back() { p.set(false) }

func (p *proxy) set(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = refuse
}

// cut ends every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		_ = conn.Close()
	}
}

// spent says whether every fault has struck.
func (p *proxy) spent() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, left := range p.faults {
		if len(left) > 0 {
			return false
		}
	}
	return true
}

func (p *proxy) fault(query string) (fault, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	left := p.faults[query]
	if len(left) == 0 {
		return 0, false
	}
	p.faults[query] = left[1:]
	return left[0], true
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := p.open(client)
	if err != nil {
		return
	}
	defer server.Close()
	defer p.forget(client)
	down := &answers{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = down.copy(client, server)
		_ = client.Close()
	}()
	if err := p.questions(client, server, down); errors.Is(err, errHangUp) {
		// The server goes on by itself; it notices when it wants to answer.
		_ = client.Close()
		_ = server.SetReadDeadline(time.Now().Add(patience))
	} else {
		_ = server.Close()
	}
	<-done
}

func (p *proxy) open(client net.Conn) (net.Conn, error) {
	p.mu.Lock()
	refuse := p.refuse
	if !refuse {
		p.conns[client] = struct{}{}
	}
	p.mu.Unlock()
	if refuse {
		return nil, errors.New("refused")
	}
	return net.Dial(p.network, p.address)
}

func (p *proxy) forget(client net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
}

var errHangUp = errors.New("hung up")

// questions passes what the client says. A statement is prepared under a name once
// (P), and executed under that name ever after (B).
func (p *proxy) questions(client io.Reader, server io.Writer, down *answers) error {
	first := true
	names := map[string]string{}
	var struck *fault
	for {
		kind, message, err := frame(client, first)
		if err != nil {
			return err
		}
		first = false
		switch kind {
		case 'P':
			name, rest, _ := strings.Cut(string(message[5:]), "\x00")
			if _, query, ok := strings.Cut(rest, "-- name: "); ok {
				names[name], _, _ = strings.Cut(query, " ")
			}
		case 'B':
			parts := strings.SplitN(string(message[5:]), "\x00", 3)
			query := names[parts[1]]
			if f, ok := p.fault(query); ok {
				if struck = &f; f == loseQuestion {
					p.struck <- query
					return io.ErrClosedPipe
				}
				if f == loseAnswer {
					down.swallow()
				}
				defer func() { p.struck <- query }()
			}
		}
		if _, err := server.Write(message); err != nil {
			return err
		}
		if kind == 'S' && struck != nil && *struck == hangUp {
			return errHangUp
		}
	}
}

// answers passes what the server says, until it is to be swallowed.
type answers struct {
	mu  sync.Mutex
	eat bool
}

func (a *answers) swallow() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.eat = true
}

func (a *answers) eating() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.eat
}

// copy ends when the answer that it swallows is complete: the transaction has then
// been committed.
func (a *answers) copy(client io.Writer, server io.Reader) error {
	for {
		kind, message, err := frame(server, false)
		if err != nil {
			return err
		}
		if a.eating() {
			if kind == 'Z' {
				return errHangUp
			}
			continue
		}
		if _, err := client.Write(message); err != nil {
			return err
		}
	}
}

// frame reads one message; the first of a client has no kind.
func frame(from io.Reader, first bool) (kind byte, message []byte, err error) {
	head := make([]byte, 5)
	if first {
		head = head[1:]
	}
	if _, err := io.ReadFull(from, head); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[len(head)-4:])
	message = append(head, make([]byte, size-4)...)
	_, err = io.ReadFull(from, message[len(head):])
	if !first {
		kind = head[0]
	}
	return kind, message, err
}
