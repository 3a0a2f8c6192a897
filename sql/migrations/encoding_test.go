package migrations_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// A database that cannot hold every text is refused by the name of its encoding, before
// anything is made in it. Field case F10.
func TestOtherEncodingsAreRefused(t *testing.T) {
	t.Parallel()
	for _, encoding := range []string{"LATIN1", "SQL_ASCII"} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			dsn := empty(t, "ENCODING '"+encoding+"' LC_COLLATE 'C' LC_CTYPE 'C'")
			err := migrations.Up(t.Context(), dsn)
			require.ErrorContains(t, err, " is encoded in "+encoding+", and tes needs UTF8")
			require.ErrorContains(t, err, "CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'")
			_, err = migrations.Status(t.Context(), dsn)
			require.ErrorContains(t, err, " is encoded in "+encoding)
			_, err = migrations.Down(t.Context(), dsn)
			require.ErrorContains(t, err, " is encoded in "+encoding)
			require.Equal(t, []int64{0}, list[int64](t, open(t, dsn), "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))
		})
	}
}
