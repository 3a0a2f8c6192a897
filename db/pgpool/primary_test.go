package pgpool_test

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

func open(t *testing.T, dsn string, cfg pgpool.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := pgpool.Open(t.Context(), dsn, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// An address that leads to a standby for a while, and back: no connection is made to the
// standby, and the pool is itself again as soon as the address is. Field case F4.
func TestNoConnectionIsMadeToAStandby(t *testing.T) {
	t.Parallel()
	pair := dbtest.NewPair(t, false)
	address := dbtest.NewEndpoint(t, pair.Primary.URL())
	through := address.URL(t, pair.Primary.URL())
	pool := open(t, through, pgpool.Config{MaxConns: 4})
	standby := func(pool *pgxpool.Pool) (is bool, err error) {
		err = pool.QueryRow(t.Context(), "SELECT pg_is_in_recovery()").Scan(&is)
		return is, err
	}
	is, err := standby(pool)
	require.NoError(t, err)
	require.False(t, is)
	require.NoError(t, pgpool.Primary(t.Context(), pool))

	address.LeadTo(t, pair.Standby.URL())
	eventually(t, func() bool { return pgpool.Primary(t.Context(), pool) != nil })
	for range 5 {
		_, err = standby(pool)
		require.ErrorIs(t, err, pgpool.ErrReadOnly)
	}
	_, err = pgpool.Open(t.Context(), through, pgpool.Config{})
	require.ErrorIs(t, err, pgpool.ErrReadOnly)
	require.ErrorContains(t, err, "it is a standby")

	address.LeadTo(t, pair.Primary.URL())
	eventually(t, func() bool { return pgpool.Primary(t.Context(), pool) == nil })
	_, err = pool.Exec(t.Context(), "CREATE TABLE written (n int)")
	require.NoError(t, err)

	// Who says so may read from a standby, by the configuration or in the URL.
	for dsn, any := range map[string]bool{pair.Standby.URL(): true, pair.Standby.URL() + "&target_session_attrs=any": false} {
		reader := open(t, dsn, pgpool.Config{AnyServer: any})
		is, err = standby(reader)
		require.NoError(t, err)
		require.True(t, is)
		require.ErrorIs(t, pgpool.Primary(t.Context(), reader), pgpool.ErrReadOnly)
	}

	// Of several hosts the one that takes writes is taken, whichever comes first.
	first, err := url.Parse(pair.Standby.URL())
	require.NoError(t, err)
	second, err := url.Parse(pair.Primary.URL())
	require.NoError(t, err)
	first.Host += "," + second.Host
	first.User = second.User
	several := open(t, first.String(), pgpool.Config{Engine: true})
	is, err = standby(several)
	require.NoError(t, err)
	require.False(t, is)

	// A standby that is promoted is as good as any.
	address.LeadTo(t, pair.Standby.URL())
	eventually(t, func() bool { return pgpool.Primary(t.Context(), pool) != nil })
	pair.Promote()
	eventually(t, func() bool { return pgpool.Primary(t.Context(), pool) == nil })
	_, err = pool.Exec(t.Context(), "CREATE TABLE promoted (n int)")
	require.NoError(t, err)
}

// A session that was told that it may not write is closed, and those that are idle beside
// it are as well.
func TestReadOnlySessionsAreClosed(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.URL(dbtest.Get(t)), pgpool.Config{MaxConns: 3, Engine: true})
	pids := func() map[uint32]bool {
		all := map[uint32]bool{}
		var held []*pgxpool.Conn
		for range 3 {
			conn, err := pool.Acquire(t.Context())
			require.NoError(t, err)
			all[conn.Conn().PgConn().PID()] = true
			held = append(held, conn)
		}
		for _, conn := range held {
			_, err := conn.Exec(t.Context(), "SET default_transaction_read_only = on")
			require.NoError(t, err)
			conn.Release()
		}
		return all
	}
	before := pids()
	_, err := pool.Exec(t.Context(), addJob)
	require.ErrorContains(t, err, "25006")
	eventually(t, func() bool { // the others close in the background
		_, err := pool.Exec(t.Context(), addJob)
		return err == nil
	})
	eventually(t, func() bool { return pool.Stat().TotalConns() <= 1 })
	for pid := range pids() {
		require.False(t, before[pid])
	}
}

const addJob = "INSERT INTO river_job (args, kind, max_attempts) VALUES ('{}', 'test', 3)"

func eventually(t *testing.T, met func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it never came")
		}
	}
}
