package natsbus

import (
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/nats-io/nats.go"
)

// secure asks for certificates at each connection, so that renewed ones are in use from the
// next one on. A server that does not offer TLS is refused then.
func (b *Bus) secure() []nats.Option {
	if b.cfg.URL == "" || b.cfg.RootCAs == nil && b.cfg.Certificate == nil {
		return nil
	}
	return []nats.Option{nats.ClientTLSConfig(b.cfg.Certificate, b.cfg.RootCAs)}
}

// betweenTries is the pause before another try to connect again. The NATS client reports a
// handshake that failed to none of its callbacks; here its error is still to be had.
func (b *Bus) betweenTries(tries int) time.Duration {
	b.mu.Lock()
	nc := b.nc
	b.mu.Unlock()
	if nc != nil {
		if err := nc.LastError(); untrusted(err) {
			b.missed(err)
			return b.redialAfter(tries, err)
		}
	}
	return b.redialAfter(tries, nil)
}

// untrusted says that one side does not take the other's certificate, or has none.
func untrusted(err error) bool {
	var theirs *tls.CertificateVerificationError
	var ours *net.OpError // the server's alert
	return errors.As(err, &theirs) || errors.As(err, &ours) && ours.Op == "remote error" || errors.Is(err, nats.ErrSecureConnWanted)
}
