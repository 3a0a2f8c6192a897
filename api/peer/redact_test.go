package peer

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
)

// No peer service's refusal has a credential in it, whichever peer service it is.
func TestRefusalsAreRedacted(t *testing.T) {
	t.Parallel()
	const canary = "hunter2canary"
	for _, name := range []string{nameIntegration, "user", "resource", "notification", "auth"} {
		body := `{"error": {"code": "password=` + canary + `", "message": "no: Authorization: Bearer ` + canary + `", "details": {"api_key": "` + canary + `"}}}`
		err := newAnswer(name, 422, []byte(body)).refused()
		var f *jobs.Failure
		require.ErrorAs(t, err, &f)
		require.NotContains(t, f.Code+f.Message+string(f.Details), canary)
		require.Contains(t, f.Message, "[redacted]")
	}
}
