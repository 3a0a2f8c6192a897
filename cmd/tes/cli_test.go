package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// commands are all there are.
var commands = []string{
	"dev", "demo", "serve", "migrate", "migrate up", "migrate down", "migrate status", "check", "bench", "healthcheck", "neighbours", "token", "openapi", "asyncapi", "version", "with-postgres",
}

// flagLine is a flag in a help text, and what is said of it on the same line.
var flagLine = regexp.MustCompile(`^\s+(?:-\w, )?--[a-z-]+(?:[=\[]\S+)?\s*(.*)$`)

func TestHelp(t *testing.T) {
	t.Parallel()
	// Help needs no environment, and is not kept back by a wrong one.
	env := []string{"TES_NO_SUCH=1"}
	code, top, stderr := tes(t, env)
	require.Equal(t, exitOK, code)
	require.Empty(t, stderr)
	for _, text := range []string{"Usage: tes <command>", "New here? Run: tes demo"} {
		require.Contains(t, top, text)
	}
	for _, flag := range []string{"--help", "-h"} {
		code, stdout, _ := tes(t, env, flag)
		require.Equal(t, exitOK, code)
		require.Equal(t, top, stdout)
	}

	listed := 0
	for line := range strings.Lines(top) {
		if m := regexp.MustCompile(`^  ([a-z-]+( [a-z]+)?)  +[A-Z]`).FindStringSubmatch(line); m != nil {
			require.Contains(t, commands, m[1], "a command without a test of its help")
			listed++
		}
	}
	require.Equal(t, len(commands)-1, listed, "all but migrate itself, which is a group:\n%s", top)

	for _, command := range commands {
		code, stdout, stderr := tes(t, env, append(strings.Fields(command), "--help")...)
		require.Equal(t, exitOK, code, command)
		require.Empty(t, stderr, command)
		require.True(t, strings.HasPrefix(stdout, "Usage: tes "+command), stdout)
		require.NotContains(t, stdout, "TES_NO_SUCH")
		lines := strings.Split(stdout, "\n")
		for i, line := range lines { // every flag says what it does, here or on the next line
			if m := flagLine.FindStringSubmatch(line); m != nil && m[1] == "" {
				require.Regexp(t, `^\s{10,}\w`, lines[i+1], "tes %s: %s", command, line)
			}
		}
	}

	_, serve, _ := tes(t, nil, "serve", "--help")
	for _, name := range variables() {
		require.Contains(t, serve, name+" ")
	}
	_, dev, _ := tes(t, nil, "dev", "--help")
	for _, flag := range []string{"--data-dir=DIR", "--ephemeral", "--http=HOST:PORT", "--nats=HOST:PORT", "--ready-file=FILE"} {
		require.Contains(t, dev, flag)
	}
}

func TestMistakesOnTheCommandLine(t *testing.T) {
	t.Parallel()
	for line, texts := range map[string][]string{
		"nosuch":                   {"nosuch", "try: tes --help"},
		"nosuch --help":            {"nosuch"},
		"--nosuch":                 {"unknown flag --nosuch", "try: tes --help"},
		"dev --nosuch":             {"unknown flag --nosuch", "try: tes dev --help"},
		"dev extra":                {"unexpected argument extra"},
		"dev --http":               {"--http"},
		"dev --ephemeral=maybe":    {"maybe"},
		"demo --jsno":              {"--jsno", "--json"},
		"serve 127.0.0.1:0":        {"unexpected argument 127.0.0.1:0"},
		"migrate":                  {`expected one of "up", "down", "status"`, "try: tes migrate --help"},
		"migrate sideways":         {"sideways", "try: tes migrate --help"},
		"migrate up --yes":         {"unknown flag --yes"},
		"check --grace 0s":         {"--grace must be more than 0"},
		"check --timeout 0s":       {"--timeout must be more than 0"},
		"check --ledger /no/such":  {"--ledger", "/no/such", "no such file"},
		"check --since yesterday":  {"--since", "yesterday"},
		"token":                    {"missing flags: --key=FILE", "try: tes token --help"},
		"token --key /no/such":     {"--key", "/no/such", "no such file"},
		"token --key /tmp":         {"--key", "/tmp"},
		"healthcheck --url ::":     {"--url: "},
		"neighbours --http zork":   {`--http: "zork" is not HOST:PORT`},
		"neighbours --key /no/key": {"--key", "/no/key", "no such file"},
		"dev --http zork":          {`--http: "zork" is not HOST:PORT`},
		"dev --nats zork":          {`--nats: "zork" is not HOST:PORT`},
		"dev --nats 127.0.0.1:x":   {`--nats: "127.0.0.1:x" is not HOST:PORT`},
		"openapi --yaml":           {"unknown flag --yaml"},
		"version --json extra":     {"unexpected argument extra"},
		"with-postgres":            {"try: tes with-postgres --help"},
		"with-postgres --":         {"tes with-postgres -- go test ./..."},
		"dev --data-dir x --eph":   {"unknown flag --eph"},
		"dev --data-dir= --reset=": {"--reset"},
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			says(t, exitUsage, environ(), strings.Fields(line), texts...)
		})
	}
}

