package automated

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
)

// secretsDir is a directory with the secrets of the platform and of two tenants.
func secretsDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, value := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(value), 0o600))
	}
	return dir
}

// referring is a job of the owner's definition (nil for none) with one header by reference.
func referring(url string, owner *string, name string) jobs.Job {
	job := httpJob(jobs.HTTPCall{URL: url, Headers: map[string]jobs.HeaderValue{"X-Api-Key": {SecretRef: name}}})
	job.Owner = owner
	return job
}

func TestSecretsAreTheOwnersAlone(t *testing.T) {
	t.Parallel()
	dir := secretsDir(t, map[string]string{
		"shared": "of-the-platform\n", "platform": "platform-file", "tenants/acme/key": "of-acme", "tenants/acme/shared": "acme-shared\r\n",
		"tenants/mallory/own": "of-mallory", "tenants/a%2Fb/key": "of-a-slash-b", "tenants/%2E%2E/key": "of-dots",
		"empty": "\n", "huge": strings.Repeat("x", longestSecret+1), "dir/file": "x",
	})
	require.NoError(t, os.Symlink("../acme/key", filepath.Join(dir, "tenants/mallory/theirs")))
	require.NoError(t, os.Symlink(filepath.Join(dir, "platform"), filepath.Join(dir, "tenants/mallory/absolute")))
	require.NoError(t, os.Symlink("../../platform", filepath.Join(dir, "tenants/mallory/up")))
	require.NoError(t, os.Symlink("own", filepath.Join(dir, "tenants/mallory/again")))
	require.NoError(t, os.Symlink("acme", filepath.Join(dir, "tenants/eve")))
	require.NoError(t, os.Symlink("/etc/hostname", filepath.Join(dir, "outside")))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	s := Secrets{Dir: dir, Env: map[string]string{"FROM_ENV": "of-the-environment", "PLATFORM": "environment-platform", "EMPTY": "environment-empty"}}

	for _, tt := range []struct {
		tenant, name string
		want         string
		err          error
	}{
		{"", "shared", "of-the-platform", nil},
		{"", "from.env", "of-the-environment", nil},
		{"", "From-Env", "of-the-environment", nil},
		{"", "platform", "platform-file", nil}, // the file goes before the environment
		{"", "empty", "", errBadSecret},        // and a broken one is not passed over
		{"", "nothing", "", errNoSecret},
		{"", "tenants", "", errBadSecret},
		{"", "dir", "", errBadSecret},
		{"", "pipe", "", errBadSecret},
		{"", "huge", "", errBadSecret},
		{"", "outside", "", errBadSecret},
		{"", "tenants/acme/key", "", errSecretName},
		{"", "..", "", errSecretName},
		{"", ".", "", errSecretName},
		{"", "", "", errSecretName},
		{"", "a\x00", "", errSecretName},
		{"", strings.Repeat("x", 129), "", errSecretName},
		{"acme", "key", "of-acme", nil},
		{"acme", "shared", "acme-shared", nil},
		{"acme", "platform", "", errNoSecret}, // the platform's is not a tenant's
		{"acme", "from.env", "", errNoSecret},
		{"acme", "own", "", errNoSecret},
		{"mallory", "own", "of-mallory", nil},
		{"mallory", "again", "of-mallory", nil}, // as Kubernetes mounts are made
		{"mallory", "key", "", errNoSecret},
		{"mallory", "theirs", "", errBadSecret},
		{"mallory", "absolute", "", errBadSecret},
		{"mallory", "up", "", errBadSecret},
		{"mallory", "../acme/key", "", errSecretName},
		{"eve", "key", "", errBadSecret},
		{"nobody", "key", "", errNoSecret},
		{"../tenants/acme", "key", "", errNoSecret},
		{"acme/", "key", "", errNoSecret},
		{"acme/.", "key", "", errNoSecret},
		{".", "key", "", errNoSecret},
		{"..", "key", "", errNoSecret}, // %2E., not the directory above
		{"a/b", "key", "of-a-slash-b", nil},
		{"a%2Fb", "key", "", errNoSecret},
		{"acme\x00", "key", "", errNoSecret},
		{strings.Repeat("é", 256), "key", "", errBadSecret}, // too long for a file's name
	} {
		got, err := s.lookup(tt.tenant, tt.name)
		require.Equal(t, tt.want, got, "%q %q", tt.tenant, tt.name)
		require.Equal(t, tt.err, err, "%q %q", tt.tenant, tt.name)
	}
	_, err := Secrets{}.lookup("", "shared")
	require.ErrorIs(t, err, errNoSecret)
	_, err = Secrets{Dir: filepath.Join(dir, "gone")}.lookup("acme", "key")
	require.ErrorIs(t, err, errNoSecret)
}

