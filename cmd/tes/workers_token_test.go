package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// moodyDoor stands before a server: it takes the tokens "old", until that is over, and
// "new", and may be away.
type moodyDoor struct {
	url         string
	over, away  atomic.Bool
	refused     atomic.Int64 // calls whose token is over
	turnedAway  atomic.Int64 // calls while the server is away
	leasesGiven atomic.Int64
}

func openDoor(t *testing.T, r ready) *moodyDoor {
	t.Helper()
	d := &moodyDoor{}
	to, err := url.Parse(r.APIURL)
	require.NoError(t, err)
	behind := httputil.NewSingleHostReverseProxy(to)
	behind.ModifyResponse = func(answer *http.Response) error {
		if answer.Request.URL.Path == "/api/internal/leases" {
			text, err := io.ReadAll(answer.Body)
			answer.Body = io.NopCloser(strings.NewReader(string(text)))
			if strings.Contains(string(text), "leaseToken") {
				d.leasesGiven.Add(1)
			}
			return err
		}
		return nil
	}
	d.url = serveWeb(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		token := req.Header.Get("Authorization")
		switch {
		case d.away.Load() && req.URL.Path != "/api/internal/leases":
			d.turnedAway.Add(1)
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		case token == "Bearer old" && d.over.Load():
			d.refused.Add(1)
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"title": "Unauthorized", "status": 401}`)
			return
		case token != "Bearer old" && token != "Bearer new":
			w.WriteHeader(http.StatusTeapot)
			return
		}
		req.Header.Set("Authorization", "Bearer "+r.Tokens["task-worker"])
		behind.ServeHTTP(w, req)
	})).URL
	return d
}

// A token that is over is no lost lease: the worker reads its file again, and goes on with
// the task that it holds, and with the next ones.
func TestWorkersRenewTheirTokens(t *testing.T) {
	t.Parallel()
	file := readyFile(t)
	p := start(t, environ(), devArgs(file, "--ephemeral")...)
	r := isReady(t, p, file)
	orchestrator := r.Tokens["workflow-orchestrator"]
	for name, cmd := range workers(t) {
		d := openDoor(t, r)
		tokens := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(tokens, []byte("old\n"), 0o600))
		cmd.Env = append(os.Environ(), "TES_TOKEN_FILE="+tokens)
		input := object{"pages": 4, "secondsPerPage": 1}
		printed, end := runWorkerAt(t, cmd, name, d.url)
		created := must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, forWorkers(input))
		if name != "worker.py" { // these are done at once: their token is over between two tasks
			reaches(t, r.APIURL, orchestrator, created["taskId"], "COMPLETED")
			d.over.Store(true)
			created = must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, forWorkers(input))
		} else {
			eventually(t, patience, func() error {
				if d.leasesGiven.Load() == 0 {
					return errors.New("it has taken nothing")
				}
				return nil
			})
			d.over.Store(true)
		}
		eventually(t, patience, func() error {
			if d.refused.Load() == 0 {
				return errors.New("no call was refused")
			}
			return nil
		})
		require.NoError(t, os.WriteFile(tokens, []byte("new\n"), 0o600))
		task := reaches(t, r.APIURL, orchestrator, created["taskId"], "COMPLETED")
		require.Equal(t, name, task["output"].(object)["by"], printed)
		end(syscall.SIGTERM)
	}
	require.Equal(t, exitOK, p.stop(t), p.stderr)
}

// A worker that is told to stop while the server is away stops.
func TestWorkersStopWhileTheServerIsAway(t *testing.T) {
	t.Parallel()
	file := readyFile(t)
	p := start(t, environ(), devArgs(file, "--ephemeral")...)
	r := isReady(t, p, file)
	for name, cmd := range workers(t) {
		d := openDoor(t, r)
		d.away.Store(true)
		cmd.Env = append(os.Environ(), "TES_TOKEN=old")
		_, end := runWorkerAt(t, cmd, name, d.url)
		must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, r.Tokens["workflow-orchestrator"], forWorkers(object{"pages": 1}))
		eventually(t, patience, func() error {
			if d.turnedAway.Load() == 0 {
				return errors.New("it has taken nothing")
			}
			return nil
		})
		end(syscall.SIGTERM)
	}
	require.Equal(t, exitOK, p.stop(t), p.stderr)
}
