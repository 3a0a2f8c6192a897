package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/localpg"
	"github.com/seed-3f7a0631/tes/outbox/natsbus/natstest"
)

// asTES makes this test binary the program itself, main and all, so that tests
// have processes to signal and to kill without building anything.
const asTES = "RUN_AS_TES"

// leash as the value of asTES: descriptor 3 is a pipe from the test, and the
// program is killed when it closes, however the test ended.
const leash = "leash"

// instead of tes, such a process may be what a test compares it with, or uses it by.
const instead = "RUN_INSTEAD"

var instances = map[string]func() error{"worker": beWorker, "river": beRiver}

func TestMain(m *testing.M) {
	if how := os.Getenv(asTES); how != "" {
		if how == leash {
			syscall.CloseOnExec(3)
			go func() {
				_, _ = io.Copy(io.Discard, os.NewFile(3, "leash"))
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}()
		}
		if other := os.Getenv(instead); other != "" {
			if err := instances[other](); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(exitError)
			}
			os.Exit(exitOK)
		}
		main()
	}
	dbtest.Main(m, func() error {
		sabotagedDir.remove()
		client.CloseIdleConnections()
		http.DefaultClient.CloseIdleConnections()
		return goleak.Find(natstest.Leaks()...)
	})
}

// patience bounds every wait of a test. None is expected to last, but the
// machine may be busy with other packages' tests.
const patience = time.Minute

// serveWeb is a web service that is there until the test ends. Its connections are cut then:
// a handler that waits for the end of its request would keep Close waiting for a process that
// is stopped only later.
func serveWeb(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server
}

// eventually polls for what happens elsewhere in its own time, until check has
// nothing to say against it.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	if err := poll(t.Context(), within, check); err != nil {
		require.NoError(t, err)
	}
}

func poll(ctx context.Context, within time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("after %v: %w", within, err)
		}
	}
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

// openDir is a temporary directory that the account of PostgreSQL can reach too;
// t.TempDir's parent is ours alone.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

// dataDir is an empty data directory. Where binaries are downloaded, it shares
// them with all others.
func dataDir(t *testing.T) string {
	t.Helper()
	dir := openDir(t)
	if os.Getenv("TES_PG_SYSTEM") == "off" {
		base := os.Getenv("TES_DATA_DIR")
		if base == "" {
			var err error
			base, err = localpg.DefaultBaseDir()
			require.NoError(t, err)
		}
		require.NoError(t, os.MkdirAll(filepath.Join(base, "cache"), 0o755))
		require.NoError(t, os.Symlink(filepath.Join(base, "cache"), filepath.Join(dir, "cache")))
	}
	return dir
}

// processesOf lists the living processes, other than ours, that name a directory.
func processesOf(dir string) []string {
	var found []string
	add := func(pid int, command string) {
		if pid != os.Getpid() && strings.Contains(command, dir) {
			found = append(found, fmt.Sprintf("%d %s", pid, command))
		}
	}
	if runtime.GOOS == "linux" {
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range lines {
			text, _ := os.ReadFile(path)
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			add(pid, strings.ReplaceAll(string(text), "\x00", " "))
		}
		return found
	}
	out, _ := exec.Command("/bin/ps", "-axo", "pid=,command=").Output()
	for line := range strings.Lines(string(out)) {
		number, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		pid, _ := strconv.Atoi(number)
		add(pid, command)
	}
	return found
}

// nothingRuns demands that no process names the directory any more.
func nothingRuns(t *testing.T, dir string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if left := processesOf(dir); len(left) > 0 {
			return fmt.Errorf("still running: %q", left)
		}
		return nil
	})
}

// takenPort is an address that somebody listens on.
func takenPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

// nobodysPort is an address that nobody listens on.
func nobodysPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	return listener.Addr().String()
}

// client does not share its connections with the program under test.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}, Timeout: 30 * time.Second}

// object is JSON.
type object = map[string]any

// ask sends a request and answers the status, the body as JSON where it is, and
// the body.
func ask(ctx context.Context, method, url, token string, body any, headers ...string) (int, object, []byte, error) {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, nil, nil, err
		}
		reader = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, reader)
	if err != nil {
		return 0, nil, nil, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, nil, nil, err
	}
	var answer object
	_ = json.Unmarshal(text, &answer)
	return response.StatusCode, answer, text, nil
}

// must sends a request that has to be answered with a status.
func must(t *testing.T, status int, method, url, token string, body any, headers ...string) object {
	t.Helper()
	got, answer, text, err := ask(t.Context(), method, url, token, body, headers...)
	require.NoError(t, err)
	require.Equal(t, status, got, "%s %s: %s", method, url, text)
	return answer
}

const (
	tasksPath       = "/api/internal/tasks"
	definitionsPath = "/api/internal/task-definitions"
)

// noop is a request for a task that needs no definition.
func noop(workflow string) object {
	return object{
		"taskDefinitionId": "nothing", "workflowId": workflow, "taskType": "AUTOMATED", "input": object{},
		"executionConfig": object{"executor": "noop"},
	}
}

// reaches waits until a task has a status, and answers the task.
func reaches(t *testing.T, apiURL, token string, id any, status string) object {
	t.Helper()
	var task object
	eventually(t, patience, func() error {
		task = must(t, http.StatusOK, "GET", fmt.Sprintf("%s%s/%v", apiURL, tasksPath, id), token, nil)
		if task["status"] != status {
			return fmt.Errorf("task %v is %v, not %s: %v", id, task["status"], status, task["error"])
		}
		return nil
	})
	return task
}

// collect returns the rows of a statement.
func collect[T any](ctx context.Context, dsn string, read pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, read)
}

// number is the one number that a statement returns.
func number(t *testing.T, dsn, sql string, args ...any) int {
	t.Helper()
	rows, err := collect(t.Context(), dsn, pgx.RowTo[int], sql, args...)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	return rows[0]
}

// tree is every file under a directory with its mode and content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		text := ""
		if entry.Type().IsRegular() {
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(raw)
		}
		name, _ := filepath.Rel(dir, path)
		files[name] = fmt.Sprintf("%v %v %s", info.Mode(), info.ModTime(), text)
		return nil
	}))
	return files
}

// names lists what is in a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	var list []string
	for _, entry := range entries {
		list = append(list, entry.Name())
	}
	return list
}

// nothingIn waits until a directory is empty: what a killed process leaves is
// removed by somebody else.
func nothingIn(t *testing.T, dir string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if left := names(t, dir); len(left) > 0 {
			return fmt.Errorf("left in %s: %q", dir, left)
		}
		return nil
	})
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
