package api_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
)

func TestAsyncAPIIsCheckedIn(t *testing.T) {
	t.Parallel()
	printed, err := api.AsyncAPI()
	require.NoError(t, err)
	if *update {
		require.NoError(t, os.WriteFile("asyncapi.yaml", printed, 0o644))
	}
	kept, err := os.ReadFile("asyncapi.yaml")
	require.NoError(t, err)
	require.Equal(t, string(kept), string(printed), "what is said has changed: go test ./api -run AsyncAPI -update")
}
