package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/seed-3f7a0631/tes/cmd/tes/bench"
	"github.com/seed-3f7a0631/tes/db/localpg"
)

// benchCmd is tes bench.
type benchCmd struct{ bench.Options }

// Run measures and prints.
func (c *benchCmd) Run(s *cmdContext) error {
	if err := c.Check(); err != nil {
		return &usageError{err.Error()}
	}

	log := logger(s, slog.LevelWarn, "text")
	return bench.Run(s.ctx, c.Options, bench.Env{
		Stdout: s.stdout, Stderr: s.stderr, ShowProgress: terminal(s.stderr), Log: log,
		PrintJSON:     func(v any) error { return printJSON(s, v) },
		DatabaseURL:   s.cfg.DatabaseURL,
		StartPostgres: benchPostgres(s.cfg, log),
		StartService:  benchService(s.cfg),
	})
}

// benchPostgres returns the function that starts the private PostgreSQL of a benchmark.
func benchPostgres(cfg Config, log *slog.Logger) func(context.Context, map[string]string) (*localpg.Cluster, error) {
	return func(ctx context.Context, settings map[string]string) (*localpg.Cluster, error) {
		return localpg.Start(ctx, localpg.Config{
			Throwaway: true, Owner: "tes bench", Settings: settings, BinDir: cfg.PGBin, Version: cfg.PGVersion, User: cfg.PGUser,
			NoSystem: cfg.PGSystem == "off", NoDownload: cfg.PGDownload == "off", Mirror: cfg.PGMirror,
			Logf: func(format string, args ...any) { log.Info(fmt.Sprintf(format, args...)) },
		})
	}
}

// benchService returns the function that starts the service for a benchmark: as tes serve does,
// with every peer service at one address.
func benchService(cfg Config) func(context.Context, bench.ServiceConfig) (*bench.Service, error) {
	return func(ctx context.Context, in bench.ServiceConfig) (*bench.Service, error) {
		// A copy for each service: the suite starts several services.
		cfg := cfg
		cfg.DatabaseURL, cfg.HTTP, cfg.NeighboursURL = in.DatabaseURL, "127.0.0.1:0", in.PeersURL
		cfg.AuthURL, cfg.IntegrationURL, cfg.UserURL = "", "", ""
		if cfg.Observability == "" {
			cfg.Observability = "off" // bare River makes no spans either; docs/decisions/0010 has the cost of spans
		}

		service, err := startService(ctx, cfg, deps{bus: in.Bus, sharedBus: true, log: in.Log})
		if err != nil {
			return nil, err
		}

		return &bench.Service{
			URL: service.url, Tasks: service.tasks, Sessions: service.sessions,
			Published: func() int64 { return service.relay.Published() }, Stop: service.stop,
		}, nil
	}
}
