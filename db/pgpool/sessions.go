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

// ErrPooler says that there is something between us and the database that keeps the
// settings of our sessions, or the sessions themselves, from us. What wraps it says what.
var ErrPooler = errors.New("there is a pooler between us and the database")

// Sessions proves that what Open has made leads to the server itself: that the settings are
// in force, and that each connection keeps its session. ErrPooler if not.
func Sessions(ctx context.Context, pool *pgxpool.Pool, cfg Config) error {
	err := arrived(cfg.withDefaults(), func(sql string) pgx.Row { return pool.QueryRow(ctx, sql, nameless) })
	if err != nil {
		return err
	}
	return ownSessions(ctx, pool)
}

// querier is a pool, a session or a Pooled.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// nameless makes a statement that leaves nothing in a session, whose session that may be.
const nameless = pgx.QueryExecModeSimpleProtocol

// arrived proves that the settings of a pool are in force where its statements are made.
func arrived(cfg Config, ask func(sql string) pgx.Row) error {
	for _, want := range cfg.settings() {
		if want.name != "statement_timeout" && want.name != "lock_timeout" && want.name != "tes.actor" {
			continue
		}
		name, got := literal(want.name), ""
		sql := "SELECT coalesce((SELECT s.setting FROM pg_settings s WHERE s.name = " + name + "), current_setting(" + name + ", true), '')"
		if err := ask(sql).Scan(&got); err != nil {
			return fmt.Errorf("ask for our settings: %w", err)
		}
		if got != want.value {
			return fmt.Errorf("%w: the setting %s is %q, and we asked for %q", ErrPooler, want.name, got, want.value)
		}
	}
	return nil
}

// unsupported is what PgBouncer answers to a parameter that it does not know.
func unsupported(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "08P01" && strings.Contains(refused.Message, "startup parameter")
}

// ownSessions proves that a connection is a session of the server's, and ours alone: two
// connections have two sessions at one time, and each keeps its own. A pooler that hands out
// sessions by the transaction gives both the same, or one of them another.
func ownSessions(ctx context.Context, pool *pgxpool.Pool) error {
	one, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("look at our sessions: %w", err)
	}
	defer one.Release()
	pid := func(q querier) (pid uint32, err error) {
		if err := q.QueryRow(ctx, "SELECT pg_backend_pid()", nameless).Scan(&pid); err != nil {
			return 0, fmt.Errorf("look at our sessions: %w", err)
		}
		return pid, nil
	}
	first, err := pid(one)
	if err != nil || first == one.Conn().PgConn().PID() {
		return err // it is the one that the server told us of
	}
	for range 3 {
		other, err := pool.Acquire(ctx)
		if err != nil {
			return fmt.Errorf("look at our sessions: %w", err)
		}
		shared, err := func() (bool, error) {
			defer other.Release()
			tx, err := other.Begin(ctx)
			if err != nil {
				return false, fmt.Errorf("look at our sessions: %w", err)
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
			return fmt.Errorf("%w: it hands out sessions by the transaction", ErrPooler)
		}
	}
	return nil
}
