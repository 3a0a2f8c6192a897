package pgpool

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrPooler reports a pooler between tes and the database that drops the settings of the
// sessions, or shares the sessions. The wrapping error has the details.
var ErrPooler = errors.New("there is a pooler between tes and the database")

// Sessions proves that a pool made by Open is connected to the server itself: the settings
// are in force, and each connection keeps its own session. Otherwise ErrPooler.
func Sessions(ctx context.Context, pool *pgxpool.Pool, cfg Config) error {
	err := arrived(cfg.withDefaults(), func(sql string) pgx.Row { return pool.QueryRow(ctx, sql, nameless) })
	if err != nil {
		return err
	}

	return ownSessions(ctx, pool)
}

// querier is implemented by pools, sessions and Pooled.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// nameless executes a statement that leaves nothing in the session, because the session may
// belong to another client.
const nameless = pgx.QueryExecModeSimpleProtocol

// arrived checks that the settings of a pool are in force where its statements run.
func arrived(cfg Config, ask func(sql string) pgx.Row) error {
	for _, want := range cfg.settings() {
		// Three settings are enough to detect a pooler that drops settings.
		if want.name != "statement_timeout" && want.name != "lock_timeout" && want.name != "tes.actor" {
			continue
		}

		name, got := literal(want.name), ""
		sql := "SELECT coalesce((SELECT s.setting FROM pg_settings s WHERE s.name = " + name + "), current_setting(" + name + ", true), '')"
		if err := ask(sql).Scan(&got); err != nil {
			return fmt.Errorf("read the session's settings: %w", err)
		}

		if got != want.value {
			return fmt.Errorf("%w: the setting %s is %q instead of %q", ErrPooler, want.name, got, want.value)
		}
	}

	return nil
}

// unsupported recognizes PgBouncer's answer to a startup parameter that PgBouncer does not
// know.
func unsupported(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "08P01" && strings.Contains(refused.Message, "startup parameter")
}

// ownSessions proves that each connection is a session of the server: two connections have
// two sessions at the same time, and each connection keeps its session. A pooler in
// transaction mode gives both connections the same session, or changes the session of one.
func ownSessions(ctx context.Context, pool *pgxpool.Pool) error {
	one, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("check the sessions: %w", err)
	}
	defer one.Release()

	pid := func(q querier) (pid uint32, err error) {
		if err := q.QueryRow(ctx, "SELECT pg_backend_pid()", nameless).Scan(&pid); err != nil {
			return 0, fmt.Errorf("check the sessions: %w", err)
		}
		return pid, nil
	}

	first, err := pid(one)
	if err != nil || first == one.Conn().PgConn().PID() {
		// A direct connection: the server itself announced this process id.
		return err
	}

	// A pooler with several idle sessions may assign two different ones by chance.
	for range 3 {
		other, err := pool.Acquire(ctx)
		if err != nil {
			return fmt.Errorf("check the sessions: %w", err)
		}

		shared, err := func() (bool, error) {
			defer other.Release()

			// A transaction holds the session of a pooler, so that the session of one must differ.
			tx, err := other.Begin(ctx)
			if err != nil {
				return false, fmt.Errorf("check the sessions: %w", err)
			}
			defer func() { _ = tx.Rollback(ctx) }()

			second, err := pid(tx)
			if err != nil || second == first {
				return err == nil, err
			}

			again, err := pid(one)
			return again != first, err
		}()
		if err != nil {
			return err
		}

		if shared {
			return fmt.Errorf("%w: it assigns sessions for one transaction at a time", ErrPooler)
		}
	}

	return nil
}
