package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// socketOnlyPort names the socket of a throw-away cluster, which has a directory
// of its own and therefore no quarrel over numbers.
const socketOnlyPort = 5432

func socketPath(dir string, port int) string {
	return filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(port))
}

// serve starts postgres and sees to it that it can be used.
func (c *Cluster) serve(ctx context.Context) error {
	if err := c.machine.settle(c.place, c.cfg.Logf); err != nil {
		return err
	}
	conn, err := c.launchOnSomePort(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if c.cfg.Throwaway {
		if c.cfg.Unsafe {
			return nil // tests make their own databases
		}
		return c.makeDatabase(ctx, conn)
	}
	if err := c.healPassword(ctx, conn); err != nil {
		return err
	}
	return c.makeDatabase(ctx, conn)
}

// launchOnSomePort tries again if the port that was free is taken by the time
// postgres binds it.
func (c *Cluster) launchOnSomePort(ctx context.Context) (*pgx.Conn, error) {
	for attempt := 1; ; attempt++ {
		var err error
		switch {
		case c.cfg.Throwaway:
			c.port = socketOnlyPort
		case c.cfg.Port != 0:
			c.port = c.cfg.Port
		default:
			if c.port, err = c.machine.freePort(); err != nil {
				return nil, fmt.Errorf("find a free port: %w", err)
			}
		}
		conn, err := c.launch(ctx)
		if err == nil {
			return conn, nil
		}
		if !c.server.busyPort() {
			return nil, err
		}
		if c.cfg.Port != 0 {
			return nil, fmt.Errorf("port %d is taken: set TES_PG_PORT to another, or to 0 for a free one: %w", c.port, err)
		}
		if attempt == 5 {
			return nil, err
		}
		c.cfg.Logf("port %d was taken, trying another", c.port)
	}
}

func (c *Cluster) arguments() []string {
	args := []string{"-D", c.place.data, "-k", c.place.sockets, "-p", strconv.Itoa(c.port)}
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_permissions": "0700",
		"log_destination":         "stderr",
		"logging_collector":       "off",
	}
	if c.cfg.Throwaway {
		settings["listen_addresses"] = ""
		// In the data directory and not in /dev/shm, where nobody would look for it who
		// removes what a killed server has left.
		settings["dynamic_shared_memory_type"] = "mmap"
	}
	if c.cfg.Unsafe {
		for _, name := range []string{"fsync", "synchronous_commit", "full_page_writes", "autovacuum"} {
			settings[name] = "off"
		}
	}
	maps.Copy(settings, c.cfg.Settings)
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// launch starts postgres once. It returns with a connection, or with no postgres.
func (c *Cluster) launch(ctx context.Context) (*pgx.Conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	// A file and not a pipe of ours: it can still be read when we are gone.
	log, err := os.OpenFile(c.place.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(c.binaries.path("postgres"), c.arguments()...)
	cmd.Dir = "/"
	cmd.Env = childEnv(c.binaries.dir)
	cmd.Stdout, cmd.Stderr = log, log
	death := syscall.SIGINT
	if c.cfg.Throwaway {
		death = syscall.SIGQUIT
	}
	cmd.SysProcAttr = child(c.account, death)
	if c.machine.pipeGuard {
		cmd.SysProcAttr = child(c.account, 0)
	}
	p, err := run(cmd)
	if err != nil {
		return nil, c.account.explain(fmt.Errorf("start postgres: %w", err))
	}
	c.server = &server{process: p, version: c.binaries.version, log: c.place.log}
	if c.place.guard != nil {
		c.place.guard.watch(p.pid)
	}
	c.machine.at(stageServer)

	conn, err := c.server.ready(ctx, c.socketURL("postgres"), c.machine.readyTimeout)
	if err != nil {
		c.server.end(syscall.SIGQUIT, nil)
		return nil, err
	}
	return conn, nil
}

// server is one run of postgres.
type server struct {
	*process
	version string
	log     string
}

// ready waits until a connection works.
func (s *server) ready(ctx context.Context, dsn string, patience time.Duration) (*pgx.Conn, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	var last error
	for {
		conn, err := connect(ctx, dsn)
		switch {
		case err == nil:
			return conn, nil
		case s.ended():
			return nil, s.failure("ended while starting")
		case ctx.Err() != nil:
			return nil, fmt.Errorf("wait for PostgreSQL: %w (last: %w)", context.Cause(ctx), err)
		case !heals(err):
			return nil, fmt.Errorf("connect to the PostgreSQL just started: %w", err)
		case recovering(err):
			deadline = time.Now().Add(patience) // it lives, and after a crash it has to read
		case time.Now().After(deadline):
			return nil, fmt.Errorf("PostgreSQL did not become ready in %s: %w", patience, err)
		}
		last = err
		select {
		case <-tick.C:
		case <-s.done:
			return nil, s.failure("ended while starting")
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for PostgreSQL: %w (last: %w)", context.Cause(ctx), last)
		}
	}
}

// connect opens one connection. Nothing but the DSN says how: the PG* variables
// are gone (ClearPGEnv), and what a ~/.pgpass has to say does no harm, as there is
// either a password already or no need of one.
func connect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return pgx.ConnectConfig(ctx, cfg)
}

func recovering(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "57P03" // cannot_connect_now
}

// heals says whether waiting may help. A socket that is not there yet, or an end
// of a conversation, will; a role that does not exist will not.
func heals(err error) bool {
	if recovering(err) {
		return true
	}
	for _, passing := range []error{
		syscall.ECONNREFUSED, syscall.ENOENT, syscall.ECONNRESET, syscall.EPIPE, syscall.EAGAIN,
		io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, context.DeadlineExceeded, os.ErrDeadlineExceeded,
	} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// busyPort says whether this run ended because it could not have its port.
func (s *server) busyPort() bool {
	if s == nil || !s.ended() {
		return false
	}
	text, _ := os.ReadFile(s.log)
	return strings.Contains(string(text), "could not create any TCP/IP sockets")
}

func (s *server) failure(what string) error {
	text, _ := os.ReadFile(s.log)
	return fmt.Errorf("PostgreSQL %s %s (%w):\n%s", s.version, what, exitOf(s.err), lastLines(string(text)))
}

func exitOf(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// end stops postgres: first as asked, without patience when hurry fires, at last
// by force.
func (s *server) end(sig syscall.Signal, hurry <-chan struct{}) {
	s.signal(sig)
	select {
	case <-s.done:
		return
	case <-hurry:
	case <-time.After(time.Minute):
	}
	s.signal(syscall.SIGQUIT)
	select {
	case <-s.done:
		return
	case <-time.After(5 * time.Second):
	}
	s.signal(syscall.SIGKILL)
	<-s.done
}

func (c *Cluster) socketURL(name string) string {
	query := url.Values{"host": {c.place.sockets}, "port": {strconv.Itoa(c.port)}, "sslmode": {"disable"}}
	return (&url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/" + name, RawQuery: query.Encode()}).String()
}

func (c *Cluster) tcpURL(name string) string {
	return (&url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, c.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)),
		Path:     "/" + name,
		RawQuery: "sslmode=disable",
	}).String()
}

// healPassword makes the password file true, whoever changed or deleted it: over
// the socket we need none.
func (c *Cluster) healPassword(ctx context.Context, conn *pgx.Conn) error {
	var err error
	if c.password, err = c.place.password(); err != nil {
		return err
	}
	overTCP, err := connect(ctx, c.tcpURL("postgres"))
	if err == nil {
		return overTCP.Close(ctx)
	}
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "28P01" { // invalid_password
		return fmt.Errorf("connect over TCP: %w", err)
	}
	c.cfg.Logf("giving role %s the password of %s/password", superuser, c.place.base)
	quoted := "'" + strings.ReplaceAll(c.password, "'", "''") + "'"
	if _, err := conn.Exec(ctx, "ALTER ROLE "+superuser+" PASSWORD "+quoted); err != nil {
		return fmt.Errorf("set the password of role %s: %w", superuser, err)
	}
	return nil
}

func (c *Cluster) makeDatabase(ctx context.Context, conn *pgx.Conn) error {
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", database).Scan(&exists); err != nil {
		return fmt.Errorf("look for database %s: %w", database, err)
	}
	if exists {
		return nil
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+database); err != nil {
		return fmt.Errorf("create database %s: %w", database, err)
	}
	return nil
}
