package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/api/peer/spans"
	"github.com/seed-3f7a0631/tes/db/localpg"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/redact"
	"github.com/seed-3f7a0631/tes/outbox/webhook"
	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// local is a whole tes on one machine, as dev and demo run it.
type local struct {
	dir        string
	temp       string           // removed at stop; empty: the cluster removes its own directory
	cluster    *localpg.Cluster // nil with TES_DATABASE_URL
	bus        *natsbus.Bus
	peers      *peertest.Server
	service    *service
	keyFile    string
	secret     string // signs callbacks
	stopped    bool
	log        *slog.Logger
	databaseAt string
}

// localConfig configures startLocal.
type localConfig struct {
	dataDir   string // of a durable instance
	throwaway bool   // in a temporary directory that stop removes
	http      string
	nats      string
	peers     string // address of the fake peer services
	owner     string // names this process in the lock file
}

// startLocal starts PostgreSQL, the bus, the fake peer services and the service, in this order.
// After an error nothing is left behind.
func startLocal(s *cmdContext, lc localConfig) (*local, error) {
	l := &local{log: logger(s, slog.LevelWarn, "text")}
	if err := l.start(s, lc); err != nil {
		return nil, errors.Join(err, l.stop(context.WithoutCancel(s.ctx)))
	}
	return l, nil
}

func (l *local) start(s *cmdContext, lc localConfig) error {
	cfg := s.cfg

	// A direct address alone would be ignored: the database is private then, and has no pooler.
	if cfg.DatabaseDirectURL != "" && cfg.DatabaseURL == "" {
		return &usageError{"TES_DATABASE_DIRECT_URL goes with TES_DATABASE_URL, which is not set"}
	}

	if err := l.startDatabase(s, lc); err != nil {
		return err
	}

	cfg.DatabaseURL = l.databaseAt
	if err := migrations.Up(s.ctx, cfg.direct()); err != nil {
		return err
	}

	// The fakes sign tokens with the key, and the service verifies them by the fakes' public keys.
	// So the key comes first.
	key, err := l.signingKey()
	if err != nil {
		return err
	}

	files, err := cfg.watchFiles(l.log)
	if err != nil {
		return err
	}

	if err := l.startBus(s.ctx, cfg, lc.nats, files); err != nil {
		return err
	}

	l.peers, err = startPeers(lc.peers, key, l.bus, l.log)
	if err != nil {
		return err
	}

	if err := l.adaptConfig(&cfg, lc.http); err != nil {
		return err
	}

	l.service, err = startService(s.ctx, cfg, deps{bus: l.bus, sharedBus: true, log: l.log, files: files})
	return err
}

// startBus opens the bus: the operator's, or an embedded one that listens at address.
func (l *local) startBus(ctx context.Context, cfg Config, address string, files *renewals) (err error) {
	roots, own := files.natsTLS()
	l.bus, err = natsbus.Open(ctx, natsbus.Config{
		URL: cfg.NATSURL, Credentials: cfg.NATSCredentials, Token: cfg.NATSToken, NoSync: cfg.NATSSync == "off",
		StoreDir: filepath.Join(l.dir, "nats"), Listen: address, Logger: l.log, Replicas: cfg.natsReplicas,
		RootCAs: roots, Certificate: own,
	})

	var listening *net.OpError
	switch {
	case errors.As(err, &listening) && listening.Op == "listen":
		return fmt.Errorf("bus: %w (choose another address with --nats)", err)
	case err != nil:
		return fmt.Errorf("bus: %w", err)
	}
	return nil
}

// adaptConfig makes of the operator's settings those of a trial on one machine: the fake peer
// services, a callback secret, and calls to loopback.
func (l *local) adaptConfig(cfg *Config, address string) error {
	// The commands decide where the service listens; a developer does not wait twenty seconds for
	// Ctrl-C.
	cfg.HTTP = address
	cfg.grace = min(cfg.grace, 10*time.Second)

	// A peer service that the operator has named is used. The fakes replace the rest.
	if cfg.NeighboursURL == "" {
		cfg.NeighboursURL = l.peers.URL()
	}
	if cfg.ServiceTok == "" {
		cfg.ServiceTok = l.peers.Token("task-execution-service")
	}

	// Callbacks and http tasks of a trial lead to this machine, which the egress guard would
	// refuse.
	cfg.allow = append(cfg.allow, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
	return l.callbackSecret(cfg)
}

// startDatabase takes the operator's database, or starts a private PostgreSQL.
func (l *local) startDatabase(s *cmdContext, lc localConfig) (err error) {
	cfg := s.cfg
	if cfg.DatabaseURL != "" {
		l.databaseAt = cfg.DatabaseURL
		if lc.throwaway {
			l.temp, err = os.MkdirTemp("", "tes-")
			l.dir = l.temp
			return err
		}

		l.dir = lc.dataDir
		return localpg.MkdirAll(lc.dataDir, 0o755) // a PostgreSQL of another account may be kept here later; what is secret has its own mode
	}

	// The bar is made at the first progress, because most starts download nothing.
	var bar *progressbar.ProgressBar
	l.cluster, err = localpg.Start(s.ctx, localpg.Config{
		DataDir: lc.dataDir, BinDir: cfg.PGBin, Version: cfg.PGVersion, User: cfg.PGUser, Port: cfg.PGPort,
		NoSystem: cfg.PGSystem == "off", NoDownload: cfg.PGDownload == "off", Mirror: cfg.PGMirror,
		Throwaway: lc.throwaway, Owner: lc.owner,
		Settings: map[string]string{"shared_buffers": "256MB", "max_connections": "200"},
		Logf:     func(format string, args ...any) { l.log.Info(fmt.Sprintf(format, args...)) },
		Progress: func(done, total int64) {
			if bar == nil {
				bar = progress(s, total, "downloading PostgreSQL")
			}
			_ = bar.Set64(done)
		},
	})
	if err != nil {
		return err
	}

	l.dir, l.databaseAt = l.cluster.Dir(), l.cluster.URL()
	return nil
}

// signingKey is the private key of the fake Auth Service. It is kept in the data directory, so that
// tokens stay valid after a restart.
func (l *local) signingKey() (*ecdsa.PrivateKey, error) {
	l.keyFile = filepath.Join(l.dir, "signing-key.pem")
	text, err := os.ReadFile(l.keyFile)
	if err == nil {
		return peertest.ParseKey(text)
	}

	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("signing key: %w", err)
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}

	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}

	return key, writeWhole(l.keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// callbackSecret sets the secret that signs callbacks. A generated secret is kept in the data
// directory, so that receivers can keep it too.
func (l *local) callbackSecret(cfg *Config) error {
	l.secret = cfg.CallbackSecret
	if l.secret == "" {
		file := filepath.Join(l.dir, "callback-secret")
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			text = []byte(webhook.NewSecret())
			err = writeWhole(file, text, 0o600)
		}

		if err != nil {
			return fmt.Errorf("callback secret: %w", err)
		}

		l.secret = strings.TrimSpace(string(text))
	}

	var err error
	if cfg.secrets, err = webhook.ParseSecrets(l.secret); err != nil {
		return fmt.Errorf("callback secret: %w", err)
	}

	return nil
}

