package pgpool_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

func TestUUIDsTravel(t *testing.T) {
	t.Parallel()
	pool := dbtest.Get(t)
	ids := []uuid.UUID{uuid.New(), uuid.Nil, uuid.Must(uuid.NewV7())}

	var back []uuid.UUID
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT $1::uuid[]", ids).Scan(&back))
	require.Equal(t, ids, back)

	var text string
	var one uuid.UUID
	var none *uuid.UUID
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT $1::uuid::text, $1::uuid, NULL::uuid", ids[0]).Scan(&text, &one, &none))
	require.Equal(t, ids[0].String(), text)
	require.Equal(t, ids[0], one)
	require.Nil(t, none)
	require.Error(t, pool.QueryRow(t.Context(), "SELECT NULL::uuid").Scan(&one), "NULL is no UUID")
}

func TestReplanLetsAPlanGrowOldForASecond(t *testing.T) {
	t.Parallel()
	conn, err := dbtest.Get(t).Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	require.NoError(t, pgpool.Replan(t.Context(), conn.Conn()))
	at := conn.Conn().PgConn().CustomData()["tes planned at"]
	require.NotNil(t, at)
	require.NoError(t, pgpool.Replan(t.Context(), conn.Conn()))
	require.Equal(t, at, conn.Conn().PgConn().CustomData()["tes planned at"], "at most once a second")
}

// A connection that breaks while it is being replanned is nobody's afterwards.
func TestABrokenConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	admin := dbtest.Get(t)
	pool, err := pgpool.Open(t.Context(), dbtest.URL(admin), pgpool.Config{Name: "test", MaxConns: 1, Engine: true})
	require.NoError(t, err)
	defer pool.Close()
	old := func() uint32 {
		conn, err := pool.Acquire(t.Context())
		require.NoError(t, err)
		defer conn.Release()
		delete(conn.Conn().PgConn().CustomData(), "tes planned at")
		return conn.Conn().PgConn().PID()
	}

	pid := old()
	_, err = admin.Exec(t.Context(), "SELECT pg_terminate_backend($1, 5000)", pid)
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), "SELECT 1")
	require.NoError(t, err, "the server ended it")

	for wait := range 200 { // some of them in the middle of the statement
		old()
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(wait)*2*time.Microsecond)
		_, _ = pool.Exec(ctx, "SELECT 1")
		cancel()
		_, err = pool.Exec(t.Context(), "SELECT 1")
		require.NoError(t, err, "a caller's context ended over it")
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := pgpool.Open(t.Context(), "postgres://%zz", pgpool.Config{})
	require.ErrorContains(t, err, "database url")
	_, err = pgpool.Open(t.Context(), "postgres://127.0.0.1:1/none?sslmode=disable", pgpool.Config{})
	require.ErrorContains(t, err, "reach database")
}
