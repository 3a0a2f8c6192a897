package dbtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// PgBouncer returns the path of the PgBouncer in PATH, or else of the installed one; empty if
// there is none.
func PgBouncer() string {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path
	}

	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"} {
		path := filepath.Join(dir, "pgbouncer")
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}

	return ""
}

// NewBouncer runs PgBouncer in front of the server of a URL, with additional lines of
// configuration, and returns the URL of the PgBouncer. PgBouncer ends with the test.
func NewBouncer(t testing.TB, dsn string, lines ...string) string {
	t.Helper()
	conf, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}

	dir, err := os.MkdirTemp("", "tes-bouncer-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	port := freePort(t)
	login := "user=" + conf.User
	if conf.Password != "" {
		login += " password=" + conf.Password
	}

	text := fmt.Sprintf("[databases]\n* = host=%s port=%d %s\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"+
		"unix_socket_dir =\nauth_type = any\nmax_client_conn = 500\ndefault_pool_size = 10\n%s\n",
		conf.Host, conf.Port, login, port, strings.Join(lines, "\n"))
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatalf("dbtest: %v", err)
	}

	cmd := exec.Command(PgBouncer(), file)
	log := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	// PgBouncer refuses to run as root.
	if os.Geteuid() == 0 {
		// An account that may connect to the server's socket.
		account := accountFor(conf.Host)
		cmd.SysProcAttr.Credential = account
		err = errors.Join(os.Chown(dir, int(account.Uid), int(account.Gid)), os.Chown(file, int(account.Uid), int(account.Gid)))
	}

	if err = errors.Join(err, cmd.Start()); err != nil {
		t.Fatalf("dbtest: start pgbouncer: %v", err)
	}

	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Logf("pgbouncer:\n%s", log)
		}
	})

	// PgBouncer has no signal for "ready": try to connect.
	for deadline := time.Now().Add(patience); ; {
		conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = conn.Close()
			break
		}

		select {
		case <-ended:
			t.Fatalf("dbtest: pgbouncer ended:\n%s", log)
		case <-time.After(10 * time.Millisecond):
		}

		if time.Now().After(deadline) {
			t.Fatalf("dbtest: pgbouncer does not listen: %v", err)
		}
	}

	return (&url.URL{
		Scheme: "postgres", User: url.User(conf.User), Host: fmt.Sprintf("127.0.0.1:%d", port), Path: "/" + conf.Database, RawQuery: "sslmode=disable",
	}).String()
}

// accountFor returns an account that can connect to a server: the owner of the socket's
// directory, or nobody for a server on TCP.
func accountFor(host string) *syscall.Credential {
	if info, err := os.Stat(host); err == nil && strings.HasPrefix(host, "/") {
		owner := info.Sys().(*syscall.Stat_t)
		if owner.Uid != 0 {
			return &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
		}
	}

	return &syscall.Credential{Uid: 65534, Gid: 65534}
}

func freePort(t testing.TB) int {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	defer listener.Close()

	return listener.Addr().(*net.TCPAddr).Port
}
