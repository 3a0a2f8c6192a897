package natsbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/certtest"
)

// secureServer speaks TLS alone, to clients with a certificate of an authority; seen gets the
// serial number of each that came in.
func secureServer(t *testing.T, port int, own tls.Certificate, clients *x509.CertPool, seen *atomic.Value) *server.Server {
	t.Helper()
	return plainServer(t, server.Options{JetStream: true, Port: port, TLS: true, TLSTimeout: patience.Seconds(), TLSConfig: &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{own}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			seen.Store(s.PeerCertificates[0].SerialNumber.String())
			return nil
		},
	}})
}

// with gives a bus authorities and a certificate; either may be nil.
func with(roots *atomic.Pointer[x509.CertPool], own *atomic.Pointer[tls.Certificate]) func(*Config) {
	return func(cfg *Config) {
		if roots != nil {
			cfg.RootCAs = func() (*x509.CertPool, error) { return roots.Load(), nil }
		}
		if own != nil {
			cfg.Certificate = func() (tls.Certificate, error) { return *own.Load(), nil }
		}
	}
}

func pointer[T any](value *T) *atomic.Pointer[T] {
	p := &atomic.Pointer[T]{}
	p.Store(value)
	return p
}

// The server and the bus change authorities and certificates, and the bus, which is not
// restarted, joins with the new ones.
func TestCertificatesOfTheBusAreRenewed(t *testing.T) {
	t.Parallel()
	one, two := certtest.NewCA(t, "one"), certtest.NewCA(t, "two")
	first, second := one.Issue("tes").TLS(t), two.Issue("tes").TLS(t)
	roots, own := pointer(one.Pool()), pointer(&first)
	address := freeAddress(t)
	var seen atomic.Value
	srv := secureServer(t, address.Port, one.Issue("nats", "127.0.0.1").TLS(t), one.Pool(), &seen)
	b := startBus(t, "nats://"+address.String(), with(roots, own))
	b.health(t, OK, "")
	_, err := b.Publish(b.ctx, messages(1, 3))
	require.NoError(t, err)
	require.Equal(t, first.Leaf.SerialNumber.String(), seen.Load())

	srv.Shutdown()
	srv.WaitForShutdown()
	b.health(t, Away, "")
	secureServer(t, address.Port, two.Issue("nats", "127.0.0.1").TLS(t), two.Pool(), &seen)
	require.Eventually(t, func() bool { return tries(b.Bus) > 3 }, 2*patience, 5*time.Millisecond, "a server of an unknown authority is not told of")
	b.health(t, Away, "do not accept each other's certificates")
	require.Equal(t, 1, strings.Count(b.log.String(), "unknown authority"), b.log)
	roots.Store(two.Pool())
	own.Store(&second)
	b.health(t, OK, "")
	_, err = b.Publish(b.ctx, messages(1, 3))
	require.NoError(t, err)
	require.Equal(t, second.Leaf.SerialNumber.String(), seen.Load())
}

// The server of another authority, of another name, without TLS, and one that does not take
// our certificate, or demands one that we have not got.
func TestServersWithoutTheRightCertificateAreRefused(t *testing.T) {
	t.Parallel()
	one, two := certtest.NewCA(t, "one"), certtest.NewCA(t, "two")
	good, stranger := one.Issue("tes").TLS(t), two.Issue("tes").TLS(t)
	var seen atomic.Value
	right := secureServer(t, 0, one.Issue("nats", "127.0.0.1").TLS(t), one.Pool(), &seen).ClientURL()
	misnamed := secureServer(t, 0, one.Issue("nats", "nats.example", "127.0.0.9").TLS(t), one.Pool(), &seen).ClientURL()
	plain := plainServer(t, server.Options{JetStream: true}).ClientURL()
	knows, knowsNot := pointer(one.Pool()), pointer(two.Pool())

	for name, c := range map[string]struct {
		url  string
		with func(*Config)
		says string
	}{
		"another authority": {right, with(knowsNot, pointer(&good)), "unknown authority"},
		"another name":      {misnamed, with(knows, pointer(&good)), "not 127.0.0.1"},
		"the system's":      {right, with(nil, pointer(&good)), "unknown authority"},
		"nobody told":       {right, func(*Config) {}, "unknown authority"},
		"no TLS":            {plain, with(knows, nil), "secure connection not available"},
	} {
		cfg := Config{URL: c.url}
		c.with(&cfg)
		_, err := Open(context.Background(), cfg)
		require.ErrorContains(t, err, c.says, name)
	}
	for _, own := range []*atomic.Pointer[tls.Certificate]{nil, pointer(&stranger)} {
		b := startBus(t, right, with(knows, own))
		require.Eventually(t, func() bool { return tries(b.Bus) > 2 }, 2*patience, 5*time.Millisecond)
		b.health(t, Away, "do not accept each other's certificates")
	}
}
