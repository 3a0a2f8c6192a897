package dbtest

import (
	"context"
	"crypto/tls"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db/certtest"
)

// TLSServer is a PostgreSQL server of the test's own, on loopback, with TLS and a certificate
// of the test.
type TLSServer struct{ pair *Pair }

// NewTLSServer starts a server. The server ends with the test.
func NewTLSServer(t testing.TB, own certtest.Pair) *TLSServer {
	t.Helper()
	p := &Pair{t: t}
	p.Primary = p.start("primary", map[string]string{"fsync": "off", "shared_buffers": "32MB", "dynamic_shared_memory_type": "mmap"})
	s := &TLSServer{pair: p}
	s.Present(own)
	return s
}

// URL returns the server's address; the URL does not ask for TLS.
func (s *TLSServer) URL() string { return s.pair.Primary.URL() }

// Present changes the server's certificate for all later connections.
func (s *TLSServer) Present(own certtest.Pair) {
	t, p := s.pair.t, s.pair
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	conn, err := pgx.Connect(ctx, p.Primary.URL())
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	var dir string
	if err := conn.QueryRow(ctx, "SHOW data_directory").Scan(&dir); err != nil {
		t.Fatalf("dbtest: %v", err)
	}

	info, err := os.Stat(dir)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}

	// postgres reads the key only if it owns the file.
	owner := info.Sys().(*syscall.Stat_t)
	for name, text := range map[string][]byte{"server.crt": own.Cert, "server.key": own.Key} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chown(path, int(owner.Uid), int(owner.Gid))); err != nil {
			t.Fatalf("dbtest: %v", err)
		}
	}

	p.do(p.Primary, "ALTER SYSTEM SET ssl = 'on'")
	p.do(p.Primary, "SELECT pg_reload_conf()")
	want := own.TLS(t).Leaf.SerialNumber

	// The postmaster reloads the files asynchronously.
	for {
		got, err := s.presents(ctx)
		if err == nil && got.Cmp(want) == 0 {
			return
		}

		if ctx.Err() != nil {
			t.Fatalf("dbtest: the server does not present its certificate: %v", err)
		}
	}
}

// presents returns the serial number of the certificate of a new connection.
func (s *TLSServer) presents(ctx context.Context) (*big.Int, error) {
	conn, err := pgx.Connect(ctx, strings.Replace(s.URL(), "sslmode=disable", "sslmode=require", 1))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return conn.PgConn().Conn().(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber, nil
}
