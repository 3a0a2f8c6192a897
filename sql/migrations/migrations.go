// Package migrations migrates a database to the schema of this program: first the tables of
// River, one step for each version of River's schema, then the tables of tes.
package migrations

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed *.sql
var files embed.FS

// The scripts that run before and after the migrations.
var (
	//go:embed roles.sql
	roles string
	//go:embed grants.sql
	grants string
)

// Step is one migration, and whether it is applied.
type Step struct {
	Version int64  `json:"version"`
	Name    string `json:"name"`
	Applied bool   `json:"applied"`
}

// Fingerprint changes whenever a migration or River's version changes.
func Fingerprint() string {
	sum := sha256.New()
	_ = fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}

		text, err := files.ReadFile(path)
		fmt.Fprintf(sum, "%s %x\n", path, sha256.Sum256(text))
		return err
	})

	// River's migrations are in a module, not in files of this package.
	fmt.Fprintf(sum, "river %d", riverVersions)

	return hex.EncodeToString(sum.Sum(nil))[:16]
}

// Up applies the missing steps. Concurrent calls wait for each other. The role of dsn must be
// allowed to create roles and tables.
func Up(ctx context.Context, dsn string) error {
	return with(ctx, dsn, true, func(p *goose.Provider, pool *pgxpool.Pool) error {
		if err := script(ctx, pool, "roles", roles); err != nil {
			return err
		}

		if _, err := p.Up(ctx); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("the migration was interrupted: what is applied stays, and the next run goes on from there: %w", context.Cause(ctx))
			}

			// goose's error for this has no type.
			if strings.Contains(err.Error(), "failed to acquire lock") {
				err = fmt.Errorf("%w: another migrator is at work, or a session holds the lock (SELECT pid FROM pg_locks WHERE locktype = 'advisory')", err)
			}

			return fmt.Errorf("migrate up: %w", err)
		}

		return script(ctx, pool, "grant", grantsLock+grants)
	})
}

// grantsLock makes migrators grant one after another. A table lock is used because only the
// owner can take it; an advisory lock could be taken by any role.
const grantsLock = "SET LOCAL lock_timeout = '60s'; LOCK TABLE public.goose_db_version IN SHARE ROW EXCLUSIVE MODE;\n"

// script executes a file of several statements in one transaction, by the simple protocol.
func script(ctx context.Context, pool *pgxpool.Pool, what, text string) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer conn.Release()

	if _, err := conn.Conn().PgConn().Exec(ctx, "BEGIN;\n"+text+"\nCOMMIT;").ReadAll(); err != nil {
		// The connection goes back into the pool, so the failed transaction must end.
		_, _ = conn.Exec(context.WithoutCancel(ctx), "ROLLBACK")
		return fmt.Errorf("%s: %w", what, explained(err))
	}

	return nil
}

// explained adds the server's hint to an error; pgx does not print hints.
func explained(err error) error {
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Hint != "" {
		return fmt.Errorf("%w (%s)", err, refused.Hint)
	}

	return err
}

// Down reverts the newest step and returns it; nil if no step was applied.
func Down(ctx context.Context, dsn string) (*Step, error) {
	var step *Step
	err := with(ctx, dsn, true, func(p *goose.Provider, _ *pgxpool.Pool) error {
		done, err := p.Down(ctx)
		if errors.Is(err, goose.ErrNoNextVersion) {
			return nil
		}

		if err != nil {
			return fmt.Errorf("migrate down: %w", err)
		}

		step = &Step{Version: done.Source.Version, Name: name(done.Source)}
		return nil
	})

	return step, err
}

// begun reports whether the database was ever migrated. If the login may not read the
// migrations table, the error names the login to use.
func begun(ctx context.Context, pool *pgxpool.Pool) (bool, error) {
	var there, readable bool
	var login string
	err := pool.QueryRow(ctx, `
		SELECT
			c.oid IS NOT NULL,
			coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), false),
			current_user::text
		FROM (SELECT 1) AS one
		LEFT JOIN pg_namespace n ON n.nspname = 'public'
		LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'goose_db_version'`).Scan(&there, &readable, &login)
	switch {
	case err != nil:
		return false, fmt.Errorf("look for the schema: %w", err)
	// The table exists, so the error must not say that the migrations are missing.
	case there && !readable:
		return false, fmt.Errorf("the login %q may not read the tables of tes: the service needs one that is in the role tes_app; tes_report, for readers, has the views of the schema report alone", login)
	}

	return there, nil
}

