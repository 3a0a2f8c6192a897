package dbtest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/db/localpg"
	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// server is the PostgreSQL server with the databases of this test binary.
type server struct {
	cluster  *localpg.Cluster // nil for the server of TES_TEST_DATABASE_URL
	dsn      func(name string) string
	admin    *pgxpool.Pool // makes and drops databases
	template string
	canReset bool // the login may switch off triggers and foreign keys

	mu   sync.Mutex
	last int         // number in the last database's name; guarded by mu
	idle []*database // ready for the next test; guarded by mu
	all  []*database // all that were made; guarded by mu

	learning sync.Once
	image    *image // see learn
	imageErr error
}

func startServer(ctx context.Context) (_ *server, err error) {
	s := &server{}
	dsn := os.Getenv("TES_TEST_DATABASE_URL")
	if dsn == "" {
		if s.cluster, err = localpg.Start(ctx, privateConfig()); err != nil {
			return nil, fmt.Errorf("start a private PostgreSQL: %w", err)
		}
		dsn = s.cluster.URL()
	}

	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()

	if s.dsn, err = renamer(dsn); err != nil {
		return nil, fmt.Errorf("TES_TEST_DATABASE_URL: %w", err)
	}

	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("TES_TEST_DATABASE_URL: %w", err)
	}

	// More copies at the same time only slow each other down.
	cfg.MaxConns = 4
	if s.admin, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return nil, fmt.Errorf("open %s: %w", cfg.ConnConfig.Database, err)
	}

	var major int
	err = s.admin.QueryRow(ctx, `
		SELECT
			current_setting('server_version_num')::int / 10000,
			rolsuper
		FROM pg_roles
		WHERE rolname = current_user`).Scan(&major, &s.canReset)
	if err != nil {
		return nil, fmt.Errorf("ask the test server who we are: %w", err)
	}

	if err := s.makeTemplate(ctx, major); err != nil {
		return nil, err
	}

	return s, nil
}

func privateConfig() localpg.Config {
	return localpg.Config{
		DataDir:    os.Getenv("TES_DATA_DIR"),
		BinDir:     os.Getenv("TES_PG_BIN"),
		Version:    os.Getenv("TES_PG_VERSION"),
		User:       os.Getenv("TES_PG_USER"),
		Mirror:     os.Getenv("TES_PG_MIRROR"),
		NoSystem:   os.Getenv("TES_PG_SYSTEM") == "off",
		NoDownload: os.Getenv("TES_PG_DOWNLOAD") == "off",
		Throwaway:  true,
		Unsafe:     true,
		// Every parallel test has a pool, and every idle database a session.
		Settings: map[string]string{"max_connections": "300"},
		Owner:    "go test",
		Logf: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "dbtest: "+format+"\n", args...)
		},
	}
}

// renamer returns a function that replaces the database in a connection string, a URL or a
// list of keywords.
func renamer(dsn string) (func(name string) string, error) {
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		// The last dbname counts.
		return func(name string) string { return dsn + " dbname=" + name }, nil
	}

	parsed, err := url.Parse(dsn)
	if err != nil {
		// Without the parser's error, which shows the password.
		return nil, errors.New("not a valid URL")
	}

	return func(name string) string {
		other := *parsed
		other.Path = "/" + name
		query := other.Query()
		query.Del("dbname")
		query.Del("database")
		other.RawQuery = query.Encode()
		return other.String()
	}, nil
}

// makeTemplate makes the template if it does not exist. Other test binaries may make the
// same template at the same time. The last step forbids connections: that marks the template
// as complete, and a database with connections cannot be copied.
func (s *server) makeTemplate(ctx context.Context, major int) error {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", migrations.Fingerprint(), major))
	s.template = "tes_template_" + hex.EncodeToString(sum[:8])

	conn, err := s.admin.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to the test server: %w", err)
	}
	defer conn.Release()

	// The usual case, without a lock.
	if whole, _, err := s.templateState(ctx, conn); err != nil || whole {
		return err
	}

	// The same number in all test binaries that use this template.
	key := int64(binary.BigEndian.Uint32(sum[:]))
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", key); err != nil {
		return fmt.Errorf("lock the template: %w", err)
	}

	defer func() {
		_, _ = conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", key)
	}()

	// Another test binary may have made the template before this one got the lock.
	whole, exists, err := s.templateState(ctx, conn)
	if err != nil || whole {
		return err
	}

	name := pgx.Identifier{s.template}.Sanitize()

	// Incomplete: its maker was killed.
	if exists {
		if _, err := conn.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			return fmt.Errorf("drop half a template: %w", err)
		}
	}

	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE template0"); err != nil {
		return fmt.Errorf("create the template: %w", err)
	}

	if err := migrations.Up(ctx, s.dsn(s.template)); err != nil {
		return fmt.Errorf("migrate the template: %w", err)
	}

	if _, err := conn.Exec(ctx, "ALTER DATABASE "+name+" WITH IS_TEMPLATE true ALLOW_CONNECTIONS false"); err != nil {
		return fmt.Errorf("seal the template: %w", err)
	}

	return nil
}

func (s *server) templateState(ctx context.Context, conn *pgxpool.Conn) (whole, exists bool, err error) {
	err = conn.QueryRow(ctx, "SELECT datistemplate AND NOT datallowconn FROM pg_database WHERE datname = $1", s.template).Scan(&whole)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, false, nil
	}

	if err != nil {
		return false, false, fmt.Errorf("look for the template: %w", err)
	}

	return whole, true, nil
}

// take returns an idle database, or makes one.
func (s *server) take(ctx context.Context) (*database, error) {
	s.mu.Lock()
	if n := len(s.idle); n > 0 {
		d := s.idle[n-1]
		s.idle = s.idle[:n-1]
		s.mu.Unlock()
		return d, nil
	}

	s.mu.Unlock()
	return s.create(ctx)
}

// create copies the template.
func (s *server) create(ctx context.Context) (*database, error) {
	for attempt := 1; ; attempt++ {
		s.mu.Lock()
		s.last++
		name := fmt.Sprintf("t_%d_%d", os.Getpid(), s.last)
		s.mu.Unlock()
		_, err := s.admin.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+s.template)
		if err == nil {
			d := &database{server: s, name: name, farewell: farewell}
			s.mu.Lock()
			s.all = append(s.all, d)
			s.mu.Unlock()
			return d, nil
		}

		var refused *pgconn.PgError
		if !errors.As(err, &refused) || attempt == 100 {
			return nil, fmt.Errorf("create a test database: %w", err)
		}

		switch refused.Code {
		case "42P04": // duplicate_database: left by a process with the same pid
		case "55006": // object_in_use: the session that migrated the template has not ended yet
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return nil, fmt.Errorf("create a test database: %w", err)
			}
		default:
			return nil, fmt.Errorf("create a test database: %w", err)
		}
	}
}

// stop removes the cluster, or the databases on a server of others, except the databases of
// failed tests.
func (s *server) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	for _, d := range s.all {
		if d.keeper != nil {
			_ = d.keeper.Close(ctx)
		}
	}

	// With the cluster, all its databases are removed.
	if s.cluster != nil {
		if s.admin != nil {
			s.admin.Close()
		}
		return s.cluster.Stop(ctx)
	}

	if s.admin == nil {
		return nil
	}
	defer s.admin.Close()

	for _, d := range s.all {
		if d.kept {
			continue
		}

		if _, err := s.admin.Exec(ctx, "DROP DATABASE IF EXISTS "+d.name+" WITH (FORCE)"); err != nil {
			return fmt.Errorf("drop test database %s: %w", d.name, err)
		}
	}

	return nil
}
