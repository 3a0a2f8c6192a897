package relay_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/relay"
	"github.com/seed-3f7a0631/tes/outbox/relay/relaytest"
)

// testBundle is outboxtest.Bundle with the helpers of this package's tests.
type testBundle struct{ *outboxtest.Bundle }

func setup(t *testing.T) *testBundle {
	t.Helper()
	return &testBundle{outboxtest.New(t)}
}

// Relay runs a relay until the test ends.
func (b *testBundle) Relay(bus relay.Publisher, change ...func(*relay.Config)) *relaytest.Running {
	b.T.Helper()
	return relaytest.Run(b.Bundle, bus, change...)
}

// RelayOn runs a relay on another pool.
func (b *testBundle) RelayOn(pool *pgxpool.Pool, bus relay.Publisher, change ...func(*relay.Config)) *relaytest.Running {
	b.T.Helper()
	return relaytest.RunOn(b.Bundle, pool, bus, change...)
}

// ask returns the only value of a query's only row.
func ask[T any](b *testBundle, sql string, args ...any) T {
	b.T.Helper()
	return outboxtest.Ask[T](b.Bundle, sql, args...)
}
