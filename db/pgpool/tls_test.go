package pgpool_test

import (
	"context"
	"crypto/tls"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/certtest"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// sslmode=verify-full in the URL: a server of the right authority and name is taken, over TLS;
// one of another authority or of another name, and one without TLS, is refused.
func TestVerifyFull(t *testing.T) {
	t.Parallel()
	ca, stranger, dir := certtest.NewCA(t, "one"), certtest.NewCA(t, "two"), t.TempDir()
	root := certtest.Write(t, dir, "ca.pem", ca.PEM())
	other := certtest.Write(t, dir, "other.pem", stranger.PEM())
	server := dbtest.NewTLSServer(t, ca.Issue("postgres", "127.0.0.1"))
	open := func(host, mode, root string) error {
		to, err := url.Parse(server)
		require.NoError(t, err)
		to.Host = host + ":" + to.Port()
		to.RawQuery = url.Values{"sslmode": {mode}, "sslrootcert": {root}}.Encode()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		pool, err := pgpool.Open(ctx, to.String(), pgpool.Config{Name: "tls", MaxConns: 2})
		if err != nil {
			return err
		}
		defer pool.Close()
		conn, err := pool.Acquire(ctx)
		require.NoError(t, err)
		defer conn.Release()
		_, secure := conn.Conn().PgConn().Conn().(*tls.Conn)
		require.Equal(t, mode != "disable", secure)
		return nil
	}
	require.NoError(t, open("127.0.0.1", "verify-full", root))
	require.ErrorContains(t, open("127.0.0.1", "verify-full", other), "unknown authority")
	require.ErrorContains(t, open("localhost", "verify-full", root), "wanted to match localhost")
	require.NoError(t, open("localhost", "verify-ca", root), "the name alone is what is wrong")
	require.NoError(t, open("127.0.0.1", "disable", root), "the server takes plain connections too")
	require.Error(t, open("127.0.0.1", "verify-full", filepath.Join(dir, "none.pem")))
}
