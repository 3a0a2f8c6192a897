package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/certtest"
	"github.com/seed-3f7a0631/tes/outbox/webhook"
)

// hungUp are the lines that a process has written of SIGHUPs.
func hungUp(p *program) (lines []string) {
	for line := range strings.Lines(p.stderr.String()) {
		if strings.Contains(line, `"msg":"SIGHUP: `) {
			lines = append(lines, line)
		}
	}
	return lines
}

// hangUp sends SIGHUP and answers what the process says of it.
func hangUp(t *testing.T, p *program) string {
	t.Helper()
	before := len(hungUp(p))
	p.signal(t, syscall.SIGHUP)
	var line string
	eventually(t, patience, func() error {
		lines := hungUp(p)
		if len(lines) == before {
			return fmt.Errorf("it says nothing of the signal\n%s", p.stderr)
		}
		line = lines[before]
		return nil
	})
	return line
}

// SIGHUP under load: what may be read again is, and named; what may not is named too; nobody
// is turned away, and the process goes on.
func TestHangupReloadsAndDropsNothing(t *testing.T) {
	t.Parallel()
	b := setupServe(t, false)
	ca, dir := certtest.NewCA(t, "one"), openDir(t)
	file := func(name string, text []byte) string { return certtest.Write(t, dir, name, text) }
	first, second := ca.Issue("tes", "127.0.0.1"), ca.Issue("tes", "127.0.0.1")
	env := append(b.env, "TES_TLS_CERT="+file("cert", first.Cert), "TES_TLS_KEY="+file("key", first.Key), "TES_SERVICE_TOKEN_FILE="+file("token", []byte("one\n")),
		"TES_CALLBACK_SECRET_FILE="+file("callbacks", []byte(webhook.NewSecret())), "TES_LOG_LEVEL_FILE="+file("level", []byte("info\n")),
		"TES_MANUAL_DUE_FILE="+file("due", []byte("24h")))
	p := startProcess(t, env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")

	body, err := json.Marshal(noop("load"))
	require.NoError(t, err)
	var made atomic.Int64
	var enough atomic.Bool
	var mu sync.Mutex
	var odd []string
	var clients sync.WaitGroup
	load := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}, MaxIdleConnsPerHost: 4}, Timeout: patience}
	defer load.CloseIdleConnections()
	create := func() error {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, api+tasksPath, bytes.NewReader(body))
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+orchestrator)
		request.Header.Set("Content-Type", "application/json")
		response, err := load.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if text, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusCreated {
			return fmt.Errorf("%d %s", response.StatusCode, text)
		}
		return nil
	}
	for range 4 {
		clients.Go(func() {
			for !enough.Load() {
				if err := create(); err != nil {
					mu.Lock()
					odd = append(odd, err.Error())
					mu.Unlock()
					return
				}
				made.Add(1)
			}
		})
	}
	more := func() { // requests were answered since
		t.Helper()
		from := made.Load()
		eventually(t, patience, func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(odd) == 0 && made.Load() < from+20 {
				return errors.New("no more requests are answered")
			}
			return nil
		})
	}
	more()
	require.Contains(t, hangUp(t, p), `"changed":null,"unchanged":["TES_TLS_CERT","TES_SERVICE_TOKEN_FILE","TES_CALLBACK_SECRET_FILE","TES_LOG_LEVEL_FILE"]`)
	more()

	file("key", second.Key)
	file("level", []byte("debug"))
	file("due", []byte("48h"))
	line := hangUp(t, p)
	require.Contains(t, line, `"level":"ERROR"`)
	require.Contains(t, line, "TES_TLS_KEY: the key in ")
	require.Contains(t, line, `"TES_LOG_LEVEL_FILE"`)
	require.Contains(t, line, `"needRestart":["TES_MANUAL_DUE_FILE"]`)
	more()

	file("cert", second.Cert)
	file("token", []byte(canary))
	line = hangUp(t, p)
	require.Contains(t, line, `"level":"INFO"`)
	more()
	_, serial, err := get(t, tlsClient(t, &tls.Config{RootCAs: ca.Pool()}), api+"/livez")
	require.NoError(t, err)
	require.Equal(t, second.Serial(t), serial)

	file("level", []byte("loud"))
	require.Contains(t, hangUp(t, p), `TES_LOG_LEVEL: \"loud\" is none of`)
	more()

	enough.Store(true)
	clients.Wait()
	require.Empty(t, odd)
	require.Equal(t, int(made.Load()), number(t, b.dsn, "SELECT count(*) FROM task"))
	require.NotContains(t, p.stderr.String(), canary)
	p.signal(t, syscall.SIGTERM)
	require.Equal(t, exitOK, p.wait(t, patience), p.stderr)
	require.Contains(t, p.stderr.String(), `"level":"DEBUG"`)
}

