// Package migrations brings a database to the schema this program needs: River's
// own tables first, each of its versions a step of ours, then tes's.
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

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed *.sql
var files embed.FS

//go:embed grants.sql
var grants string

// Step is one migration and whether the database has it.
type Step struct {
	Version int64  `json:"version"`
	Name    string `json:"name"`
	Applied bool   `json:"applied"`
}

// Fingerprint changes whenever any migration, or River's version, does.
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
	fmt.Fprintf(sum, "river %d", riverVersions)
	return hex.EncodeToString(sum.Sum(nil))[:16]
}

// Up applies what is missing. Two processes may call it at once: one migrates,
// the other waits. The role of dsn must be allowed to create roles and tables.
func Up(ctx context.Context, dsn string) error {
	return with(ctx, dsn, func(p *goose.Provider, pool *pgxpool.Pool) error {
		if _, err := p.Up(ctx); err != nil {
			return fmt.Errorf("migrate up: %w", err)
		}
		return finish(ctx, pool)
	})
}

// finish grants what each role may do, one process at a time. The simple protocol,
// for the file holds several statements: together they are one transaction.
func finish(ctx context.Context, pool *pgxpool.Pool) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	defer conn.Release()
	const lock = "SELECT pg_advisory_xact_lock(hashtextextended('tes grants', 0));\n"
	if _, err := conn.Conn().PgConn().Exec(ctx, lock+grants).ReadAll(); err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	return nil
}

// Down takes back the newest step and returns it; nil if there was none.
func Down(ctx context.Context, dsn string) (*Step, error) {
	var step *Step
	err := with(ctx, dsn, func(p *goose.Provider, _ *pgxpool.Pool) error {
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

// Status lists every step, oldest first.
func Status(ctx context.Context, dsn string) ([]Step, error) {
	var steps []Step
	err := with(ctx, dsn, func(p *goose.Provider, _ *pgxpool.Pool) error {
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

func with(ctx context.Context, dsn string, do func(*goose.Provider, *pgxpool.Pool) error) error {
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return fmt.Errorf("open database to migrate: %w", err)
	}
	defer pool.Close()
	std := stdlib.OpenDBFromPool(pool)
	defer func() { _ = std.Close() }()
	provider, err := newProvider(std, pool)
	if err != nil {
		return err
	}
	return do(provider, pool)
}

func newProvider(std *sql.DB, pool *pgxpool.Pool) (*goose.Provider, error) {
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, fmt.Errorf("migration lock: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, std, numbered{files},
		goose.WithSessionLocker(locker),
		goose.WithGoMigrations(riverSteps(pool)...),
		goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	return provider, nil
}

// numbered hides grants.sql from goose, which would ask for its number.
type numbered struct{ embed.FS }

func (f numbered) Glob(pattern string) ([]string, error) {
	all, err := fs.Glob(f.FS, pattern)
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	var out []string
	for _, name := range all {
		if name != "grants.sql" {
			out = append(out, name)
		}
	}
	return out, nil
}

func name(s *goose.Source) string {
	if s.Type == goose.TypeGo {
		return fmt.Sprintf("River's schema, version %d", s.Version)
	}
	return s.Path
}
