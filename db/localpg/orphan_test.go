package localpg

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Pitfall: nothing may be left when our process is killed: no server, no shared
// memory, and of a throw-away cluster no directory.
func TestKilledProcessLeavesNothing(t *testing.T) {
	for _, throwaway := range []bool{false, true} {
		for _, pipeGuard := range []bool{false, true} { // true is how macOS does it
			t.Run(fmt.Sprintf("throwaway=%v/guard=%v", throwaway, pipeGuard), func(t *testing.T) {
				b := setup(t)
				h := startHelper(t, helperSpec{DataDir: b.cfg.DataDir, TmpDir: b.tmpDir, Throwaway: throwaway, PipeGuard: pipeGuard})
				require.Empty(t, h.Error)
				require.Equal(t, 1, query[int](t, h.URL, "SELECT 1"))
				if !throwaway {
					execute(t, h.URL, "CREATE TABLE kept AS SELECT 42 AS answer")
				}

				h.kill()
				eventually(t, func() error {
					if isPostgresOf(h.PID, filepath.Join(h.Dir, "pg")) {
						return fmt.Errorf("postgres is alive")
					}
					return nil
				})
				require.False(t, sharedMemoryOf(t, h.PID))
				if throwaway {
					b.nothingLeft(t)
					return
				}
				c := b.start(t)
				require.Equal(t, 42, query[int](t, c.URL(), "SELECT answer FROM kept"))
			})
		}
	}
}

