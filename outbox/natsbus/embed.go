package natsbus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// maxPayload is enough for a task body of 1 MiB and its envelope. NATS's default is 1 MiB for both.
const maxPayload = 2 << 20

// embedded is a server inside this process, with the lock on its directory.
type embedded struct {
	*server.Server
	lock  *os.File // kept until stop, because the garbage collector would close the file and release the lock
	token string
}

// embed starts a server. It locks the directory first, because a second server on the same directory
// would start without an error and see no messages.
func embed(cfg Config) (*embedded, error) {
	lock, err := lockDir(cfg.StoreDir)
	if err != nil {
		return nil, err
	}

	e := &embedded{lock: lock}
	if err := e.start(cfg); err != nil {
		e.stop()
		return nil, err
	}
	return e, nil
}

func (e *embedded) start(cfg Config) error {
	opts := &server.Options{
		Host:                   "127.0.0.1",
		DontListen:             cfg.Listen == "",
		NoSigs:                 true, // the program handles signals
		JetStream:              true,
		DisableJetStreamBanner: true,
		StoreDir:               cfg.StoreDir,
		JetStreamMaxMemory:     64 << 20, // our streams are files; the default is most of the machine
		JetStreamMaxStore:      cfg.MaxStore,
		SyncAlways:             !cfg.NoSync,
		JetStreamLimits:        server.JSLimitOpts{MaxBatchSize: embeddedBatchMessages},
		MaxPayload:             maxPayload,
	}

	// A listener needs a token, because every process of the host could connect.
	if cfg.Listen != "" {
		host, port, err := listenAddress(cfg.Listen)
		if err != nil {
			return err
		}

		e.token = cfg.Token
		if e.token == "" {
			e.token = rand.Text()
		}

		opts.Host, opts.Port, opts.Authorization = host, port, e.token
	}

	srv, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("configure the embedded NATS server: %w", err)
	}

	e.Server = srv
	log := &serverLog{to: cfg.Logger}
	srv.SetLoggerV2(log, false, false, false)
	// The server reports a failed start to its logger only, and ReadyForConnections would wait.
	srv.Start()
	if err := log.started(); err != nil {
		return fmt.Errorf("start the embedded NATS server in %s: %w", cfg.StoreDir, err)
	}

	if !srv.ReadyForConnections(10 * time.Second) {
		return fmt.Errorf("the embedded NATS server in %s was not ready after 10 s: is the disk slow or the store very large?", cfg.StoreDir)
	}

	return nil
}

// clientURL returns the URL for other processes; empty without a listener, for which the server
// returns port 0.
func (e *embedded) clientURL(cfg Config) string {
	if cfg.Listen == "" {
		return ""
	}

	u, err := url.Parse(e.ClientURL())
	if err != nil {
		return ""
	}

	// A listener on all addresses: loopback leads there.
	if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsUnspecified() {
		u.Host = net.JoinHostPort("127.0.0.1", u.Port())
	}

	u.User = url.User(e.token)
	return u.String()
}

// stop stops the server and then unlocks the directory.
func (e *embedded) stop() {
	if e.Server != nil {
		e.Shutdown()
		e.WaitForShutdown()
	}

	_ = syscall.Flock(int(e.lock.Fd()), syscall.LOCK_UN) // closing is not enough while a forked child has the descriptor
	_ = e.lock.Close()
}

func lockDir(dir string) (*os.File, error) {
	if err := makeDir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store directory of the embedded NATS server: %w", err)
	}

	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the store directory of the embedded NATS server: %w", err)
	}

	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	// The file has the pid of the process with the lock.
	if errors.Is(err, syscall.EWOULDBLOCK) {
		owner, _ := io.ReadAll(io.LimitReader(lock, 20))
		_ = lock.Close()
		return nil, fmt.Errorf("%s is in use by the embedded NATS server of process %s: join that one by its URL, or choose another store directory",
			dir, strings.TrimSpace(string(owner)))
	}
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}

	// The pid is for the error above only.
	_ = lock.Truncate(0)
	_, _ = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return lock, nil
}

// makeDir creates a directory with a mode, and its missing parents with the mode 755, whatever the
// umask is. A parent may be the data directory of tes dev, whose PostgreSQL runs under another
// account than root and must be able to search the directory.
func makeDir(dir string, mode os.FileMode) error {
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is not a directory", dir)
	}

	if parent := filepath.Dir(dir); parent != dir {
		if err := makeDir(parent, 0o755); err != nil {
			return err
		}
	}

	if err := os.Mkdir(dir, mode); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil // another process created the directory meanwhile
		}
		return err // it names the directory
	}
	return os.Chmod(dir, mode) // it names the directory
}

// listenAddress splits a listen address and tries to listen, because the server reports a port that
// is in use as text only.
func listenAddress(listen string) (host string, port int, err error) {
	host, service, err := net.SplitHostPort(listen)
	if err != nil {
		return "", 0, fmt.Errorf("listen address %q of the embedded NATS server is not host:port: %w", listen, err)
	}

	if host == "" {
		host = "127.0.0.1"
	}

	port, err = strconv.Atoi(service)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("listen address %q of the embedded NATS server has no port between 0 and 65535", listen)
	}

	if port == 0 {
		return host, server.RANDOM_PORT, nil
	}

	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(host, service))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "", 0, fmt.Errorf("the embedded NATS server cannot listen on %s because something else does: choose another address, or port 0 for any free one, or join the server that is there by its URL: %w", listen, err)
	case err != nil:
		return "", 0, fmt.Errorf("the embedded NATS server cannot listen on %s: choose another address: %w", listen, err)
	}

	return host, port, l.Close()
}

// serverLog logs the server's warnings and errors. A fatal error of the start is returned by Open and
// not logged.
type serverLog struct {
	to    *slog.Logger
	mu    sync.Mutex
	up    bool
	fatal error
}

func (l *serverLog) started() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = l.fatal == nil
	return l.fatal
}

func (l *serverLog) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.up {
		l.to.Error("nats server: "+fmt.Sprintf(format, v...), "fatal", true)
		return
	}

	if l.fatal == nil {
		l.fatal = fmt.Errorf(format, v...)
	}
}

func (l *serverLog) Errorf(format string, v ...any) {
	l.to.Error("nats server: " + fmt.Sprintf(format, v...))
}

func (l *serverLog) Warnf(format string, v ...any) {
	l.to.Warn("nats server: " + fmt.Sprintf(format, v...))
}
func (l *serverLog) Noticef(string, ...any) {}
func (l *serverLog) Debugf(string, ...any)  {}
func (l *serverLog) Tracef(string, ...any)  {}
