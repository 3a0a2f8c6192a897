package main

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Ctrl-C on a terminal reaches the whole group. Everything ends in order, and
// nothing is left but what was to be kept.
func TestDevCtrlC(t *testing.T) {
	t.Parallel()
	temp, dir, file := openDir(t), dataDir(t), readyFile(t)
	for _, c := range []struct {
		name   string
		args   []string
		signal syscall.Signal
		hang   bool
	}{
		{"durable", []string{"--data-dir", dir}, syscall.SIGINT, true},
		{"ephemeral", []string{"--ephemeral"}, syscall.SIGTERM, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := startProcess(t, environ("TMPDIR="+temp), devArgs(file, c.args...)...)
			r := isReady(t, p, file)
			require.Equal(t, p.cmd.Process.Pid, r.PID)
			orchestrator := r.Tokens["workflow-orchestrator"]
			for range 20 {
				must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, noop("w"))
			}
			if c.hang {
				hang(t, r)
			}
			home := filepath.Dir(r.SigningKeyFile)
			require.NotEmpty(t, processesOf(home), "its PostgreSQL")
			if c.name == "ephemeral" {
				require.True(t, strings.HasPrefix(home, temp+"/"), home)
			}

			p.signal(t, c.signal)
			require.Equal(t, exitOK, p.wait(t, 15*time.Second), p.stderr)
			if !c.hang {
				require.Empty(t, p.stderr.String())
			}
			require.True(t, strings.HasSuffix(p.stdout.String(), "\nStopping.\n"), p.stdout)
			require.NoFileExists(t, file)
			nothingRuns(t, home)
			require.Empty(t, names(t, temp))
		})
	}
	require.DirExists(t, filepath.Join(dir, "pg"))
	require.NoFileExists(t, filepath.Join(dir, "pg", "postmaster.pid"), "PostgreSQL was stopped cleanly")
}

// hang begins a task whose peer service does not answer. A stop hands it back.
func hang(t *testing.T, r ready) {
	t.Helper()
	orchestrator := r.Tokens["workflow-orchestrator"]
	must(t, http.StatusOK, "PUT", r.NeighboursURL+"/_standin/integration", "", object{"mode": "hang"})
	must(t, http.StatusCreated, "PUT", r.APIURL+definitionsPath+"/hangs", orchestrator, object{
		"name": "Hangs", "type": "INTEGRATION", "version": "1.0.0",
		"executionConfig": object{"integration": object{"type": "REST", "method": "wait", "instance": "slow"}},
	})
	created := must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, object{
		"taskDefinitionId": "hangs", "workflowId": "w", "input": object{},
	})
	reaches(t, r.APIURL, orchestrator, created["taskId"], "RUNNING")
}

// Who has no patience with the task that hangs says it twice, and even so nothing
// is left.
func TestDevCtrlCTwice(t *testing.T) {
	t.Parallel()
	temp, file := openDir(t), readyFile(t)
	p := startProcess(t, environ("TMPDIR="+temp), devArgs(file, "--ephemeral")...)
	hang(t, isReady(t, p, file))
	p.signal(t, syscall.SIGINT)
	eventually(t, patience, func() error {
		if !strings.HasSuffix(p.stdout.String(), "\nStopping.\n") {
			return errors.New("it does not stop")
		}
		return nil
	})
	p.signal(t, syscall.SIGINT)
	require.Equal(t, -1, p.wait(t, 5*time.Second), "ended by the signal")
	nothingRuns(t, temp)
	nothingIn(t, temp)
}

// Ctrl-C does not have to wait until all is there.
func TestDevCtrlCWhileItStarts(t *testing.T) {
	t.Parallel()
	for _, stage := range []string{"lock", "pg.new-*", "postgres.log", "nats"} {
		t.Run(stage, func(t *testing.T) {
			dir, file := dataDir(t), readyFile(t)
			p := startProcess(t, environ(), devArgs(file, "--data-dir", dir)...)
			eventually(t, patience, func() error {
				if found, _ := filepath.Glob(filepath.Join(dir, stage)); len(found) == 0 {
					return errors.New("it has not come to " + stage)
				}
				return nil
			})
			p.signal(t, syscall.SIGINT)
			code := p.wait(t, 15*time.Second)
			if code != exitOK { // it may have been quicker than the signal
				require.Equal(t, exitError, code)
				require.Contains(t, p.stderr.String(), "interrupt signal received")
			}
			require.NotContains(t, p.stderr.String(), "goroutine ")
			require.NoFileExists(t, file)
			nothingRuns(t, dir)
			left, err := filepath.Glob(filepath.Join(dir, "pg.*"))
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// postmaster is the process of a data directory's PostgreSQL.
func postmaster(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "pg", "postmaster.pid"))
	require.NoError(t, err)
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	require.NoError(t, err)
	return pid
}

// When its PostgreSQL dies, dev says so and ends: nobody is served by half of it.
func TestDevWhosePostgresDies(t *testing.T) {
	t.Parallel()
	dir, file := dataDir(t), readyFile(t)
	p := startProcess(t, environ(), devArgs(file, "--data-dir", dir)...)
	isReady(t, p, file)
	require.NoError(t, syscall.Kill(postmaster(t, dir), syscall.SIGQUIT))
	require.Equal(t, exitError, p.wait(t, patience))
	require.Contains(t, p.stderr.String(), "PostgreSQL ended")
	require.NoFileExists(t, file)
	nothingRuns(t, dir)
}