// Pitfall: a cluster that was killed in initdb must not be taken for one.
func TestHalfMadeClusterIsMadeAgain(t *testing.T) {
	for _, throwaway := range []bool{false, true} {
		t.Run(fmt.Sprintf("throwaway=%v", throwaway), func(t *testing.T) {
			b := setup(t)
			h := startHelper(t, helperSpec{DataDir: b.cfg.DataDir, TmpDir: b.tmpDir, Throwaway: throwaway, Hold: stageInitdb})
			require.Empty(t, h.Error)
			h.kill()
			b.cfg.Throwaway = throwaway
			c := b.start(t)
			require.Equal(t, 1, query[int](t, c.URL(), "SELECT 1"))
			left, err := filepath.Glob(filepath.Join(b.cfg.DataDir, "pg.*"))
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

func TestThrowawayOfADeadProcessIsSwept(t *testing.T) {
	b := setup(t)
	b.cfg.Throwaway = true
	c := b.start(t)
	mine := c.Dir()
	require.NoError(t, c.Stop(t.Context()))

	// As if even the guard had been killed: a directory and a lock nobody holds.
	parent := filepath.Dir(mine)
	require.NoError(t, os.Mkdir(parent, 0o700))
	dead := filepath.Join(parent, "c-dead")
	require.NoError(t, os.MkdirAll(filepath.Join(dead, "pg"), 0o700))
	require.NoError(t, os.WriteFile(dead+".lock", []byte("1 dead\n"), 0o600))
	living := filepath.Join(parent, "c-living")
	require.NoError(t, os.Mkdir(living, 0o700))
	held, err := takeLock(living+".lock", "living")
	require.NoError(t, err)
	if b.acc.drop {
		require.NoError(t, os.Chmod(parent, 0o711))
	}

	c = b.start(t)
	require.NoDirExists(t, dead)
	require.NoFileExists(t, dead+".lock")
	require.DirExists(t, living)
	require.NoError(t, os.Remove(living))
	held.remove()
	require.NoError(t, c.Stop(t.Context()))
}

func TestDirectoryThatOthersCanWriteIsNotUsed(t *testing.T) {
	b := setup(t)
	b.cfg.Throwaway = true
	trap := filepath.Join(b.tmpDir, "tespg-"+strconv.Itoa(b.euid))
	require.NoError(t, os.Mkdir(trap, 0o700))
	require.NoError(t, os.Chmod(trap, 0o777))
	require.Contains(t, b.startError(t), trap+" is not a directory that only we can write")
	require.NoError(t, os.Remove(trap))
	require.NoError(t, os.Symlink("/tmp", trap))
	require.Contains(t, b.startError(t), trap+" is not a directory that only we can write")
	require.NoError(t, os.Remove(trap))
}

// asAccount runs a program as the account that postgres would have. It ends when
// its input does.
func (b *testBundle) asAccount(t *testing.T, name string, args ...string) (*exec.Cmd, io.Closer) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.Env = childEnv(filepath.Dir(name))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.acc.credential()}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return cmd, stdin
}

// stopped is a durable cluster that has been used and is at rest.
func (b *testBundle) stopped(t *testing.T) *Cluster {
	t.Helper()
	c := b.start(t)
	execute(t, c.URL(), "CREATE TABLE kept AS SELECT 42 AS answer")
	require.NoError(t, c.Stop(t.Context()))
	return c
}

// writePID leaves a postmaster.pid as a killed postmaster would.
func (b *testBundle) writePID(t *testing.T, c *Cluster, pid int) {
	t.Helper()
	path := filepath.Join(c.place.data, "postmaster.pid")
	text := fmt.Sprintf("%d\n%s\n%d\n%d\n%s\n127.0.0.1\n", pid, c.place.data, time.Now().Unix(), c.port, c.place.sockets)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	require.NoError(t, b.give(path, b.acc))
}

// Pitfall: postmaster.pid names a process that is alive and another program;
// postgres would refuse.
func TestStalePIDOfAnotherProgram(t *testing.T) {
	b := setup(t)
	c := b.stopped(t)
	foreign, stdin := b.asAccount(t, "/bin/sh", "-c", "read forever")
	b.writePID(t, c, foreign.Process.Pid)

	again := b.start(t)
	require.Equal(t, 42, query[int](t, again.URL(), "SELECT answer FROM kept"))
	require.NoError(t, syscall.Kill(foreign.Process.Pid, 0), "it is nobody's business")
	require.NoError(t, stdin.Close())
	_ = foreign.Wait()
}

// Pitfall: a process that has ended and that nobody waits for, as in a container
// without an init, still has its pid.
func TestStalePIDOfAZombie(t *testing.T) {
	b := setup(t)
	c := b.stopped(t)
	zombie, stdin := b.asAccount(t, "/bin/sh", "-c", "read forever")
	require.NoError(t, stdin.Close())
	eventually(t, func() error {
		if commandLine(zombie.Process.Pid) != "" {
			return fmt.Errorf("it is alive")
		}
		return nil
	})
	require.True(t, alive(zombie.Process.Pid))
	b.writePID(t, c, zombie.Process.Pid)

	require.Equal(t, 42, query[int](t, b.start(t).URL(), "SELECT answer FROM kept"))
	_ = zombie.Wait()
}

func TestStalePIDOfNobody(t *testing.T) {
	b := setup(t)
	c := b.stopped(t)
	gone, stdin := b.asAccount(t, "/bin/sh", "-c", "read forever")
	require.NoError(t, stdin.Close())
	_ = gone.Wait()
	b.writePID(t, c, gone.Process.Pid)
	require.Equal(t, 42, query[int](t, b.start(t).URL(), "SELECT answer FROM kept"))
}

// Pitfall: a postgres of ours that outlived its parent.
func TestOrphanIsStoppedFirst(t *testing.T) {
	b := setup(t)
	c := b.stopped(t)
	require.NoError(t, os.Mkdir(c.place.sockets, 0o700))
	require.NoError(t, b.give(c.place.sockets, b.acc))
	orphan, stdin := b.asAccount(t, c.binaries.path("postgres"), c.arguments()...)
	defer stdin.Close()
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()
	eventually(t, func() error {
		conn, err := connect(t.Context(), c.URL())
		if err != nil {
			return err
		}
		return conn.Close(t.Context())
	})

	again := b.start(t)
	require.NoError(t, <-ended, "it was asked, not killed")
	require.Equal(t, 42, query[int](t, again.URL(), "SELECT answer FROM kept"))
}
