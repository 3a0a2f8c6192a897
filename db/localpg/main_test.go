package localpg

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// helperVariable makes this test binary a program that starts a cluster, so that
// tests have somebody to kill.
const helperVariable = "LOCALPG_TEST_HELPER"

func TestMain(m *testing.M) {
	// The strictest umask there is: what the account must reach has to be made
	// reachable on purpose.
	syscall.Umask(0o077)
	if spec := os.Getenv(helperVariable); spec != "" {
		os.Exit(help(spec))
	}
	goleak.VerifyTestMain(m)
}

// helperSpec is what a test tells its helper.
type helperSpec struct {
	DataDir   string
	TmpDir    string
	Throwaway bool
	PipeGuard bool   // as if this were not Linux
	Hold      string // a stage at which to wait for ever
}

// helperReport is what the helper says when it is ready, or at its stage.
type helperReport struct {
	URL, Dir, Sockets, Error string
	PID                      int // of postgres
}

func help(text string) int {
	var spec helperSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		panic(err)
	}
	signal.Ignore(syscall.SIGINT) // Ctrl-C is the group's affair
	cfg := configFromEnv()
	cfg.DataDir, cfg.Throwaway, cfg.Unsafe, cfg.Owner = spec.DataDir, spec.Throwaway, true, "helper"
	m := thisMachine()
	m.tmpDir = spec.TmpDir
	m.pipeGuard = m.pipeGuard || spec.PipeGuard
	say := func(r helperReport) { _ = json.NewEncoder(os.Stdout).Encode(r) }
	m.at = func(stage string) {
		if stage == spec.Hold {
			say(helperReport{})
			select {}
		}
	}
	c, err := start(context.Background(), cfg, m)
	if err != nil {
		say(helperReport{Error: err.Error()})
		return 1
	}
	say(helperReport{URL: c.URL(), Dir: c.Dir(), Sockets: c.place.sockets, PID: c.server.pid})
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := c.Stop(context.Background()); err != nil {
		panic(err)
	}
	return 0
}

// helper is such a program.
type helper struct {
	helperReport
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

func startHelper(t *testing.T, spec helperSpec, env ...string) *helper {
	t.Helper()
	text, err := json.Marshal(spec)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), env...), helperVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	h := &helper{cmd: cmd, stdin: stdin}
	t.Cleanup(h.kill)
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	require.NoError(t, err, "the helper said nothing")
	require.NoError(t, json.Unmarshal(line, &h.helperReport))
	return h
}

// kill is kill -9. It may be called again.
func (h *helper) kill() {
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
}

// leave lets it stop its cluster.
func (h *helper) leave(t *testing.T) {
	t.Helper()
	require.NoError(t, h.stdin.Close())
	require.NoError(t, h.cmd.Wait())
}

// configFromEnv lets the whole suite run on other binaries, as cmd/tes would.
func configFromEnv() Config {
	base, err := DefaultBaseDir()
	if err != nil {
		panic(err)
	}
	return Config{
		CacheDir:   filepath.Join(base, "cache"), // one download is enough
		BinDir:     os.Getenv("TES_PG_BIN"),
		Version:    os.Getenv("TES_PG_VERSION"),
		User:       os.Getenv("TES_PG_USER"),
		Mirror:     os.Getenv("TES_PG_MIRROR"),
		NoSystem:   os.Getenv("TES_PG_SYSTEM") == "off",
		NoDownload: os.Getenv("TES_PG_DOWNLOAD") == "off",
		Unsafe:     true,
	}
}

// testBundle is one machine with room for clusters of its own.
type testBundle struct {
	*machine
	cfg Config // durable, in an empty directory
	acc account
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	t.Parallel()
	b := &testBundle{machine: thisMachine(), cfg: configFromEnv()}
	b.tmpDir = openDir(t)
	b.cfg.DataDir = openDir(t)
	b.cfg.Owner = "test"
	b.cfg.Logf = t.Logf
	var err error
	b.acc, err = b.account(b.cfg.User)
	require.NoError(t, err)
	t.Cleanup(func() { b.nothingLeft(t) })
	return b
}

// start starts a cluster that is stopped with the test.
func (b *testBundle) start(t *testing.T) *Cluster {
	t.Helper()
	c, err := start(t.Context(), b.cfg, b.machine)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop(context.Background())) })
	return c
}

func (b *testBundle) startError(t *testing.T) string {
	t.Helper()
	c, err := start(t.Context(), b.cfg, b.machine)
	if err == nil {
		require.NoError(t, c.Stop(context.Background()))
	}
	require.Error(t, err)
	return err.Error()
}

// nothingLeft is said at the end of every test: no process, no temporary directory.
func (b *testBundle) nothingLeft(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		for _, dir := range []string{b.cfg.DataDir, b.tmpDir} {
			if left := processesOf(dir); len(left) > 0 {
				return fmt.Errorf("processes are left: %q", left)
			}
		}
		if left, _ := os.ReadDir(b.tmpDir); len(left) > 0 {
			return fmt.Errorf("left in TMPDIR: %v", left)
		}
		if b.cfg.DataDir != "" {
			if _, err := os.Stat(shortSockets(b.cfg.DataDir)); err == nil {
				return fmt.Errorf("left: %s", shortSockets(b.cfg.DataDir))
			}
		}
		return nil
	})
}

// openDir is a temporary directory that every account can reach; t.TempDir's parent
// is ours alone.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

// eventually polls, for what other processes do in their own time.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			require.NoError(t, err)
		}
	}
}

// processesOf lists the living processes that name a directory. The guard, which
// names it too, is one of them.
func processesOf(dir string) []string {
	var found []string
	add := func(pid int, command string) {
		if pid != os.Getpid() && strings.Contains(command, dir+"/") && !strings.Contains(command, helperVariable) {
			found = append(found, fmt.Sprintf("%d %s", pid, command))
		}
	}
	if runtime.GOOS == "linux" {
		entries, _ := os.ReadDir("/proc")
		for _, entry := range entries {
			if pid, err := strconv.Atoi(entry.Name()); err == nil {
				add(pid, commandLine(pid))
			}
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

// sharedMemoryOf says whether a process has left a segment of System V shared
// memory. Only Linux lets us look.
func sharedMemoryOf(t *testing.T, pid int) bool {
	t.Helper()
	if runtime.GOOS != "linux" {
		return false
	}
	text, err := os.ReadFile("/proc/sysvipc/shm")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == strconv.Itoa(pid) { // cpid
			return true
		}
	}
	return false
}

func query[T any](t *testing.T, dsn, sql string) T {
	t.Helper()
	conn, err := connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), sql)
	require.NoError(t, err)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(t, err)
	return value
}

func execute(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), sql)
	require.NoError(t, err)
}
