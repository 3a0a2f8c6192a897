package peer_test

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/db/certtest"
)

// A peer service at an https address is believed by its authority and its name, an IP address
// included, and sees our certificate; both may be renewed between two connections.
func TestNeighboursOverTLS(t *testing.T) {
	t.Parallel()
	one, two := certtest.NewCA(t, "one"), certtest.NewCA(t, "two")
	first, second, foreign := one.Issue("tes").TLS(t), one.Issue("tes").TLS(t), two.Issue("tes").TLS(t)
	var presented atomic.Pointer[tls.Certificate] // by the peer service
	serve := func(cert tls.Certificate) { presented.Store(&cert) }
	serve(one.Issue("neighbour", "127.0.0.1").TLS(t))
	var seen atomic.Value
	there := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.TLS.PeerCertificates[0].SerialNumber.String())
		w.Header().Set("Connection", "close") // each request is a handshake
		_, _ = w.Write([]byte(`{"status":"SUCCESS"}`))
	}))
	there.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{
			MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: one.Pool(),
			Certificates: []tls.Certificate{*presented.Load()},
		}, nil
	}}
	there.Config.ErrorLog = log.New(io.Discard, "", 0)
	there.StartTLS()
	t.Cleanup(there.Close)

	var roots atomic.Pointer[certtest.CA]
	var own atomic.Pointer[tls.Certificate]
	roots.Store(one)
	own.Store(&first)
	peers, err := peer.New(peer.Config{BaseURL: there.URL, Policy: once(), TLS: func() *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots.Load().Pool(), Certificates: []tls.Certificate{*own.Load()}}
	}})
	require.NoError(t, err)
	t.Cleanup(peers.Close)
	call := func() error {
		_, err := peers.Integrations.Invoke(t.Context(), "i", ask("m", `{}`))
		return err
	}
	require.NoError(t, call())
	require.Equal(t, first.Leaf.SerialNumber.String(), seen.Load())
	own.Store(&second)
	require.NoError(t, call())
	require.Equal(t, second.Leaf.SerialNumber.String(), seen.Load())

	own.Store(&foreign)
	requireOutage(t, call(), "integration")
	own.Store(&second)
	serve(one.Issue("neighbour", "neighbour.example", "127.0.0.9").TLS(t))
	require.ErrorContains(t, call(), "not 127.0.0.1")
	serve(two.Issue("neighbour", "127.0.0.1").TLS(t))
	require.ErrorContains(t, call(), "unknown authority")
	roots.Store(two)
	require.NoError(t, call())

	system, err := peer.New(peer.Config{BaseURL: there.URL, Policy: once()})
	require.NoError(t, err)
	t.Cleanup(system.Close)
	_, err = system.Integrations.Invoke(t.Context(), "i", ask("m", `{}`))
	require.ErrorContains(t, err, "unknown authority")
}
