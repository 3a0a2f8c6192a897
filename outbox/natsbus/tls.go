package natsbus

import (
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/nats-io/nats.go"
)

// tlsOptions makes the client read the certificates for each connection, so that renewed ones are
// used from the next connection on. A server without TLS is refused then.
func (b *Bus) tlsOptions() []nats.Option {
	if b.cfg.URL == "" || b.cfg.RootCAs == nil && b.cfg.Certificate == nil {
		return nil
	}
	return []nats.Option{nats.ClientTLSConfig(b.cfg.Certificate, b.cfg.RootCAs)}
}

// reconnectDelay returns the pause before another try to reconnect. The NATS client reports a failed
// TLS handshake to none of its callbacks; this callback can read the error.
func (b *Bus) reconnectDelay(tries int) time.Duration {
	b.mu.Lock()
	nc := b.nc
	b.mu.Unlock()
	if nc != nil {
		if err := nc.LastError(); isCertificateError(err) {
			b.recordDialError(err)
			return b.redialPause(tries, err)
		}
	}
	return b.redialPause(tries, nil)
}

// isCertificateError reports that one side refused the other's certificate, or has none.
func isCertificateError(err error) bool {
	var theirs *tls.CertificateVerificationError
	var ours *net.OpError // the server's alert
	return errors.As(err, &theirs) || errors.As(err, &ours) && ours.Op == "remote error" || errors.Is(err, nats.ErrSecureConnWanted)
}
