package outbox_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

func TestEventIDsAreOfTheirOwn(t *testing.T) {
	t.Parallel()
	seen := map[uuid.UUID]bool{}
	for range 100 {
		task := uuid.Must(uuid.NewV7())
		for seq := range int32(100) {
			id := outbox.EventID(task, seq+1)
			require.False(t, seen[id])
			require.Equal(t, id, outbox.EventID(task, seq+1))
			seen[id] = true
		}
	}
}
