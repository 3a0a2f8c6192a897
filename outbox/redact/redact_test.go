package redact_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/outbox/redact"
)

// What was redacted is left as it is by the next who redacts it, wherever the text was
// cut off; and no credential outlives the cut.
func TestRedactedTwiceIsRedactedOnce(t *testing.T) {
	t.Parallel()
	shapes := []string{
		"password=%s", "Authorization: Bearer %s", "Cookie: a=b; sid=%s", "https://u:%s@h/x", `{"api_key": "%s"}`, "<password>%s</password>",
		"<p:secret><![CDATA[%s]]></p:secret>", "-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----", "passwd => '%s'",
	}
	rapid.Check(t, func(t *rapid.T) {
		secret := "zz" + rapid.StringMatching(`[A-Za-z0-9_]{0,20}`).Draw(t, "secret") + "zz9"
		text := rapid.SampledFrom([]string{"", "it failed: ", "x=1 "}).Draw(t, "before") +
			strings.Replace(rapid.SampledFrom(shapes).Draw(t, "shape"), "%s", secret, 1) + rapid.SampledFrom([]string{"", "; then"}).Draw(t, "after")
		once := redact.Text(text)
		require.NotContains(t, once, secret)
		require.Equal(t, once, redact.Text(once))

		end := strings.Index(text, secret) + len(secret)
		require.NotContains(t, redact.Text(text[:end]), secret, "cut off behind the secret")

		document, err := json.Marshal(map[string]any{"list": []any{text, map[string]any{"db_password": secret}}})
		require.NoError(t, err)
		clean := redact.JSON(document)
		require.NotContains(t, string(clean), secret)
		require.Equal(t, string(clean), string(redact.JSON(clean)))
	})
}
