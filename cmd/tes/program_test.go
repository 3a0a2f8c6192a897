package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// environ is the environment of a program under test: what the tests themselves
// were told about PostgreSQL binaries, and nothing else that begins with TES_.
func environ(more ...string) []string {
	var env []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "TES_") || strings.HasPrefix(name, "TES_PG_") && name != "TES_PG_PORT" {
			env = append(env, entry)
		}
	}
	return append(env, more...)
}

// output is what a program says, readable while it runs.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// program is a run of tes: inside this process, or as one of its own.
type program struct {
	stdout, stderr *output
	cmd            *exec.Cmd          // nil inside this process
	cancel         context.CancelFunc // inside this process: Ctrl-C
	done           chan struct{}      // closed when it has ended; code may be read then
	code           int
}

// start runs tes inside this process. It is stopped with the test.
func start(t *testing.T, env []string, args ...string) *program {
	t.Helper()
	saidBy(t)
	p := launch(env, args...)
	t.Cleanup(func() { p.end(t, args) })
	return p
}

func launch(env []string, args ...string) *program {
	ctx, cancel := context.WithCancel(context.Background())
	p := &program{stdout: &output{}, stderr: &output{}, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.code = run(ctx, args, env, p.stdout, p.stderr)
	}()
	return p
}

// startProcess runs tes as a process in a group of its own.
func startProcess(t *testing.T, env []string, args ...string) *program {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	return startBuild(t, exe, env, args...)
}

// startBuild does so with another build of tes.
func startBuild(t *testing.T, exe string, env []string, args ...string) *program {
	t.Helper()
	saidBy(t)
	theirs, ours, err := os.Pipe()
	require.NoError(t, err)
	p := &program{stdout: &output{}, stderr: &output{}, done: make(chan struct{})}
	p.cmd = exec.Command(exe, args...)
	p.cmd.Env = append(env, asTES+"="+leash)
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	p.cmd.ExtraFiles = []*os.File{theirs}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = 5 * time.Second
	require.NoError(t, p.cmd.Start())
	require.NoError(t, theirs.Close())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
		p.code = p.cmd.ProcessState.ExitCode()
		_ = ours.Close()
	}()
	t.Cleanup(func() { p.end(t, args) })
	return p
}

func (p *program) end(t *testing.T, args []string) {
	if p.cmd == nil {
		p.cancel()
	} else {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(20 * time.Second):
			_ = p.cmd.Process.Kill()
		}
	}
	<-p.done
	if t.Failed() {
		out, _, _ := strings.Cut(p.stdout.String(), "\nTokens, ")
		saidBy(t).add(fmt.Sprintf("tes %s ended with %d\n%s\n%s", strings.Join(args, " "), p.code, out, p.stderr))
	}
}

// signal sends a signal to the process's whole group, as a terminal does.
func (p *program) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	require.NoError(t, syscall.Kill(-p.cmd.Process.Pid, sig))
}

// wait waits for the end and returns the exit code.
func (p *program) wait(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		require.FailNow(t, "tes has not ended", "after %v\n%s\n%s", within, p.stdout, p.stderr)
	}
	return p.code
}

// stop is Ctrl-C on a program inside this process.
func (p *program) stop(t *testing.T) int {
	t.Helper()
	p.cancel()
	return p.wait(t, patience)
}

// tes runs a command that ends by itself.
func tes(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := launch(env, args...)
	t.Cleanup(func() { p.cancel(); <-p.done })
	code = p.wait(t, 2*time.Minute)
	return code, p.stdout.String(), p.stderr.String()
}

// canary stands in environments for every secret, and must never be said.
const canary = "canary-7d1f"

// says runs a command that must end with a code and say each of these on stderr.
func says(t *testing.T, code int, env, args []string, texts ...string) {
	t.Helper()
	got, stdout, stderr := tes(t, env, args...)
	require.Equal(t, code, got, "tes %q\n%s\n%s", args, stdout, stderr)
	require.Empty(t, stdout)
	for _, text := range texts {
		require.Contains(t, stderr, text, "tes %q", args)
	}
	require.NotContains(t, stderr, "goroutine ", "a stack is for nobody")
	require.NotContains(t, stderr, canary, "a secret")
}
