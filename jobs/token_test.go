package jobs

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLeaseTokens(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	id := leaseID{task: b.create(remote).TaskID, job: 1<<62 + 7, attempt: 3, visibility: 12 * time.Hour}
	token, err := b.Leases.tokens.sign(b.ctx, id)
	require.NoError(t, err)
	read, err := other.Leases.tokens.read(b.ctx, token)
	require.NoError(t, err)
	require.Equal(t, id, read)
	for i := range len(token) {
		forged := token[:i] + string("AB"[strings.Count(token[i:i+1], "A")]) + token[i+1:]
		_, err := b.Leases.tokens.read(b.ctx, forged)
		require.ErrorIs(t, err, ErrNotFound, "%d", i)
	}
	for _, bad := range []string{"", "x", token + "A", token[1:], strings.Repeat("A", len(token)), token + "=", "é"} {
		_, err := b.Leases.tokens.read(b.ctx, bad)
		require.ErrorIs(t, err, ErrNotFound, bad)
	}
}

// FuzzLeaseToken: nothing but what we signed is a token, and nothing panics.
func FuzzLeaseToken(f *testing.F) {
	k := &tokens{key: make([]byte, 32)}
	good, err := k.sign(context.Background(), leaseID{job: 1, attempt: 1})
	require.NoError(f, err)
	f.Add(good)
	f.Add("")
	f.Add(strings.Repeat("A", len(good)))
	f.Fuzz(func(t *testing.T, token string) {
		id, err := k.read(context.Background(), token)
		if err != nil {
			return
		}
		again, err := k.sign(context.Background(), id)
		require.NoError(t, err)
		require.Equal(t, again, token)
	})
}
