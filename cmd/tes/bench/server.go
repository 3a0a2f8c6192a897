package bench

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

// serverSettings of the private cluster: enough memory and WAL that no checkpoint falls into a
// timed part. Every other setting, durability above all, is PostgreSQL's default.
var serverSettings = map[string]string{
	"shared_buffers": "1GB", "max_wal_size": "8GB", "min_wal_size": "2GB", "checkpoint_timeout": "30min",
	"max_connections": "200",
}

// server is the PostgreSQL that the suite measures on, with two template databases: one with
// tes's schema, and one with River's stock schema. Every timed part gets a fresh copy.
type server struct {
	cluster *localpg.Cluster // nil on the operator's server
	base    string           // connection string of the operator's server
	dir     string           // parent of the buses' directories
	prefix  string           // of the databases' names
	admin   *pgxpool.Pool
	n       int // databases made

	postmaster int // process id; 0: not looked up yet, -1: on another machine
}

func startServer(ctx context.Context, env Env) (_ *server, err error) {
	v := &server{base: env.DatabaseURL, prefix: "tes_bench_" + strings.ToLower(rand.Text()[:6])}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.stop(false))
		}
	}()

	if v.base == "" {
		if v.cluster, err = env.StartPostgres(ctx, serverSettings); err != nil {
			return nil, err
		}

		// Inside the cluster's directory, which the next start removes if this process is killed.
		v.dir = filepath.Join(v.cluster.Dir(), "buses")
		err = os.MkdirAll(v.dir, 0o700)
	} else {
		v.dir, err = os.MkdirTemp("", "tes-bench-")
	}

	if err != nil {
		return nil, fmt.Errorf("directory for the bus: %w", err)
	}

	if v.admin, err = pgxpool.New(ctx, v.url("postgres")); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}

	return v, v.templates(ctx)
}

// templates creates the two template databases.
func (v *server) templates(ctx context.Context) error {
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

	// River's schema with every index. tes drops some River indexes in its databases.
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

func (v *server) template(kind string) string { return v.prefix + "_" + kind }

// url is the connection string of one database of the server.
func (v *server) url(name string) string {
	if v.cluster != nil {
		return v.cluster.DatabaseURL(name)
	}

	// TES_DATABASE_URL may be a URL or a list of keywords and values.
	if u, err := url.Parse(v.base); err == nil && u.Scheme != "" {
		if name != "postgres" { // administration uses the database that the operator named
			u.Path = "/" + name
		}

		return u.String()
	}

	if name == "postgres" {
		return v.base
	}

	return v.base + " dbname=" + name // the last dbname of a connection string counts
}

// fresh copies a template database. The caller drops the copy.
func (v *server) fresh(ctx context.Context, kind string) (name string, err error) {
	v.n++
	name = fmt.Sprintf("%s_%s_%d", v.prefix, kind, v.n)
	if _, err := v.admin.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+v.template(kind)); err != nil {
		return "", fmt.Errorf("create a database: %w", err)
	}
	return name, nil
}

func (v *server) drop(name string) error {
	ctx, cancel := cleanupContext()
	defer cancel()
	if _, err := v.admin.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("drop database: %w", err)
	}
	return nil
}

// quiesce refreshes a database's statistics, removes dead rows and writes dirty pages, so that the
// timed part after quiesce does none of this work.
func (v *server) quiesce(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, "VACUUM ANALYZE"); err != nil {
		return fmt.Errorf("vacuum: %w", err)
	}

	// Only superusers and pg_checkpoint may; other logins measure without a checkpoint.
	_, _ = v.admin.Exec(ctx, "CHECKPOINT")
	return nil
}

// bus starts an embedded bus in a new directory. A message is on disk before the bus
// acknowledges it.
func (v *server) bus(ctx context.Context, log *slog.Logger) (*natsbus.Bus, func() error, error) {
	dir, err := os.MkdirTemp(v.dir, "bus-")
	if err != nil {
		return nil, nil, fmt.Errorf("directory for the bus: %w", err)
	}

	bus, err := natsbus.Open(ctx, natsbus.Config{StoreDir: dir, Logger: log})
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}

	return bus, func() error {
		ctx, cancel := cleanupContext()
		defer cancel()
		return errors.Join(bus.Close(ctx), os.RemoveAll(dir))
	}, nil
}

// machine describes the machine and the server's settings.
func (v *server) machine(ctx context.Context) (machineInfo, error) {
	m := machineInfo{Cores: runtime.NumCPU(), Go: runtime.Version(), Settings: map[string]string{}}
	if err := v.admin.QueryRow(ctx, "SHOW server_version").Scan(&m.PostgreSQL); err != nil {
		return m, fmt.Errorf("ask the server: %w", err)
	}

	// The settings that decide the cost of a commit. A figure needs them to be compared.
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

// stop drops the databases and stops the private cluster. With keep, the databases on the
// operator's server stay.
func (v *server) stop(keep bool) error {
	ctx, cancel := cleanupContext()
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

func (v *server) dropAll(ctx context.Context) error {
	// By prefix, and not from a list: also a database whose creation was interrupted.
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
