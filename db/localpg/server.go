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

// socketOnlyPort is the number in the socket's name of a throw-away cluster. Each cluster has
// its own directory, so all clusters use the same number.
const socketOnlyPort = 5432

func socketPath(dir string, port int) string {
	return filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(port))
}

// serve starts postgres, and prepares the role and the database.
func (c *Cluster) serve(ctx context.Context) error {
	if err := c.machine.clearStalePID(c.place, c.cfg.Logf); err != nil {
		return err
	}

	conn, err := c.launchOnSomePort(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))

	if c.cfg.Throwaway {
		if c.cfg.Unsafe {
			// Tests make their own databases.
			return nil
		}
		return c.makeDatabase(ctx, conn)
	}

	if err := c.syncPassword(ctx, conn); err != nil {
		return err
	}

	return c.makeDatabase(ctx, conn)
}

// launchOnSomePort starts postgres on a free port, and tries again if another process takes
// the port before postgres does.
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

// arguments returns the command line of postgres.
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

		// In the data directory and not in /dev/shm, so that removing the directory of a killed
		// server removes the shared memory too.
		settings["dynamic_shared_memory_type"] = "mmap"
	}

	if c.cfg.Unsafe {
		for _, name := range []string{"fsync", "synchronous_commit", "full_page_writes", "autovacuum"} {
			settings[name] = "off"
		}
	}

	// Last, so that Config.Settings take precedence.
	maps.Copy(settings, c.cfg.Settings)

	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}

	return args
}

// launch starts postgres once. It returns a connection, or an error with no postgres running.
func (c *Cluster) launch(ctx context.Context) (*pgx.Conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}

	// postgres writes to a file and not to a pipe: the file outlives this program.
	log, err := os.OpenFile(c.place.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	defer log.Close()

	cmd := exec.Command(c.binaries.path("postgres"), c.arguments()...)
	cmd.Dir = "/"
	cmd.Env = childEnv(c.binaries.dir)
	cmd.Stdout, cmd.Stderr = log, log

	// The signal if this program is killed.
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

	// "postgres" exists in every cluster; database tes may not exist yet.
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

// ready waits until a connection works. patience is the time without any answer.
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
		case !isTransient(err):
			return nil, fmt.Errorf("connect to the PostgreSQL just started: %w", err)
		case startingUp(err):
			// postgres answers, and replays the log after a crash, which may take long.
			deadline = time.Now().Add(patience)
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

// connect opens one connection. Only the DSN has an effect: the PG* variables are removed
// (ClearPGEnv), and a ~/.pgpass does not matter, because a password is given or not needed.
func connect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()

	return pgx.ConnectConfig(ctx, cfg)
}

// startingUp recognizes the answer of a server that does not accept connections yet.
func startingUp(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "57P03" // cannot_connect_now
}

// isTransient reports whether a connection error may end by itself: a missing socket or a
// closed connection may, a missing role does not.
func isTransient(err error) bool {
	if startingUp(err) {
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

// busyPort reports whether postgres ended because its port was in use.
func (s *server) busyPort() bool {
	if s == nil || !s.ended() {
		return false
	}

	text, _ := os.ReadFile(s.log)
	return strings.Contains(string(text), "could not create any TCP/IP sockets")
}

// failure returns an error with the end of the log.
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

// end stops postgres: with sig at first, with SIGQUIT when hurry is closed or after a
// minute, and finally with SIGKILL.
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

// syncPassword makes the password of the role equal to the password file, whichever was
// changed or deleted: the socket needs no password.
func (c *Cluster) syncPassword(ctx context.Context, conn *pgx.Conn) error {
	var err error
	if c.password, err = c.place.password(); err != nil {
		return err
	}

	// If the password in the file works, nothing needs to be changed.
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