// A service token is renewed in its file: the next request to a peer service carries the new one,
// without a restart or a signal. What no token can be is passed over.
func TestServiceTokenIsRenewed(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	to, err := url.Parse(b.peers.URL())
	require.NoError(t, err)
	var mu sync.Mutex
	var carried []string
	proxy := httputil.NewSingleHostReverseProxy(to)
	between := serveWeb(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		carried = append(carried, r.Header.Get("Authorization"))
		mu.Unlock()
		proxy.ServeHTTP(w, r)
	}))
	dir := t.TempDir()
	env := append(b.env, "TES_INTEGRATION_URL="+between.URL, "TES_SERVICE_TOKEN_FILE="+certtest.Write(t, dir, "token", []byte("first\n")))
	p := start(t, env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")
	must(t, http.StatusCreated, "PUT", api+definitionsPath+"/mail", orchestrator, object{
		"name": "Mail", "type": "INTEGRATION", "version": "1.0.0",
		"executionConfig": object{"integration": object{"type": "REST", "method": "send_email", "instance": "mail", "async": true}},
	})
	carries := func() string { // a request that begins now
		created := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{
			"taskDefinitionId": "mail", "workflowId": "w", "input": object{"to": "a@example.com"},
		})
		reaches(t, api, orchestrator, created["taskId"], "COMPLETED")
		mu.Lock()
		defer mu.Unlock()
		return carried[len(carried)-1]
	}
	require.Equal(t, "Bearer first", carries())

	certtest.Write(t, dir, "token", []byte("second\n"))
	eventually(t, patience, func() error {
		if got := carries(); got != "Bearer second" {
			return fmt.Errorf("it carries %s", got)
		}
		return nil
	})
	certtest.Write(t, dir, "token", []byte("\n"))
	eventually(t, patience, func() error {
		require.Equal(t, "Bearer second", carries())
		if !strings.Contains(p.stderr.String(), "TES_SERVICE_TOKEN_FILE: the file is empty") {
			return errors.New("it does not say that the file is empty")
		}
		return nil
	})
	require.Equal(t, exitOK, p.stop(t))
	require.NotContains(t, p.stderr.String(), "second")
}

// Callbacks are signed with what stands in the file when they are posted.
func TestCallbackSecretsAreRenewed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old, young := webhook.NewSecret(), webhook.NewSecret()
	cfg, err := readConfig([]string{"TES_CALLBACK_SECRET_FILE=" + certtest.Write(t, dir, "secret", []byte(old))})
	require.NoError(t, err)
	log := &output{}
	files, err := cfg.watchFiles(logger(&cmdContext{stderr: log}, 0, "json"))
	require.NoError(t, err)
	s := &service{cfg: cfg, files: files}
	require.Len(t, s.callbackSecrets(), 1)
	certtest.Write(t, dir, "secret", []byte(young+" "+old))
	eventually(t, patience, func() error {
		if n := len(s.callbackSecrets()); n != 2 {
			return fmt.Errorf("%d sign", n)
		}
		return nil
	})
	certtest.Write(t, dir, "secret", []byte(canary))
	changed, err := files.callbacks.look()
	require.ErrorContains(t, err, "TES_CALLBACK_SECRET_FILE: secret 1 is not whsec_")
	require.False(t, changed)
	require.Len(t, s.callbackSecrets(), 2)
	require.NotContains(t, log.String(), canary)

	// What cannot be read twice is read once: nobody waits for ever at a pipe.
	pipe := dir + "/pipe"
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(pipe, []byte(old), 0o600) }()
	cfg, err = readConfig([]string{"TES_CALLBACK_SECRET_FILE=" + pipe})
	require.NoError(t, err)
	require.NoError(t, <-wrote)
	files, err = cfg.watchFiles(logger(&cmdContext{stderr: log}, 0, "json"))
	require.NoError(t, err)
	require.Nil(t, files.callbacks)
	require.Len(t, (&service{cfg: cfg, files: files}).callbackSecrets(), 1)
}

// However many ask, files are read once a second at most, and nobody waits for who reads.
func TestWatchedFilesAreReadSeldom(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := certtest.Write(t, dir, "file", []byte("a"))
	var parsed atomic.Int64
	w, err := newWatched(logger(&cmdContext{stderr: &output{}}, 0, "json"), "TES_X", []string{path}, func(texts [][]byte) (string, error) {
		parsed.Add(1)
		return string(texts[0]), nil
	})
	require.NoError(t, err)
	certtest.Write(t, dir, "file", []byte("b"))
	w.looking.Lock()
	w.looked.Store(time.Now().Add(-time.Hour).UnixNano())
	require.Equal(t, "a", w.get(), "somebody else reads")
	w.looking.Unlock()
	w.looked.Store(time.Now().Add(time.Hour).UnixNano())
	require.Equal(t, "a", w.get(), "they were read a moment ago")
	w.looked.Store(time.Now().Add(-time.Hour).UnixNano())
	require.Equal(t, "b", w.get())
	changed, err := w.look()
	require.NoError(t, err)
	require.False(t, changed)
	require.EqualValues(t, 2, parsed.Load(), "the same content is parsed again")
}