// Status returns the steps, oldest first. Status takes no lock: every process calls Status at
// its start, and any role could take and hold the migrators' advisory lock.
func Status(ctx context.Context, dsn string) ([]Step, error) {
	var steps []Step
	err := with(ctx, dsn, false, func(p *goose.Provider, pool *pgxpool.Pool) error {
		begun, err := begun(ctx, pool)
		if err != nil {
			return err
		}

		// goose would create its table, which the login of the service may not do.
		if !begun {
			for _, source := range p.ListSources() {
				steps = append(steps, Step{source.Version, name(source), false})
			}
			return nil
		}

		list, err := p.Status(ctx)
		if err != nil {
			return fmt.Errorf("migration status: %w", err)
		}

		for _, s := range list {
			steps = append(steps, Step{s.Source.Version, name(s.Source), s.State == goose.StateApplied})
		}

		return nil
	})

	return steps, err
}

func with(ctx context.Context, dsn string, locked bool, do func(*goose.Provider, *pgxpool.Pool) error) error {
	conf, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("open database to migrate: %w", err)
	}

	// A migration needs the primary. Status on one host may ask a standby.
	if conf.ConnConfig.ValidateConnect == nil && (locked || severalHosts(conf)) {
		conf.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}

	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return fmt.Errorf("open database to migrate: %w", err)
	}
	defer pool.Close()

	if err := checkEncoding(ctx, pool); err != nil {
		return err
	}

	std := stdlib.OpenDBFromPool(pool)
	defer func() { _ = std.Close() }()

	provider, err := newProvider(std, pool, locked)
	if err != nil {
		return err
	}

	return do(provider, pool)
}

// severalHosts reports whether a URL names more than one server: a primary and standbys,
// which may be behind.
func severalHosts(conf *pgxpool.Config) bool {
	for _, other := range conf.ConnConfig.Fallbacks {
		if other.Host != conf.ConnConfig.Host || other.Port != conf.ConnConfig.Port {
			return true
		}
	}

	return false
}

// checkEncoding rejects a database that cannot store every text: LATIN1 lacks most
// characters, and SQL_ASCII accepts any bytes.
func checkEncoding(ctx context.Context, pool *pgxpool.Pool) error {
	var name, encoding string
	if err := pool.QueryRow(ctx, "SELECT current_database(), current_setting('server_encoding')").Scan(&name, &encoding); err != nil {
		return fmt.Errorf("ask for the database's encoding: %w", err)
	}

	if encoding == "UTF8" {
		return nil
	}

	return fmt.Errorf("database %s is encoded in %s, and tes needs UTF8: make another one with "+
		"CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8', and take over what this one holds with pg_dump and psql", name, encoding)
}

// lockTries is the number of seconds that a migrator waits for another holder of the lock.
const lockTries = 300

func newProvider(std *sql.DB, pool *pgxpool.Pool, locked bool) (*goose.Provider, error) {
	options := []goose.ProviderOption{goose.WithGoMigrations(riverSteps(pool)...), goose.WithDisableGlobalRegistry(true)}
	if locked {
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, lockTries))
		if err != nil {
			return nil, fmt.Errorf("migration lock: %w", err)
		}
		options = append(options, goose.WithSessionLocker(locker))
	}

	provider, err := goose.NewProvider(goose.DialectPostgres, std, numbered{files}, options...)
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}

	return provider, nil
}

// numbered hides the scripts without a number from goose.
type numbered struct{ embed.FS }

func (f numbered) Glob(pattern string) ([]string, error) {
	all, err := fs.Glob(f.FS, pattern)
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}

	var out []string
	for _, name := range all {
		if name != "grants.sql" && name != "roles.sql" {
			out = append(out, name)
		}
	}

	return out, nil
}

// name returns the name of a step, for people.
func name(s *goose.Source) string {
	// Only River's steps are written in Go.
	if s.Type == goose.TypeGo {
		return fmt.Sprintf("River's schema, version %d", s.Version)
	}

	return s.Path
}
