package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/seed-3f7a0631/tes/db/localpg"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// benchSettings of the own cluster: enough memory and WAL that no checkpoint falls
// into a timed part. Everything else, durability above all, is PostgreSQL's default.
var benchSettings = map[string]string{
	"shared_buffers": "1GB", "max_wal_size": "8GB", "min_wal_size": "2GB", "checkpoint_timeout": "30min",
	"max_connections": "200",
}

// benchServer is the PostgreSQL that is measured on, with two templates: a
// migrated database of ours, and one with River's stock schema. Every timed part
// has a fresh copy.
type benchServer struct {
	cluster *localpg.Cluster // nil on TES_DATABASE_URL
	base    string           // connection string of another server
	dir     string           // for buses
	prefix  string           // of the databases' names
	admin   *pgxpool.Pool
	n       int // databases made

	postmaster int // process id; 0 unknown, -1 not ours to see
}

func startBenchServer(s *shell, log *slog.Logger) (_ *benchServer, err error) {
	v := &benchServer{base: s.cfg.DatabaseURL, prefix: "tes_bench_" + strings.ToLower(rand.Text()[:6])}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.stop(false))
		}
	}()
	if v.base == "" {
		v.cluster, err = localpg.Start(s.ctx, localpg.Config{
			Throwaway: true, Owner: "tes bench", Settings: benchSettings, BinDir: s.cfg.PGBin, Version: s.cfg.PGVersion, User: s.cfg.PGUser,
			NoSystem: s.cfg.PGSystem == "off", NoDownload: s.cfg.PGDownload == "off", Mirror: s.cfg.PGMirror,
			Logf: func(format string, args ...any) { log.Info(fmt.Sprintf(format, args...)) },
		})
		if err != nil {
			return nil, err
		}
		// Not $TMPDIR itself: what a killed bench leaves here the next one removes.
		v.dir = filepath.Join(v.cluster.Dir(), "buses")
		err = os.MkdirAll(v.dir, 0o700)
	} else {
		v.dir, err = os.MkdirTemp("", "tes-bench-")
	}
	if err != nil {
		return nil, fmt.Errorf("directory for the bus: %w", err)
	}
	if v.admin, err = pgxpool.New(s.ctx, v.url("postgres")); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	return v, v.templates(s.ctx)
}

// templates makes the two databases that the others are copied from.
func (v *benchServer) templates(ctx context.Context) error {
	for _, kind := range []string{"tes", "river"} {
		if _, err := v.admin.Exec(ctx, "CREATE DATABASE "+v.template(kind)); err != nil {
			return fmt.Errorf("create a database (TES_DATABASE_URL must be allowed to): %w", err)
		}
	}
	if err := migrations.Up(ctx, v.url(v.template("tes"))); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, v.url(v.template("river")))
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	defer pool.Close()
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	if err != nil {
		return fmt.Errorf("river's schema: %w", err)
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("river's schema: %w", err)
	}
	if _, err := pool.Exec(ctx, "ANALYZE"); err != nil {
		return fmt.Errorf("analyze: %w", err)
	}
	return nil
}

func (v *benchServer) template(kind string) string { return v.prefix + "_" + kind }

// url of one database of the server.
func (v *benchServer) url(name string) string {
	if v.cluster != nil {
		return v.cluster.DatabaseURL(name)
	}
	if u, err := url.Parse(v.base); err == nil && u.Scheme != "" {
		if name != "postgres" { // orders are given where we were let in
			u.Path = "/" + name
		}
		return u.String()
	}
	if name == "postgres" {
		return v.base
	}
	return v.base + " dbname=" + name // of two, the last counts
}

// fresh copies a template. The copy is dropped by drop.
func (v *benchServer) fresh(ctx context.Context, kind string) (name string, err error) {
	v.n++
	name = fmt.Sprintf("%s_%s_%d", v.prefix, kind, v.n)
	if _, err := v.admin.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+v.template(kind)); err != nil {
		return "", fmt.Errorf("create a database: %w", err)
	}
	return name, nil
}

func (v *benchServer) drop(name string) error {
	ctx, cancel := lastOrders()
	defer cancel()
	if _, err := v.admin.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("drop database: %w", err)
	}
	return nil
}

// still brings one database to rest: statistics are fresh, dead rows and dirty
// pages gone, so that neither falls into the timed part that follows.
func (v *benchServer) still(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, "VACUUM ANALYZE"); err != nil {
		return fmt.Errorf("vacuum: %w", err)
	}
	// Who may not order a checkpoint measures without.
	_, _ = v.admin.Exec(ctx, "CHECKPOINT")
	return nil
}

// bus is an embedded bus in a new directory, every acknowledged event on disk.
func (v *benchServer) bus(ctx context.Context, log *slog.Logger) (*natsbus.Bus, func() error, error) {
	dir, err := os.MkdirTemp(v.dir, "bus-")
	if err != nil {
		return nil, nil, fmt.Errorf("directory for the bus: %w", err)
	}
	bus, err := natsbus.Open(ctx, natsbus.Config{StoreDir: dir, Logger: log})
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return bus, func() error {
		ctx, cancel := lastOrders()
		defer cancel()
		return errors.Join(bus.Close(ctx), os.RemoveAll(dir))
	}, nil
}

// machine says what is measured on.
func (v *benchServer) machine(ctx context.Context) (benchMachine, error) {
	m := benchMachine{Cores: runtime.NumCPU(), Go: runtime.Version(), Settings: map[string]string{}}
	if err := v.admin.QueryRow(ctx, "SHOW server_version").Scan(&m.PostgreSQL); err != nil {
		return m, fmt.Errorf("ask the server: %w", err)
	}
	rows, err := v.admin.Query(ctx, `
		SELECT name, current_setting(name)
		FROM pg_settings
		WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size', 'checkpoint_timeout', 'wal_level', 'autovacuum')`)
	if err != nil {
		return m, fmt.Errorf("ask the server: %w", err)
	}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error { m.Settings[name] = value; return nil })
	if err != nil {
		return m, fmt.Errorf("ask the server: %w", err)
	}
	return m, nil
}

// stop drops what was made. With keep, what is on another server stays there.
func (v *benchServer) stop(keep bool) error {
	ctx, cancel := lastOrders()
	defer cancel()
	var errs []error
	if v.admin != nil {
		if v.cluster == nil && !keep {
			errs = append(errs, v.dropAll(ctx))
		}
		v.admin.Close()
	}
	if v.dir != "" {
		errs = append(errs, os.RemoveAll(v.dir))
	}
	if v.cluster != nil {
		errs = append(errs, v.cluster.Stop(ctx))
	}
	return errors.Join(errs...)
}

func (v *benchServer) dropAll(ctx context.Context) error {
	rows, err := v.admin.Query(ctx, "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", v.prefix)
	if err != nil {
		return fmt.Errorf("list databases: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("list databases: %w", err)
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, v.drop(name))
	}
	return errors.Join(errs...)
}