// A variable that is wrong stops every command that would go by it.
func TestMistakesInTheEnvironment(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"dev --ephemeral", "demo", "serve", "migrate status", "check", "bench", "version", "with-postgres -- true"} {
		says(t, exitUsage, environ("TES_DATABSE_URL=postgres://u:"+canary+"@h/d"), strings.Fields(command),
			"tes: unknown variable TES_DATABSE_URL (did you mean TES_DATABASE_URL?)")
	}
	for entry, text := range map[string]string{
		"TES_PG_VERSION=14":          "tes: TES_PG_VERSION=14: it must be one of 15, 16, 17, 18",
		"TES_PG_BIN=/no%such":        "tes: TES_PG_BIN=/no%such: it must hold postgres and initdb",
		"TES_PG_USER=nosuch-account": "tes: TES_PG_USER=nosuch-account: ",
		"TES_HTTP=zork":              "tes: TES_HTTP: ",
		"TES_DATABASE_URL=postgres://u:" + canary + "@h:x/d": "tes: TES_DATABASE_URL: ",
	} {
		says(t, exitUsage, environ(entry), []string{"dev", "--ephemeral", "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0"}, text)
	}
	says(t, exitUsage, environ("TES_NOTHING_LIKE_IT=1"), []string{"version"}, "tes: unknown variable TES_NOTHING_LIKE_IT (tes serve --help lists them)")
	says(t, exitUsage, environ("TES_PG_PORT=http", "TES_LOG_LEVEL=loud"), []string{"dev"}, "TES_PG_PORT", "TES_LOG_LEVEL")
	says(t, exitUsage, environ("TES_SERVICE_TOKEN_FILE=/no/such"), []string{"serve"}, "TES_SERVICE_TOKEN_FILE: open /no/such")
}

