package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// readyFile is a place for a ready file.
func readyFile(t *testing.T) string { return filepath.Join(t.TempDir(), "ready.json") }

// devArgs is dev on ports of its own.
func devArgs(file string, more ...string) []string {
	return append([]string{"dev", "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0", "--ready-file", file}, more...)
}

// isReady waits for the ready file of a program. Nobody ever sees half of one.
func isReady(t *testing.T, p *program, file string) ready {
	t.Helper()
	r, err := awaitReady(t.Context(), p, file)
	require.NoError(t, err)
	return r
}

func awaitReady(ctx context.Context, p *program, file string) (r ready, err error) {
	var broken error
	err = poll(ctx, 2*time.Minute, func() error {
		select {
		case <-p.done:
			broken = fmt.Errorf("dev has ended with %d:\n%s", p.code, p.stderr)
			return nil
		default:
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("dev is not ready: %w\n%s", err, p.stderr)
		}
		if err := json.Unmarshal(text, &r); err != nil {
			broken = fmt.Errorf("half a ready file: %w: %s", err, text)
		}
		if p.cmd != nil && r.PID != p.cmd.Process.Pid {
			return fmt.Errorf("the ready file is that of process %d, who was killed", r.PID)
		}
		return nil
	})
	return r, errors.Join(err, broken)
}

// joinBus is a client of a dev's bus, in the way of any other program.
func joinBus(t *testing.T, url string) *natsbus.Bus {
	t.Helper()
	bus, err := natsbus.Open(t.Context(), natsbus.Config{URL: url, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = bus.Close(context.Background()) })
	return bus
}

// Everything that dev promises, from its first start to its second on the same
// directory.
func TestDev(t *testing.T) {
	t.Parallel()
	dir, file := dataDir(t), readyFile(t)
	p := start(t, environ(), devArgs(file, "--data-dir", dir)...)
	r := isReady(t, p, file)
	orchestrator := r.Tokens["workflow-orchestrator"]
	created := must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, noop("kept"), "Idempotency-Key", "first")
	reaches(t, r.APIURL, orchestrator, created["taskId"], "COMPLETED")
	key, err := os.ReadFile(r.SigningKeyFile)
	require.NoError(t, err)

	t.Run("the ready file", func(t *testing.T) { testReadyFile(t, dir, file, r) })
	t.Run("what it says can be used", func(t *testing.T) { testAddresses(t, r) })
	t.Run("the lines to try", func(t *testing.T) { testBanner(t, p.stdout.String(), r) })
	t.Run("fake peer services are steered", func(t *testing.T) { testSteering(t, r) })
	t.Run("a second one on the same directory", func(t *testing.T) {
		second := readyFile(t)
		says(t, exitError, environ(), devArgs(second, "--data-dir", dir), fmt.Sprintf("tes: %s is in use by process %d (tes dev)", dir, os.Getpid()))
		says(t, exitError, environ("TES_DATA_DIR="+dir), devArgs(second, "--reset"), fmt.Sprintf("%s is in use by process %d (tes dev)", dir, os.Getpid()))
		require.NoFileExists(t, second)
	})
	tasks := number(t, r.DatabaseURL, "SELECT count(*) FROM task")

	require.Equal(t, exitOK, p.stop(t), p.stderr)
	require.NoFileExists(t, file)
	require.Empty(t, names(t, filepath.Dir(file)))
	nothingRuns(t, dir)
	for line := range strings.Lines(p.stderr.String()) {
		require.Contains(t, line, "authentication error", "all that went wrong is the stranger on the bus")
	}

	// By the variable this time: it is the same directory.
	again := start(t, environ("TES_DATA_DIR="+dir), devArgs(file)...)
	r2 := isReady(t, again, file)
	require.Equal(t, tasks, number(t, r2.DatabaseURL, "SELECT count(*) FROM task"))
	require.Equal(t, r.SigningKeyFile, r2.SigningKeyFile)
	same, err := os.ReadFile(r2.SigningKeyFile)
	require.NoError(t, err)
	require.Equal(t, key, same)
	task := must(t, http.StatusOK, "GET", r2.APIURL+tasksPath+"/"+fmt.Sprint(created["taskId"]), orchestrator, nil)
	require.Equal(t, "COMPLETED", task["status"], "read with the token of before")
	must(t, http.StatusOK, "POST", r2.APIURL+tasksPath, orchestrator, noop("kept"), "Idempotency-Key", "first")
	listenTo(t, joinBus(t, r2.NATSURL)).waitFor(t, created["taskId"], outbox.SubjectCreated, outbox.SubjectStarted, outbox.SubjectCompleted)
	require.Equal(t, exitOK, again.stop(t), again.stderr)

	// And afresh, with nothing lost.
	fresh := start(t, environ(), devArgs(file, "--data-dir", dir, "--reset")...)
	r3 := isReady(t, fresh, file)
	require.Zero(t, number(t, r3.DatabaseURL, "SELECT count(*) FROM task"))
	must(t, http.StatusUnauthorized, "GET", r3.APIURL+tasksPath+"/workflow/kept", orchestrator, nil)
	require.Contains(t, fresh.stdout.String(), "The contents of "+dir+" are now in "+dir)
	require.Equal(t, exitOK, fresh.stop(t), fresh.stderr)
}

