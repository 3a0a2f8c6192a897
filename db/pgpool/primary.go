package pgpool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The address of the database may lead to a standby: after a failover, or through a load
// balancer. A session with a standby reads old data, and lasts as long as the standby. So
// each new connection proves that the server accepts writes. A connection that is told later
// that the server is read-only (SQLSTATE 25006) is closed, with all idle connections of its
// pool. A standby that is promoted is accepted from then on.

// ErrReadOnly reports a server that accepts no writes. The wrapping error has the reason.
var ErrReadOnly = errors.New("the server takes no writes")

// readOnlyTransaction is the SQLSTATE of a write in a read-only transaction.
const readOnlyTransaction = "25006"

// mayWrite is a pgconn.ValidateConnectFunc. After an error, pgconn tries the next host of
// the URL.
func mayWrite(ctx context.Context, conn *pgconn.PgConn) error {
	const ask = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'"
	results, err := conn.Exec(ctx, ask).ReadAll()
	if err != nil {
		return fmt.Errorf("ask whether the server takes writes: %w", err)
	}

	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 2 {
		return errors.New("ask whether the server takes writes: unexpected answer")
	}

	return readOnly(string(results[0].Rows[0][0]) == "t", string(results[0].Rows[0][1]) == "t")
}

func readOnly(standby, byDefault bool) error {
	switch {
	case standby:
		return fmt.Errorf("%w: it is a standby", ErrReadOnly)
	case byDefault:
		return fmt.Errorf("%w: default_transaction_read_only is on", ErrReadOnly)
	}

	return nil
}

// Primary checks that the server of a pool answers and is no standby; ErrReadOnly for a
// standby. The check must be repeated: behind a pooler, the server of a connection may
// change while the connection lasts.
func Primary(ctx context.Context, pool interface {
	querier
	Reset()
},
) error {
	var standby bool
	if err := pool.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
		return fmt.Errorf("ask whether the server is a standby: %w", err)
	}
	// The idle connections lead to the standby too.
	if standby {
		pool.Reset()
	}
	return readOnly(standby, false)
}

// demandWrites makes each new connection of a pool prove that the server accepts writes,
// unless the URL sets target_session_attrs. made holds the pool as soon as the pool exists.
func demandWrites(url string, conf *pgxpool.Config, made *atomic.Pointer[pgxpool.Pool]) {
	if conf.ConnConfig.ValidateConnect == nil && !strings.Contains(url, "target_session_attrs") {
		conf.ConnConfig.ValidateConnect = mayWrite
	}

	// pgx's own handler closes a connection after a fatal error.
	keep := conf.ConnConfig.OnPgError
	conf.ConnConfig.OnPgError = func(conn *pgconn.PgConn, refused *pgconn.PgError) bool {
		if refused.Code != readOnlyTransaction {
			return keep == nil || keep(conn, refused)
		}

		if pool := made.Load(); pool != nil {
			// In another goroutine: this one is reading from a connection of the pool.
			go pool.Reset()
		}

		return false
	}
}