func startPeers(address string, key *ecdsa.PrivateKey, bus *natsbus.Bus, log *slog.Logger) (*peertest.Server, error) {
	config := peertest.Config{
		Listen: address, Key: key, Logger: log,
		Respond: func(ctx context.Context, subject string, body []byte) error { return bus.Send(ctx, subject, nil, body) },
	}

	server, err := peertest.Start(config)
	if err != nil && address != "" {
		// The port is only a default, so any other port is as good.
		config.Listen = ""
		server, err = peertest.Start(config)
	}

	if err != nil {
		return nil, fmt.Errorf("fake peer services: %w", err)
	}

	return server, nil
}

// stop takes everything down in the opposite order and leaves nothing behind.
func (l *local) stop(ctx context.Context) error {
	if l.stopped {
		return nil
	}

	// Once: dev stops after a failed start too. A minute is for everything together.
	l.stopped = true
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var errs []error
	if l.service != nil {
		errs = append(errs, l.service.stop(ctx))
	}
	if l.peers != nil {
		errs = append(errs, l.peers.Close(ctx))
	}

	if l.bus != nil {
		errs = append(errs, l.bus.Close(ctx))
	}
	if l.cluster != nil {
		errs = append(errs, l.cluster.Stop(ctx))
	}
	if l.temp != "" {
		errs = append(errs, os.RemoveAll(l.temp))
	}

	return errors.Join(errs...)
}

// writeWhole writes a file atomically: readers see the old content or the new one.
func writeWhole(path string, text []byte, mode fs.FileMode) error {
	// In the same directory, because a rename must not cross file systems.
	temp, err := tempBeside(path)
	if err != nil {
		return err
	}

	defer func() { _ = os.Remove(temp.Name()) }()
	_, err = temp.Write(text)
	err = errors.Join(err, temp.Chmod(mode), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}

	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}

	return nil
}

// tempBeside creates a temporary file in the directory of another file.
func tempBeside(path string) (*os.File, error) {
	temp, err := os.CreateTemp(filepath.Dir(path), ".tes-*")
	if err != nil {
		var of *fs.PathError
		if errors.As(err, &of) {
			err = of.Err // the error would name the temporary file, which the user does not know
		}
		return nil, fmt.Errorf("write %s: %w", path, err)
	}

	return temp, nil
}

// failing are the attributes with error texts. Credentials in them are redacted.
var failing = []string{"error", "why", "reason", "panic", "stack", "detail"}

// longestFailing bounds such a text, in bytes.
const longestFailing = 64 << 10

// logger writes to stderr. stdout is for the output of commands.
func logger(s *cmdContext, level slog.Level, format string) *slog.Logger {
	if s.level == nil {
		s.level = &slog.LevelVar{}
	}

	// SIGHUP sets the level again without making a new handler, so the level is shared.
	s.levelDefault = level
	s.level.Set(s.cfg.level(level))
	options := &slog.HandlerOptions{Level: s.level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch {
		case a.Value.Kind() == slog.KindDuration:
			return slog.String(a.Key, a.Value.Duration().String()) // slog would print nanoseconds
		case slices.Contains(failing, a.Key):
			text := a.Value.String()
			return slog.String(a.Key, redact.Text(text[:min(len(text), longestFailing)]))
		}

		return a
	}}

	if s.cfg.LogFormat != "" {
		format = s.cfg.LogFormat
	}

	var lines slog.Handler = slog.NewTextHandler(s.stderr, options)
	if format == "json" {
		lines = slog.NewJSONHandler(s.stderr, options)
	}

	return slog.New(spans.Log(newRepeats(lines, time.Now)))
}

// terminal returns whether a stream is a terminal, on which colours and progress bars make sense.
func terminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// progress is a progress bar on stderr; silent unless stderr is a terminal.
func progress(s *cmdContext, total int64, what string) *progressbar.ProgressBar {
	if !terminal(s.stderr) {
		return progressbar.DefaultBytesSilent(total, what)
	}
	return progressbar.DefaultBytes(total, what)
}