// keys are what scripts rely on, no more and no less.
var keys = []string{"apiUrl", "callbackSecret", "databaseUrl", "natsUrl", "neighboursUrl", "openapiUrl", "pid", "riverUiUrl", "signingKeyFile", "tokens"}

func testReadyFile(t *testing.T, dir, file string, r ready) {
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var members object
	require.NoError(t, json.Unmarshal(text, &members))
	require.Equal(t, keys, sortedKeys(members))
	require.Equal(t, []string{"error-handler", "monitoring-service", "task-worker", "ui-framework", "workflow-orchestrator"}, sortedKeys(r.Tokens))
	require.Equal(t, os.Getpid(), r.PID)
	require.Equal(t, filepath.Join(dir, "signing-key.pem"), r.SigningKeyFile)
	for name, scheme := range map[string]string{
		r.APIURL: "http", r.NeighboursURL: "http", r.RiverUIURL: "http", r.OpenAPIURL: "http", r.NATSURL: "nats", r.DatabaseURL: "postgres",
	} {
		u, err := url.Parse(name)
		require.NoError(t, err)
		require.Equal(t, scheme, u.Scheme)
		require.Equal(t, "127.0.0.1", u.Hostname(), name)
		require.NotEqual(t, "0", u.Port(), name)
	}
	require.Equal(t, r.APIURL+"/riverui/", r.RiverUIURL)
	require.Equal(t, r.APIURL+"/openapi.yaml", r.OpenAPIURL)

	// It holds tokens and a password: for its owner alone, and no half of one beside it.
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	require.Equal(t, []string{filepath.Base(file)}, names(t, filepath.Dir(file)))
	info, err = os.Stat(r.SigningKeyFile)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	signing, err := os.ReadFile(r.SigningKeyFile)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(signing), "-----BEGIN PRIVATE KEY-----\n"), "PKCS#8")
}

func testAddresses(t *testing.T, r ready) {
	get := func(url string) (*http.Response, string) {
		t.Helper()
		response, err := client.Get(url)
		require.NoError(t, err)
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, response.StatusCode, "%s: %s", url, text)
		return response, string(text)
	}
	response, page := get(r.RiverUIURL)
	require.Contains(t, response.Header.Get("Content-Type"), "text/html")
	require.Contains(t, page, "log in")
	must(t, http.StatusUnauthorized, "GET", r.RiverUIURL+"api/queues?limit=20", "", nil)
	queues := must(t, http.StatusOK, "GET", r.RiverUIURL+"api/queues?limit=20", r.Tokens["monitoring-service"], nil)
	require.Contains(t, fmt.Sprint(queues), "task-execution-automated")

	_, document := get(r.OpenAPIURL)
	code, printed, _ := tes(t, environ(), "openapi")
	require.Equal(t, exitOK, code)
	require.Equal(t, printed, document)

	_, jwks := get(r.NeighboursURL + "/.well-known/jwks.json")
	require.Contains(t, jwks, `"ES256"`)
	require.NotContains(t, jwks, `"d"`, "the private half")

	// The key makes tokens that are as good as the ready-made ones.
	code, made, _ := tes(t, environ(), "token", "--key", r.SigningKeyFile, "--service", "monitoring-service")
	require.Equal(t, exitOK, code)
	must(t, http.StatusOK, "GET", r.APIURL+tasksPath+"/metrics", strings.TrimSpace(made), nil)
	for caller, token := range r.Tokens {
		want := http.StatusForbidden
		if caller == "workflow-orchestrator" || caller == "ui-framework" {
			want = http.StatusOK
		}
		must(t, want, "GET", r.APIURL+tasksPath+"/workflow/kept", token, nil)
	}
	require.Equal(t, 1, number(t, r.DatabaseURL, "SELECT count(*) FROM report.task WHERE workflow_id = 'kept'"))

	// The bus keeps strangers out.
	u, err := url.Parse(r.NATSURL)
	require.NoError(t, err)
	u.User = nil
	_, err = natsbus.Open(t.Context(), natsbus.Config{URL: u.String(), Logger: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "the server refused our credentials")
}