func TestVersion(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := tes(t, environ(), "version")
	require.Equal(t, exitOK, code)
	require.Empty(t, stderr)
	require.Equal(t, fmt.Sprintf("tes %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH), stdout)

	code, stdout, _ = tes(t, environ(), "version", "--json")
	require.Equal(t, exitOK, code)
	var got map[string]string
	require.NoError(t, json.Unmarshal([]byte(stdout), &got))
	require.Equal(t, map[string]string{"version": version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}, got)
	require.NotEmpty(t, got["version"])
}

func TestOpenAPIIsTheOneInTheTree(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := tes(t, environ(), "openapi")
	require.Equal(t, exitOK, code)
	require.Empty(t, stderr)
	tree, err := os.ReadFile(filepath.Join("..", "..", "api", "openapi.yaml"))
	require.NoError(t, err)
	require.Equal(t, string(tree), stdout, "make generate prints it anew")
}

// writeKey puts a private key into a file as PEM.
func writeKey(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "key.pem")
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	return path
}

// What token prints is what a service that trusts the key believes.
func TestToken(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	file := writeKey(t, key)
	peers, err := peertest.Start(peertest.Config{Key: key})
	require.NoError(t, err)
	t.Cleanup(func() { _ = peers.Close(t.Context()) })
	verifier, err := auth.NewVerifier(auth.Config{JWKS: peers.URL() + "/.well-known/jwks.json", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(verifier.Close)

	token := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := tes(t, environ(), append([]string{"token", "--key", file}, args...)...)
		require.Equal(t, exitOK, code, stderr)
		require.Empty(t, stderr)
		require.Regexp(t, `^[\w-]+\.[\w-]+\.[\w-]+\n$`, stdout, "the token alone, for a variable")
		return strings.TrimSpace(stdout)
	}
	verify := func(token string) *auth.Caller {
		t.Helper()
		caller, err := verifier.Verify(t.Context(), token)
		require.NoError(t, err)
		return caller
	}

	caller := verify(token())
	require.Equal(t, "workflow-orchestrator", caller.Name)
	require.Empty(t, caller.Tenant)
	require.True(t, caller.Holds("tasks:create"))
	require.False(t, caller.Holds("tasks:metrics"))
	for _, name := range callers {
		require.Equal(t, name, verify(token("--service", name)).Name)
	}
	caller = verify(token("--service", "monitoring-service", "--scope", "tasks:read", "--scope", "tasks:work", "--tenant", "acme"))
	require.Equal(t, "acme", caller.Tenant)
	require.True(t, caller.Holds("tasks:read") && caller.Holds("tasks:work"))
	require.False(t, caller.Holds("tasks:metrics"))
	_, err = verifier.Verify(t.Context(), token("--ttl=-5m"))
	require.Error(t, err, "expired")
	says(t, exitUsage, environ(), []string{"token", "--key", file, "--scope", "tasks:fly"}, `--scope: "tasks:fly" is none of tasks:create, `)

	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	file = writeKey(t, other)
	_, err = verifier.Verify(t.Context(), token())
	require.Error(t, err, "another key")
}

func TestTokenOfNoKey(t *testing.T) {
	t.Parallel()
	wrong, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	file := writeKey(t, wrong)
	says(t, exitError, environ(), []string{"token", "--key", file}, "tes: "+file+": parse key: not an EC key on P-256")
	require.NoError(t, os.WriteFile(file, []byte("no key at all"), 0o600))
	says(t, exitError, environ(), []string{"token", "--key", file}, "tes: "+file+": parse key: no private key in PEM")
	says(t, exitUsage, environ(), []string{"token", "--key", file, "--ttl", "soon"}, "--ttl", "soon")
	says(t, exitUsage, environ(), []string{"token", "--key", file, "--service", "zork"}, `tes: --service: "zork" is none of workflow-orchestrator, `)
}

// lent is the directory of the cluster in a connection string that with-postgres
// has handed out.
func lent(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	dir := filepath.Dir(u.Query().Get("host"))
	require.True(t, filepath.IsAbs(dir), dsn)
	return dir
}

// What with-postgres lends can be used, the command ends as its child did, and
// nothing of it is left.
func TestWithPostgres(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	require.NoError(t, err)
	const script = `echo "$TES_TEST_DATABASE_URL"; unset TES_TEST_DATABASE_URL
		RUN_AS_TES=1 TES_DATABASE_URL=$0 "$1" migrate up; exit 7`
	code, stdout, stderr := tes(t, environ(), "with-postgres", "--", "sh", "-c",
		`exec sh -c '`+script+`' "$TES_TEST_DATABASE_URL" "$0"`, exe)
	require.Equal(t, 7, code, stderr)
	require.Empty(t, stderr)
	dsn, rest, _ := strings.Cut(stdout, "\n")
	require.Equal(t, "The schema is up to date.\n", rest)
	dir := lent(t, dsn)
	nothingRuns(t, dir)
	require.NoDirExists(t, dir)

	code, stdout, stderr = tes(t, environ(), "with-postgres", "--", "/no/such/command")
	require.Equal(t, exitError, code)
	require.Empty(t, stdout)
	require.Contains(t, stderr, "/no/such/command")
}

// Ctrl-C reaches the child first; its server is there until it has ended.
func TestWithPostgresInterrupted(t *testing.T) {
	t.Parallel()
	p := startProcess(t, environ(), "with-postgres", "--", "sh", "-c", `echo "$TES_TEST_DATABASE_URL"; exec sleep 600`)
	eventually(t, patience, func() error {
		if !strings.Contains(p.stdout.String(), "\n") {
			return errors.New("the child says nothing")
		}
		return nil
	})
	dir := lent(t, strings.TrimSpace(p.stdout.String()))
	require.NotEmpty(t, processesOf(dir))
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM)) // to us alone, as a supervisor does
	require.Equal(t, 128+int(syscall.SIGINT), p.wait(t, 15*time.Second), p.stderr)
	nothingRuns(t, dir)
	require.NoDirExists(t, dir)
}
