package auth

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzToken: the look before the parsing never panics, and what it lets through is
// three parts of JSON under an algorithm that we take.
func FuzzToken(f *testing.F) {
	f.Add("e30.e30.eA")
	f.Add("eyJhbGciOiJFUzI1NiIsImtpZCI6ImEifQ.e30.eA")
	f.Add("..")
	f.Add(strings.Repeat(".", 100))
	f.Fuzz(func(t *testing.T, token string) {
		if validForm(token) != nil {
			return
		}
		parts := strings.Split(token, ".")
		require.Len(t, parts, 3)
		for _, p := range parts[:2] {
			raw, err := segment(p)
			require.NoError(t, err)
			require.True(t, json.Valid(raw))
		}
	})
}