// testBanner does what the banner tells a newcomer to do, as a shell would, and
// with curl itself where there is one.
func testBanner(t *testing.T, banner string, r ready) {
	for _, text := range []string{r.APIURL, r.OpenAPIURL, r.RiverUIURL, r.NATSURL, r.DatabaseURL, r.NeighboursURL, r.SigningKeyFile, "Ctrl-C stops it"} {
		require.Contains(t, banner, text)
	}
	for caller, token := range r.Tokens {
		require.Regexp(t, caller+` +[\w-]+\.[\w-]+\.[\w-]+\n`, banner)
		require.NotEmpty(t, token)
	}
	_, script, found := strings.Cut(banner, "\nTry:\n")
	require.True(t, found, banner)
	script, _, _ = strings.Cut(script, "\nStopping.")
	require.Equal(t, 3, strings.Count(script, "curl "))

	// The shell reads the lines; what it makes of each is asked from here.
	const spell = `curl() { for word in "$@"; do printf '%s\0' "$word"; done; printf '\n'; }` + "\n"
	said, err := exec.CommandContext(t.Context(), "sh", "-euc", spell+script).Output()
	require.NoError(t, err)
	var answers []string
	for line := range strings.Lines(string(said)) {
		answers = append(answers, curl(t, strings.Split(strings.TrimSuffix(line, "\x00\n"), "\x00")))
	}
	tried(t, answers, 1)

	if _, err := exec.LookPath("curl"); err == nil {
		command := exec.CommandContext(t.Context(), "sh", "-euc", strings.ReplaceAll(script, "curl -s", `printf '\0'; curl -s`))
		said, err := command.Output()
		require.NoError(t, err)
		tried(t, strings.Split(string(said), "\x00")[1:], 2)
	}
}

// curl is as much of curl as the banner needs.
func curl(t *testing.T, words []string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), "GET", "", nil)
	require.NoError(t, err)
	for i := 0; i < len(words); i++ {
		switch words[i] {
		case "-s":
		case "-H":
			i++
			name, value, _ := strings.Cut(words[i], ": ")
			request.Header.Set(name, value)
		case "-d":
			i++
			request.Method, request.Body = "POST", io.NopCloser(strings.NewReader(words[i]))
			request.ContentLength = int64(len(words[i]))
		default:
			request.URL, err = url.Parse(words[i])
			require.NoError(t, err)
		}
	}
	response, err := client.Do(request)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Less(t, response.StatusCode, 300, "%q: %s", words, text)
	return string(text)
}

// tried looks at what the three lines answered, the n-th time.
func tried(t *testing.T, answers []string, n int) {
	t.Helper()
	require.Len(t, answers, 3)
	var parsed [3]object
	for i, answer := range answers {
		require.NoError(t, json.Unmarshal([]byte(answer), &parsed[i]), answer)
	}
	require.Equal(t, "wf-1", parsed[0]["workflowId"], answers[0])
	items, _ := parsed[1]["items"].([]any)
	require.Len(t, items, n, answers[1])
	found := false
	for _, item := range items {
		found = found || item.(object)["taskId"] == parsed[0]["taskId"]
	}
	require.True(t, found, "the task that was made is listed: %s", answers[1])
	require.NotEmpty(t, parsed[2], answers[2])
	require.NotContains(t, parsed[2], "code", "no problem document: %s", answers[2])
}

