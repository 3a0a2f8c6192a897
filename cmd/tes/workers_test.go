package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// workersDir is where the documents' workers are.
const workersDir = "../../docs/workers"

// longestWorker in lines: what anyone can write in any language is short.
const longestWorker = 120

// forWorkers is a task that is left to workers.
func forWorkers(input object) object {
	return object{
		"taskDefinitionId": "render-report", "workflowId": "workers", "taskType": "AUTOMATED", "input": input,
		"executionConfig": object{"executor": "worker", "visibilityTimeout": 1000, "timeout": 120_000},
	}
}

// workers are the documents', and how each is run.
func workers(t *testing.T) map[string]*exec.Cmd {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "worker")
	if runtime.GOOS == "windows" {
		binary += ".exe"
	}
	built, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./"+workersDir+"/go").CombinedOutput()
	require.NoError(t, err, "%s", built)
	return map[string]*exec.Cmd{
		"go/main.go": exec.CommandContext(t.Context(), binary),
		"worker.py":  exec.CommandContext(t.Context(), "python3", workersDir+"/worker.py", "render-report"),
		"worker.sh":  exec.CommandContext(t.Context(), "sh", workersDir+"/worker.sh", "render-report"),
	}
}

// runWorker starts a worker and returns what it prints, and a way to end it.
func runWorker(t *testing.T, cmd *exec.Cmd, id string, r ready) (printed *output, end func(os.Signal)) {
	t.Helper()
	cmd.Env = append(os.Environ(), "TES_TOKEN="+r.Tokens["task-worker"])
	return runWorkerAt(t, cmd, id, r.APIURL)
}

// runWorkerAt does the same with an environment that has a token already.
func runWorkerAt(t *testing.T, cmd *exec.Cmd, id, url string) (printed *output, end func(os.Signal)) {
	t.Helper()
	printed = &output{}
	cmd.Env = append(cmd.Env, "TES_URL="+url, "WORKER_ID="+id)
	cmd.Stdout, cmd.Stderr = printed, printed
	cmd.WaitDelay = 10 * time.Second
	require.NoError(t, cmd.Start(), "the documents' workers need python3, sh and curl")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stopped := false
	end = func(sig os.Signal) {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Signal(sig)
		select {
		case <-ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			t.Errorf("worker %s did not stop:\n%s", id, printed)
		}
	}
	t.Cleanup(func() { end(os.Kill) })
	return printed, end
}

// Every worker of the documents takes a task, does it, and stops when asked.
func TestDocumentedWorkers(t *testing.T) {
	t.Parallel()
	file := readyFile(t)
	p := start(t, environ(), devArgs(file, "--ephemeral")...)
	r := isReady(t, p, file)
	orchestrator := r.Tokens["workflow-orchestrator"]
	for name, cmd := range workers(t) {
		text, err := os.ReadFile(filepath.Join(workersDir, name))
		require.NoError(t, err)
		require.Less(t, strings.Count(string(text), "\n"), longestWorker, name)

		printed, end := runWorker(t, cmd, name, r)
		for range 2 {
			ask := forWorkers(object{"pages": 2})
			ask["executionConfig"].(object)["visibilityTimeout"] = 30_000 // a busy machine is no lost lease
			created := must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, ask)
			task := reaches(t, r.APIURL, orchestrator, created["taskId"], "COMPLETED")
			require.Equal(t, name, task["output"].(object)["by"], printed)
			require.EqualValues(t, 1, task["attempt"])
		}
		end(syscall.SIGTERM)
	}
	require.Zero(t, number(t, r.DatabaseURL, "SELECT count(*) FROM lease"))
	require.Equal(t, exitOK, p.stop(t), p.stderr)
}

