package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// serveCmd is tes serve: the service for production.
type serveCmd struct {
	HTTP string `name:"http" help:"Serve the API on HOST:PORT. Default: TES_HTTP, else 127.0.0.1:8080." placeholder:"HOST:PORT"`
}

// Help lists the settings.
func (serveCmd) Help() string {
	return "Settings:\n" + settings() + "\nOpenTelemetry's own OTEL_* variables are obeyed too.\n"
}

// Run serves until it is told to stop, then drains.
func (c *serveCmd) Run(s *cmdContext) error {
	hangups := make(chan os.Signal, 1) // from the very start: without a handler SIGHUP would end the process
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)

	// The flag has precedence over the variable.
	cfg := s.cfg
	if c.HTTP != "" {
		if err := checkAddress(c.HTTP); err != nil {
			return &usageError{"--http: " + err.Error()}
		}
		cfg.HTTP = c.HTTP
	}

	cfg.HTTP = cfg.httpAddress()

	// dev and demo bring a database and fakes of the peer services. In production a missing address
	// must be an error, and not the start of a private database without a backup.
	if cfg.DatabaseURL == "" {
		return &usageError{"TES_DATABASE_URL is not set: serve uses a database that is there (tes dev brings its own)"}
	}
	if cfg.orElse(cfg.AuthURL) == "" || cfg.orElse(cfg.IntegrationURL) == "" || cfg.orElse(cfg.UserURL) == "" {
		return &usageError{"the peer services are not named: set TES_NEIGHBOURS_URL, or TES_AUTH_URL, TES_INTEGRATION_URL and TES_USER_URL"}
	}

	// Files are read before anything is started: a certificate that cannot be used is a usage
	// error.
	log := logger(s, slog.LevelInfo, "json")
	files, err := cfg.watchFiles(log)
	if err != nil {
		return err
	}

	roots, own := files.natsTLS()
	// An unavailable bus does not prevent the start: the outbox keeps the events.
	bus, err := natsbus.Start(s.ctx, natsbus.Config{
		URL: cfg.NATSURL, Credentials: cfg.NATSCredentials, Token: cfg.NATSToken, NoSync: cfg.NATSSync == "off", Logger: log,
		StoreDir: cfg.natsDir(), Readers: cfg.natsReaders(), Replicas: cfg.natsReplicas,
		RootCAs: roots, Certificate: own,
	})
	if err != nil {
		return fmt.Errorf("bus: %w", err)
	}

	// A service that has started closes the bus. After a failed start the bus may be open or closed,
	// and a second Close does nothing.
	service, err := startService(s.ctx, cfg, deps{bus: bus, log: log, files: files})
	if err != nil {
		return join(err, bus.Close(context.WithoutCancel(s.ctx)))
	}

	log.Info("serving", "url", service.url, "process", service.tasks.ProcessID(), "version", version())
	service.background(func(ctx context.Context) { reload(ctx, hangups, s, files, log) })

	// The end is a signal, or an order to stop on the bus.
	select {
	case <-s.ctx.Done():
	case <-service.ordered:
	}

	log.Info("stopping", "grace", cfg.grace)
	return service.stop(context.WithoutCancel(s.ctx))
}

func join(errs ...error) error { return errors.Join(errs...) }