func testSteering(t *testing.T, r ready) {
	orchestrator := r.Tokens["workflow-orchestrator"]
	steering := r.NeighboursURL + "/_standin/"
	must(t, http.StatusCreated, "PUT", r.APIURL+definitionsPath+"/invoice", orchestrator, object{
		"name": "Invoice", "type": "INTEGRATION", "version": "1.0.0", "retryPolicy": object{"maxRetries": 3, "retryInterval": 100},
		"executionConfig": object{"integration": object{"type": "REST", "method": "create_invoice", "instance": "xero"}},
	})
	invoice := func() object {
		t.Helper()
		return must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, object{
			"taskDefinitionId": "invoice", "workflowId": "steered", "input": object{"contact_id": "C-1"},
		})
	}

	steered := must(t, http.StatusOK, "PUT", steering+"integration", "", object{
		"mode": "error", "status": 503, "times": 2, "delayMs": 0,
		"body": object{"error": object{"code": "SERVICE_UNAVAILABLE", "message": "in the middle of a test"}, "retryable": true},
	})
	require.Equal(t, "error", steered["mode"])
	task := invoice()
	task = reaches(t, r.APIURL, orchestrator, task["taskId"], "COMPLETED")
	require.EqualValues(t, 2, task["retryCount"], "refused twice, then served")
	require.EqualValues(t, 3, task["attempt"])
	require.Equal(t, "ok", must(t, http.StatusOK, "GET", steering+"integration", "", nil)["mode"], "its times are over")

	must(t, http.StatusOK, "PUT", steering+"integration", "", object{"mode": "ok", "body": object{"status": "SUCCESS", "data": object{"from": "the test"}}})
	task = reaches(t, r.APIURL, orchestrator, invoice()["taskId"], "COMPLETED")
	require.Equal(t, object{"from": "the test"}, task["output"])
	must(t, http.StatusOK, "PUT", steering+"integration", "", object{"mode": "ok"})

	status, _, text, err := ask(t.Context(), "GET", steering+"integration/requests", "", nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	var requests []peertest.Request
	require.NoError(t, json.Unmarshal(text, &requests))
	require.Len(t, requests, 4)
	require.Equal(t, "/api/integrations/xero/invoke", requests[0].Path)

	for _, service := range peertest.Services {
		require.Equal(t, "ok", must(t, http.StatusOK, "GET", steering+service, "", nil)["mode"])
	}
	must(t, http.StatusNotFound, "PUT", steering+"nobody", "", object{"mode": "ok"})
	must(t, http.StatusBadRequest, "PUT", steering+"auth", "", object{"mode": "drunk"})
}

// With a database of somebody else's there is no server to start or to stop.
func TestDevOnAnExternalDatabase(t *testing.T) {
	t.Parallel()
	dsn := dbtest.URL(dbtest.New(t))
	temp, dir, file := openDir(t), filepath.Join(t.TempDir(), "new"), readyFile(t)
	p := startProcess(t, environ("TES_DATABASE_URL="+dsn, "TMPDIR="+temp), devArgs(file, "--ephemeral")...)
	r := isReady(t, p, file)
	require.Equal(t, dsn, r.DatabaseURL)
	orchestrator := r.Tokens["workflow-orchestrator"]
	created := must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, noop("w"))
	reaches(t, r.APIURL, orchestrator, created["taskId"], "COMPLETED")
	p.signal(t, syscall.SIGINT)
	require.Equal(t, exitOK, p.wait(t, 15*time.Second), p.stderr)
	require.Empty(t, names(t, temp))
	require.Equal(t, 1, number(t, dsn, "SELECT count(*) FROM task"), "the data is not ours to remove")

	// The keys stay with the data directory, and so do the tokens. This time the bus
	// is somebody else's too.
	bus, err := natsbus.Open(t.Context(), natsbus.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", NoSync: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bus.Close(context.Background())) })
	h := listenTo(t, bus)
	var kept string
	exe, err := os.Executable()
	require.NoError(t, err)
	for range 2 {
		args := append([]string{"-c", `umask 077; exec "$0" "$@"`, exe}, devArgs(file, "--data-dir", dir)...)
		p := startBuild(t, "/bin/sh", environ("TES_DATABASE_URL="+dsn, "TES_NATS_URL="+bus.ClientURL()), args...)
		r := isReady(t, p, file)
		if kept == "" {
			kept = r.Tokens["workflow-orchestrator"]
		}
		require.Equal(t, bus.ClientURL(), r.NATSURL)
		created := must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, kept, noop("w"))
		h.waitFor(t, created["taskId"], outbox.SubjectCreated, outbox.SubjectStarted, outbox.SubjectCompleted)
		p.signal(t, syscall.SIGINT)
		require.Equal(t, exitOK, p.wait(t, patience), p.stderr)
	}
	require.Equal(t, []string{"callback-secret", "signing-key.pem"}, names(t, dir))

	// A private PostgreSQL of another account may be kept here later, whatever the umask was.
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), info.Mode().Perm())
}
