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

// An address may lead to a standby: a failover moves it, or a load balancer does. A session
// with a standby answers reads with what was true some time ago, and lives for as long as
// the standby does. So every connection proves, when it is made, that it may write; and one
// that is told later that it may not (SQLSTATE 25006) is closed, and with it all others that
// are idle in its pool. A standby that is promoted passes from that moment on.

// ErrReadOnly says that a server takes no writes. What wraps it says why.
var ErrReadOnly = errors.New("the server takes no writes")

// readOnlyTransaction is the SQLSTATE of a write where none may be made.
const readOnlyTransaction = "25006"

// mayWrite is a pgconn.ValidateConnectFunc: with several hosts in the URL, the next one is
// tried after an error.
func mayWrite(ctx context.Context, conn *pgconn.PgConn) error {
	const ask = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'"
	results, err := conn.Exec(ctx, ask).ReadAll()
	if err != nil {
		return fmt.Errorf("ask whether the server takes writes: %w", err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 2 {
		return errors.New("ask whether the server takes writes: it did not answer")
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

// Primary says whether a pool's server answers, and is no standby: ErrReadOnly if it is one.
// Behind a pooler the server of a connection may change while the connection stays.
func Primary(ctx context.Context, pool interface {
	querier
	Reset()
},
) error {
	var standby bool
	if err := pool.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
		return fmt.Errorf("ask whether the server is a standby: %w", err)
	}
	if standby {
		pool.Reset()
	}
	return readOnly(standby, false)
}

// demandWrites makes a pool prove of each connection that it may write, unless the URL says
// with target_session_attrs what it wants. made holds the pool once there is one.
func demandWrites(url string, conf *pgxpool.Config, made *atomic.Pointer[pgxpool.Pool]) {
	if conf.ConnConfig.ValidateConnect == nil && !strings.Contains(url, "target_session_attrs") {
		conf.ConnConfig.ValidateConnect = mayWrite
	}
	keep := conf.ConnConfig.OnPgError // closes a connection after a fatal error
	conf.ConnConfig.OnPgError = func(conn *pgconn.PgConn, refused *pgconn.PgError) bool {
		if refused.Code != readOnlyTransaction {
			return keep == nil || keep(conn, refused)
		}
		if pool := made.Load(); pool != nil {
			go pool.Reset() // not here: the connection is being read from
		}
		return false
	}
}
