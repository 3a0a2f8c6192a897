package pgpool

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// renewTLS makes each new connection read the files of sslrootcert, sslcert and sslkey
// again, so that renewed certificates need no restart. If the files cannot be used, the
// previous ones stay in use.
func renewTLS(url string, conf *pgxpool.Config) {
	begun := conf.ConnConfig.TLSConfig

	// No TLS, or no files: nothing to renew.
	if begun == nil || begun.RootCAs == nil && len(begun.Certificates) == 0 {
		return
	}

	conf.BeforeConnect = func(_ context.Context, next *pgx.ConnConfig) error {
		fresh, err := pgx.ParseConfig(url)

		// A file may be half written, or certificate and key may not match yet.
		if err != nil || len(fresh.Fallbacks) != len(next.Fallbacks) {
			return nil //nolint:nilerr // connect with the previous files
		}

		next.TLSConfig = fresh.TLSConfig

		for i, other := range fresh.Fallbacks {
			next.Fallbacks[i].TLSConfig = other.TLSConfig
		}

		return nil
	}
}
