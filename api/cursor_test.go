package api

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// FuzzCursor: what is read back is what was written, and nothing else is taken.
func FuzzCursor(f *testing.F) {
	id := uuid.New()
	f.Add(cursor(id[:], "workflow", "w"), "workflow", "w")
	f.Add("", "", "")
	f.Add("AAAA", "a", "b")
	f.Add(strings.Repeat("_", 200), "", "x")
	f.Fuzz(func(t *testing.T, text, list, of string) {
		last, err := after(text, list, of)
		if err != nil {
			require.Nil(t, last)
			return
		}
		if text == "" {
			return
		}
		require.Equal(t, text, cursor(last, list, of))
		_, err = after(text, list+of, "")
		if list+of != list || of != "" {
			require.Error(t, err, "it belongs to other filters")
		}
	})
}
