package pgpool

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// renewTLS has each new connection read the files again that sslrootcert, sslcert and sslkey
// of the URL name: what is renewed there needs no restart. Files that cannot be used leave what
// the pool began with.
func renewTLS(url string, conf *pgxpool.Config) {
	begun := conf.ConnConfig.TLSConfig
	if begun == nil || begun.RootCAs == nil && len(begun.Certificates) == 0 {
		return
	}
	conf.BeforeConnect = func(_ context.Context, next *pgx.ConnConfig) error {
		fresh, err := pgx.ParseConfig(url)
		if err != nil || len(fresh.Fallbacks) != len(next.Fallbacks) {
			return nil //nolint:nilerr // the connection is tried with what was read before
		}
		next.TLSConfig = fresh.TLSConfig
		for i, other := range fresh.Fallbacks {
			next.Fallbacks[i].TLSConfig = other.TLSConfig
		}
		return nil
	}
}