// A worker is killed in the middle of a task: its lease runs out, and another goes
// on where it had come to.
func TestKilledWorker(t *testing.T) {
	t.Parallel()
	file := readyFile(t)
	p := start(t, environ(), devArgs(file, "--ephemeral")...)
	r := isReady(t, p, file)
	orchestrator := r.Tokens["workflow-orchestrator"]
	created := must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, forWorkers(object{"pages": 3, "secondsPerPage": 2}))
	python := func() *exec.Cmd { return exec.CommandContext(t.Context(), "python3", workersDir+"/worker.py") }
	_, kill := runWorker(t, python(), "first", r)
	eventually(t, patience, func() error {
		if number(t, r.DatabaseURL, "SELECT count(*) FROM task_checkpoint") == 0 {
			return errors.New("the first worker noted nothing down")
		}
		return nil
	})
	path := fmt.Sprintf("%s%s/%s", r.APIURL, tasksPath, created["taskId"])
	runs := func(who string) error { // as whoever asks why is told, and as River UI shows it
		attempt := map[string]int{"first": 1, "second": 2}[who]
		why := must(t, http.StatusOK, "GET", path+"/why", orchestrator, nil)
		if says := fmt.Sprintf("%s has run attempt %d since ", who, attempt); !strings.HasPrefix(fmt.Sprint(why["detail"]), says) {
			return fmt.Errorf("why: %v", why)
		}
		job := number(t, r.DatabaseURL, "SELECT job_id::integer FROM task_attempt WHERE attempt = $1", attempt)
		shown := must(t, http.StatusOK, "GET", fmt.Sprintf("%sapi/jobs/%d", r.RiverUIURL, job), orchestrator, nil)
		require.Equal(t, "running", shown["state"])
		require.Contains(t, shown["args"], created["taskId"])
		return nil
	}
	require.NoError(t, runs("first"))
	kill(os.Kill)
	at := time.Now()
	printed, stop := runWorker(t, python(), "second", r)
	eventually(t, patience, func() error { return runs("second") })
	task := reaches(t, r.APIURL, orchestrator, created["taskId"], "COMPLETED")
	require.Equal(t, "second", task["output"].(object)["by"], printed)
	require.EqualValues(t, 2, task["attempt"])
	require.Less(t, time.Since(at), patience)
	attempts := must(t, http.StatusOK, "GET", fmt.Sprintf("%s%s/%s/attempts", r.APIURL, tasksPath, created["taskId"]), orchestrator, nil)["items"].([]any)
	require.Equal(t, "LEASE_EXPIRED", attempts[0].(object)["outcome"])
	require.Equal(t, "first", attempts[0].(object)["executorId"])
	require.Equal(t, "second", attempts[1].(object)["executorId"])
	why := must(t, http.StatusOK, "GET", path+"/why", orchestrator, nil)
	require.Contains(t, why["detail"], "COMPLETED since ")
	for attempt, state := range map[int]string{1: "discarded", 2: "completed"} {
		job := number(t, r.DatabaseURL, "SELECT job_id::integer FROM task_attempt WHERE attempt = $1", attempt)
		shown := must(t, http.StatusOK, "GET", fmt.Sprintf("%sapi/jobs/%d", r.RiverUIURL, job), orchestrator, nil)
		require.Equal(t, state, shown["state"], shown)
	}
	stop(syscall.SIGTERM)
	require.Equal(t, exitOK, p.stop(t), p.stderr)
}

// A worker is stopped beyond its lease, and wakes: another has done the task, and
// nothing that the first has to say changes anything.
func TestStoppedWorker(t *testing.T) {
	t.Parallel()
	file := readyFile(t)
	p := start(t, environ(), devArgs(file, "--ephemeral")...)
	r := isReady(t, p, file)
	orchestrator := r.Tokens["workflow-orchestrator"]
	created := must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, forWorkers(object{"pages": 4, "secondsPerPage": 2}))
	python := func() *exec.Cmd { return exec.CommandContext(t.Context(), "python3", workersDir+"/worker.py") }
	first := python()
	printed, end := runWorker(t, first, "first", r)
	eventually(t, patience, func() error {
		if number(t, r.DatabaseURL, "SELECT count(*) FROM task_checkpoint") == 0 {
			return errors.New("the first worker noted nothing down")
		}
		return nil
	})
	require.NoError(t, first.Process.Signal(syscall.SIGSTOP))
	_, stop := runWorker(t, python(), "second", r)
	task := reaches(t, r.APIURL, orchestrator, created["taskId"], "COMPLETED")
	require.Equal(t, "second", task["output"].(object)["by"])
	stop(syscall.SIGTERM)

	require.NoError(t, first.Process.Signal(syscall.SIGCONT))
	// It is alive, has dropped what it had, and takes the next.
	next := must(t, http.StatusCreated, "POST", r.APIURL+tasksPath, orchestrator, forWorkers(object{"pages": 1}))
	require.Equal(t, "first", reaches(t, r.APIURL, orchestrator, next["taskId"], "COMPLETED")["output"].(object)["by"])
	require.NotContains(t, printed.String(), fmt.Sprint(created["taskId"]), "it did not even try")
	require.Equal(t, task, must(t, http.StatusOK, "GET", fmt.Sprintf("%s%s/%s", r.APIURL, tasksPath, created["taskId"]), orchestrator, nil))
	end(syscall.SIGTERM)
	require.Equal(t, exitOK, p.stop(t), p.stderr)
}
