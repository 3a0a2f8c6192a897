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
		to, err := url.Parse(server.URL())
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

// The authority and the certificates of both sides are renewed: connections from then on use
// the new ones, and a file that cannot be used changes nothing.
func TestCertificatesOfTheDatabaseAreRenewed(t *testing.T) {
	t.Parallel()
	one, two, dir := certtest.NewCA(t, "one"), certtest.NewCA(t, "two"), t.TempDir()
	root := certtest.Write(t, dir, "ca.pem", one.PEM())
	server := dbtest.NewTLSServer(t, one.Issue("postgres", "127.0.0.1"))
	to, err := url.Parse(server.URL())
	require.NoError(t, err)
	to.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {root}}.Encode()
	pool, err := pgpool.Open(t.Context(), to.String(), pgpool.Config{Name: "tls", MaxConns: 2})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	again := func() error {
		pool.Reset() // the next is a new connection
		return pool.Ping(t.Context())
	}
	certtest.Write(t, dir, "ca.pem", []byte("no certificate"))
	require.NoError(t, again())

	server.Present(two.Issue("postgres", "127.0.0.1"))
	certtest.Write(t, dir, "ca.pem", one.PEM())
	require.ErrorContains(t, again(), "unknown authority")
	certtest.Write(t, dir, "ca.pem", two.PEM())
	require.NoError(t, again())
}
