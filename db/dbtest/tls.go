package dbtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db/certtest"
)

// NewTLSServer starts a server of the test's own, on loopback, that presents a certificate to
// clients who ask for TLS, and returns its URL. It ends with the test.
func NewTLSServer(t testing.TB, own certtest.Pair) string {
	t.Helper()
	p := &Pair{t: t}
	p.Primary = p.start("primary", map[string]string{"fsync": "off", "shared_buffers": "32MB", "dynamic_shared_memory_type": "mmap"})
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
	owner := info.Sys().(*syscall.Stat_t)
	for name, text := range map[string][]byte{"server.crt": own.Cert, "server.key": own.Key} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chown(path, int(owner.Uid), int(owner.Gid))); err != nil {
			t.Fatalf("dbtest: %v", err)
		}
	}
	p.do(p.Primary, "ALTER SYSTEM SET ssl = 'on'")
	p.do(p.Primary, "SELECT pg_reload_conf()")
	p.until(p.Primary, "TLS", "SELECT setting = 'on' FROM pg_settings WHERE name = 'ssl'")
	return p.Primary.URL()
}
