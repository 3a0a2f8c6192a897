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
func (c *connection) tlsOptions() []nats.Option {
	if c.cfg.URL == "" || c.cfg.RootCAs == nil && c.cfg.Certificate == nil {
		return nil
	}
	return []nats.Option{nats.ClientTLSConfig(c.cfg.Certificate, c.cfg.RootCAs)}
}

// reconnectDelay returns the pause before another try to reconnect. The NATS client reports a failed
// TLS handshake to none of its callbacks; this callback can read the error.
func (c *connection) reconnectDelay(tries int) time.Duration {
	c.mu.Lock()
	nc := c.nc
	c.mu.Unlock()
	if nc != nil {
		if err := nc.LastError(); isCertificateError(err) {
			c.recordDialError(err)
			return c.redialPause(tries, err)
		}
	}
	return c.redialPause(tries, nil)
}

// isCertificateError reports that one side refused the other's certificate, or has none.
func isCertificateError(err error) bool {
	var theirs *tls.CertificateVerificationError
	var ours *net.OpError // the server's alert
	return errors.As(err, &theirs) || errors.As(err, &ours) && ours.Op == "remote error" || errors.Is(err, nats.ErrSecureConnWanted)
}
