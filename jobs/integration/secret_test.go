package integration_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/integration"
)

// spoken are texts with a secret in them, where %s stands.
var spoken = []string{
	"DB_PASSWORD=%s client_secret=x", "client_secret=%s", "pwd=%s", "secret_key: %s", "cause: password=%s", "MyDb.Password = '%s x'",
	"Authorization: Bearer %s", "authorization: basic %s", "Proxy-Authorization: %s", "X-Api-Key: %s", "Set-Cookie: sid=%s; Path=/", "Cookie: a=b; sid=%s",
	"https://u:%s@books/x", "cannot reach postgres://u:%s@h/db?sslmode=off", "https://books/x?access_token=%s&page=2", "apiToken=%s",
	`{"password": "%s with \" blanks"}`, `{\"db_password\":\"%s\"}`, "<soap:Password Type=\"text\">%s</soap:Password>", "<password>%s</password>", "<a><b>x</b><p:secret><![CDATA[%s]]></p:secret></a>",
	"Server=db;User Id=u;Password=%s;Pooling=true", "passwd => %s", "-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----\n%s",
}

// members are JSON documents with a secret in them.
var members = []string{
	`{"db_password": %q}`, `{"apiToken": %q}`, `{"a": [{"clientSecret": %q}]}`, `{"DBPASSWORD": %q}`, `{"X-Api-Key": [%q]}`, `{"credentials": {"any": %q}}`,
	`{"headers": [{"name": "Authorization", "value": %q}]}`, `{"settings": [{"value": %q, "key": "DB_PASSWORD"}]}`, `{"passwordHash": %q}`,
}

// A resolved secret appears nowhere, however it is said.
func TestSecretsAreRedactedInEveryShape(t *testing.T) {
	t.Parallel()
	call := jobs.IntegrationCall{Type: "CUSTOM"}
	rapid.Check(t, func(t *rapid.T) {
		secret := "zz" + rapid.StringMatching(`[A-Za-z0-9_~.+-]{0,20}`).Draw(t, "secret") + "zz9"
		text := strings.Replace(rapid.SampledFrom(spoken).Draw(t, "said"), "%s", secret, 1)
		before := rapid.SampledFrom([]string{"", "it failed: ", "x=1 ", "url=", "\n"}).Draw(t, "before")
		text = before + text

		f := integration.ResponseMapper{}.Failure(&jobs.Failure{Message: text, StackTrace: "at x\n" + text, Details: said(text)})
		require.NotContains(t, f.Message+f.StackTrace+string(f.Details), secret)
		require.True(t, json.Valid(f.Details))
		got, err := integration.ResponseMapper{}.Output(call, said(text))
		require.NoError(t, err)
		require.NotContains(t, string(got), secret)

		member := fmt.Sprintf(rapid.SampledFrom(members).Draw(t, "member"), secret)
		got, err = integration.ResponseMapper{}.Output(call, json.RawMessage(member))
		require.NoError(t, err)
		require.NotContains(t, string(got), secret)
		f = integration.ResponseMapper{}.Failure(&jobs.Failure{Details: json.RawMessage(member)})
		require.NotContains(t, string(f.Details), secret)
	})
}

// said is a text as a member, in a list, and as a name.
func said(text string) json.RawMessage {
	out, _ := json.Marshal(map[string]any{"cause": text, "list": []any{1, text}, text: 1})
	return out
}

// What is no secret is left, to the byte.
func TestWhatIsNoSecretIsLeft(t *testing.T) {
	t.Parallel()
	for _, data := range []string{
		`{"token": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.sig", "nextPageToken": "p-2", "n": 1e2}`, `{"needsPassword": true, "credentialRef": "vault:books"}`,
		`{"url": "https://books.example/x?page=2", "mail": "a@example.com", "at": "2026-01-15T10:30:00Z"}`, `{"preauthorization": {"id": 7}}`,
		`{"text": "the password is too short", "file": "bWFueSBieXRlcw=="}`, `{"name": "colour", "value": "red"}`,
	} {
		got, err := integration.ResponseMapper{}.Output(jobs.IntegrationCall{Type: "CUSTOM"}, json.RawMessage(data))
		require.NoError(t, err)
		require.Equal(t, data, string(got))
	}
}