func TestTenantsShareNoDirectory(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, tenant := range []string{"acme", "ACME", "a/b", "a%2Fb", "a%2fb", ".", "..", "%2E", "%2E.", "a b", "a\tb", "a\\b", "é", "e\u0301", "a.", ".a", "", "CON"} {
		dir := tenantDir(tenant)
		require.Empty(t, seen[dir], "%q", tenant)
		require.NotContains(t, dir, "/")
		require.NotContains(t, []string{".", ".."}, dir)
		seen[dir] = tenant + "!"
	}
}

func TestHTTPSendsSecretsByReference(t *testing.T) {
	t.Parallel()
	dir := secretsDir(t, map[string]string{"key": "platform-secret", "tenants/acme/key": "acme-secret-1"})
	got := make(chan string, 1)
	b := setupHTTP(t, HTTPConfig{Secrets: Secrets{Dir: dir}}, func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get("X-Api-Key")
		fmt.Fprint(w, `{}`)
	})
	acme, nobody := "acme", ""
	send := func(owner *string) string {
		_, err := b.open.Execute(t.Context(), referring(b.URL, owner, "key"))
		require.NoError(t, err)
		return <-got
	}
	require.Equal(t, "acme-secret-1", send(&acme))
	require.Equal(t, "platform-secret", send(&nobody))

	// The next attempt has the next value, without a restart.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tenants/acme/key.new"), []byte("acme-secret-2"), 0o600))
	require.NoError(t, os.Rename(filepath.Join(dir, "tenants/acme/key.new"), filepath.Join(dir, "tenants/acme/key")))
	require.Equal(t, "acme-secret-2", send(&acme))

	visits := b.visits.Load()
	for _, tt := range []struct {
		owner     *string
		name      string
		retryable bool
		says      string
	}{
		{&acme, "missing", true, `the secret "missing" is not there`},
		{nil, "key", false, "only a registered definition"},
	} {
		_, err := b.open.Execute(t.Context(), referring(b.URL, tt.owner, tt.name))
		requireFailure(t, err, CodeSecret, tt.retryable)
		require.ErrorContains(t, err, tt.says)
		require.NotContains(t, err.Error(), dir)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "key"), []byte("two\r\nX-Forged: 1"), 0o600))
	_, err := b.open.Execute(t.Context(), referring(b.URL, &nobody, "key"))
	requireFailure(t, err, "HTTP_REQUEST_INVALID", false)
	require.NotContains(t, err.Error(), "Forged")
	require.Equal(t, visits, b.visits.Load(), "no request without its secret")
}

// A server may repeat what it was sent, in whatever form.
func TestHTTPOutputsDoNotRepeatSecrets(t *testing.T) {
	t.Parallel()
	const secret = `p"w/d<é>-123456`
	dir := secretsDir(t, map[string]string{"key": secret, "number": "31415926535", "short": "ab"})
	answers := map[string]struct{ body, want string }{
		"String":  {`{"you sent": "` + strings.ReplaceAll(secret, `"`, `\"`) + `", "n": 1.50}`, `{"n":1.50,"you sent":"[redacted]"}`},
		"Escaped": {`{"a": ["x p\"w\/d\u003c\u00e9\u003e-\u0031\u003234\u00356 y"]}`, `{"a":["x [redacted] y"]}`},
		"Name":    {`{"31415926535": true}`, `{"[redacted]":true}`},
		"Number":  {`{"a": 31415926535}`, `{"a":"[redacted]"}`},
		"Text":    {"you sent " + secret, `{"body":"you sent [redacted]","status":200}`},
		"Literal": {`{"token": "Bearer literal-text", "bare": "literal-text"}`, `{"bare":"[redacted]","token":"[redacted]"}`},
		"Short":   {`{"a": "ab"}`, `{"a": "ab"}`},
		"Public":  {`{"a": "public-text"}`, `{"a": "public-text"}`},
	}
	b := setupHTTP(t, HTTPConfig{Secrets: Secrets{Dir: dir}}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, answers[r.URL.Query().Get("case")].body)
	})
	nobody := ""
	for name, tt := range answers {
		job := httpJob(jobs.HTTPCall{URL: b.URL + "/?case=" + name, Headers: map[string]jobs.HeaderValue{
			"X-A": {SecretRef: "key"}, "X-B": {SecretRef: "number"}, "X-C": {SecretRef: "short"},
			"Authorization": {Text: "Bearer literal-text"}, "X-Public": {Text: "public-text"},
		}})
		job.Owner = &nobody
		result, err := b.open.Execute(t.Context(), job)
		require.NoError(t, err, name)
		require.Equal(t, tt.want, string(result.Output), name)
		require.True(t, json.Valid(result.Output), name)
	}
}
