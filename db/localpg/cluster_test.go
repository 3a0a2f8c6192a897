package localpg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

func TestDurableClusterKeepsDataAndPassword(t *testing.T) {
	b := setup(t)

	first := b.start(t)
	require.Regexp(t, `^\d+`, first.Version())
	require.Equal(t, b.cfg.DataDir, first.Dir())
	require.Equal(t, "tes", query[string](t, first.URL(), "SELECT current_database()::text"))
	require.True(t, query[bool](t, first.URL(), "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))
	execute(t, first.URL(), "CREATE TABLE kept AS SELECT 42 AS answer")
	require.NoError(t, first.Stop(t.Context()))

	second := b.start(t)
	require.Equal(t, 42, query[int](t, second.URL(), "SELECT answer FROM kept"))
	require.Equal(t, first.password, second.password)
	require.NoError(t, second.Stop(t.Context()))

	// What the first start was not clean about would show in the log of the second.
	log, err := os.ReadFile(second.place.log)
	require.NoError(t, err)
	require.NotContains(t, string(log), "automatic recovery")
}

func TestThrowawayClusterIsGoneAfterStop(t *testing.T) {
	for _, unsafe := range []bool{true, false} {
		t.Run(fmt.Sprintf("unsafe=%v", unsafe), func(t *testing.T) {
			b := setup(t)
			b.cfg.Throwaway, b.cfg.Unsafe = true, unsafe
			b.cfg.Settings = map[string]string{"max_connections": "33"}

			c := b.start(t)
			require.Equal(t, "33", query[string](t, c.URL(), "SHOW max_connections"))
			require.Equal(t, map[bool]string{true: "off", false: "on"}[unsafe], query[string](t, c.URL(), "SHOW fsync"))
			require.Equal(t, "", query[string](t, c.URL(), "SHOW listen_addresses"))
			require.DirExists(t, c.Dir())
			require.NoError(t, c.Stop(t.Context()))

			require.NoDirExists(t, c.Dir())
			require.NoDirExists(t, c.place.sockets)
			require.False(t, sharedMemoryOf(t, c.server.pid))
		})
	}
}

func TestStopMayBeCalledByMany(t *testing.T) {
	b := setup(t)
	b.cfg.Throwaway = true
	c := b.start(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := c.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	<-c.Done()
	require.NoError(t, c.Err(), "we asked for it")
}

func TestServerThatEndsByItselfSaysSo(t *testing.T) {
	b := setup(t)
	c := b.start(t)
	require.NoError(t, c.Err())
	c.server.signal(syscall.SIGQUIT)
	<-c.Done()
	require.ErrorContains(t, c.Err(), "ended by itself")
	require.ErrorContains(t, c.Err(), "immediate shutdown") // its log

	require.Contains(t, b.startError(t), "in use by process", "the lock is held until Stop")
	require.NoError(t, c.Stop(t.Context()))
	b.start(t) // recovers
}

func TestStopInAHurryStillStops(t *testing.T) {
	b := setup(t)
	c := b.start(t)
	// The fast shutdown that Stop asks for first ends this session; here there is
	// no time for it.
	conn, err := connect(t.Context(), c.URL())
	require.NoError(t, err)
	defer conn.Close(context.Background())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, ignoreExit(c.Stop(ctx)))
	require.False(t, sharedMemoryOf(t, c.server.pid))
	b.start(t) // recovers if it has to
}

// ignoreExit lets a hurried stop have its exit status.
func ignoreExit(err error) error {
	if err != nil && strings.Contains(err.Error(), "exit status") {
		return nil
	}
	return err
}

// Pitfall: an *os.File that nobody references is closed by the garbage collector,
// and its lock is gone.
func TestLockSurvivesGarbageCollection(t *testing.T) {
	b := setup(t)
	func() { // the Cluster is unreachable for us after this; only t.Cleanup has it
		c, err := start(t.Context(), b.cfg, b.machine)
		require.NoError(t, err)
		pid := c.server.pid
		t.Cleanup(func() {
			_ = syscall.Kill(pid, syscall.SIGINT)
			eventually(t, func() error {
				if len(processesOf(b.cfg.DataDir)) > 0 {
					return errors.New("postgres runs")
				}
				return nil
			})
			_ = os.RemoveAll(shortSockets(b.cfg.DataDir))
		})
	}()
	for range 3 {
		runtime.GC()
		require.Contains(t, b.startError(t), fmt.Sprintf("%s is in use by process %d (test)", b.cfg.DataDir, os.Getpid()))
	}
	require.Len(t, processesOf(b.cfg.DataDir), 1, "the first one's postgres must not be touched")
}

func TestSecondProcessIsToldWhoHasTheDirectory(t *testing.T) {
	b := setup(t)
	h := startHelper(t, helperSpec{DataDir: b.cfg.DataDir, TmpDir: b.tmpDir})
	require.Empty(t, h.Error)
	require.Contains(t, b.startError(t), fmt.Sprintf("%s is in use by process %d (helper)", b.cfg.DataDir, h.cmd.Process.Pid))
	h.leave(t)
	b.start(t)
}

// Pitfall: a cancelled context must end the start at once and leave nothing.
func TestCancelledStartLeavesNothing(t *testing.T) {
	for _, throwaway := range []bool{false, true} {
		for _, stage := range []string{stageInitdb, stageServer} {
			t.Run(fmt.Sprintf("throwaway=%v/%s", throwaway, stage), func(t *testing.T) {
				b := setup(t)
				b.cfg.Throwaway = throwaway
				ctx, cancel := context.WithCancelCause(t.Context())
				reason := errors.New("Ctrl-C")
				var cancelled time.Time
				b.at = func(now string) {
					if now == stage {
						cancelled = time.Now()
						cancel(reason)
					}
				}
				_, err := start(ctx, b.cfg, b.machine)
				require.ErrorIs(t, err, reason)
				require.Less(t, time.Since(cancelled), 5*time.Second) // well under 1 s on a quiet machine
				b.nothingLeft(t)

				b.at = func(string) {}
				b.start(t) // and nothing is in the way of the next one
			})
		}
	}
}

// Pitfall: the ready loop must not wait for what cannot heal, and must tell the
// last thing it heard.
func TestReadyTellsWhatItHeard(t *testing.T) {
	b := setup(t)
	b.cfg.Throwaway = true
	c := b.start(t)

	began := time.Now()
	_, err := c.server.ready(t.Context(), strings.Replace(c.URL(), "//tes@", "//nosuch@", 1), time.Hour)
	require.ErrorContains(t, err, `role "nosuch" does not exist`)
	require.Less(t, time.Since(began), 10*time.Second)

	nobody := strings.Replace(c.URL(), "port=5432", "port=5433", 1)
	_, err = c.server.ready(t.Context(), nobody, time.Nanosecond)
	require.ErrorContains(t, err, "did not become ready in 1ns")
	require.ErrorContains(t, err, ".s.PGSQL.5433")

	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, errors.New("no patience"))
	defer cancel()
	_, err = c.server.ready(ctx, nobody, time.Hour)
	require.ErrorContains(t, err, "no patience")
	require.ErrorContains(t, err, "last:")
}

func TestServerThatDoesNotStartShowsItsLog(t *testing.T) {
	b := setup(t)
	b.cfg.Throwaway = true
	b.cfg.Settings = map[string]string{"shared_buffers": "many"}
	got := b.startError(t)
	require.Contains(t, got, "ended while starting (exit status 1)")
	require.Contains(t, got, `invalid value for parameter "shared_buffers": "many"`)
}

// Pitfall: PG* in the developer's shell, and a LANG that this machine does not have.
func TestForeignEnvironmentIsIgnored(t *testing.T) {
	b := setup(t)
	h := startHelper(t, helperSpec{DataDir: b.cfg.DataDir, TmpDir: b.tmpDir},
		"PGSERVICE=nosuch", "PGSERVICEFILE=/nosuch", "PGTARGETSESSIONATTRS=read-only", "PGCONNECT_TIMEOUT=x",
		"PGHOST=nosuch.invalid", "PGPORT=1", "PGUSER=nosuch", "PGPASSWORD=wrong", "PGDATABASE=nosuch",
		"PGSSLMODE=verify-full", "PGSSLROOTCERT=/nosuch", "PGSSLNEGOTIATION=direct", "PGOPTIONS=-c nosuch=1",
		"PGTZ=Mars/Phobos", "PGMINPROTOCOLVERSION=9.9", "PGCHANNELBINDING=require", "PGREQUIREAUTH=none",
		"PGDATA=/nosuch", "LANG=xx_YY.UTF-8", "LC_ALL=xx_YY", "TZ=Mars/Phobos")
	require.Empty(t, h.Error)
	require.Equal(t, "UTC", query[string](t, h.URL, "SHOW log_timezone"))
	h.leave(t)
}

func TestPasswordIsForUsAlone(t *testing.T) {
	b := setup(t)
	c := b.start(t)

	info, err := os.Stat(filepath.Join(b.cfg.DataDir, "password"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	handed, err := filepath.Glob(c.place.data + ".pw-*")
	require.NoError(t, err)
	require.Empty(t, handed, "the file for initdb is gone")
	info, err = os.Stat(c.place.sockets)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm(), "no password is asked on the socket")

	wrong, err := url.Parse(c.URL())
	require.NoError(t, err)
	wrong.User = url.UserPassword("tes", "wrong")
	_, err = connect(t.Context(), wrong.String())
	var refused *pgconn.PgError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "28P01", refused.Code)
}

func TestLostPasswordIsHealed(t *testing.T) {
	b := setup(t)
	first := b.start(t)
	require.NoError(t, first.Stop(t.Context()))
	require.NoError(t, os.Remove(filepath.Join(b.cfg.DataDir, "password")))
	second := b.start(t)
	require.NotEqual(t, first.password, second.password)
	require.Equal(t, 1, query[int](t, second.URL(), "SELECT 1"))
}

// Pitfall: a socket's path must be short, and t.TempDir, or a home, is not.
func TestLongDirectoryGetsAShortSocket(t *testing.T) {
	for _, throwaway := range []bool{false, true} {
		t.Run(fmt.Sprintf("throwaway=%v", throwaway), func(t *testing.T) {
			b := setup(t)
			long := strings.Repeat("/a-long-way-down", 10)
			b.cfg.Throwaway = throwaway
			b.cfg.DataDir += long
			outer := b.tmpDir
			b.tmpDir += long
			require.NoError(t, MkdirAll(b.tmpDir, 0o755))
			c := b.start(t)
			require.LessOrEqual(t, len(socketPath(c.place.sockets, 65535)), maxSocketPath)
			require.NoError(t, c.Stop(t.Context()))
			require.NoDirExists(t, c.place.sockets)
			require.NoError(t, os.RemoveAll(filepath.Join(outer, "a-long-way-down")))
			b.tmpDir = outer
		})
	}
}

// Pitfall: the parent-death signal comes when the thread ends that started the
// child.
func TestServerOutlivesThreads(t *testing.T) {
	b := setup(t)
	b.cfg.Throwaway = true
	c := b.start(t)
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() { runtime.LockOSThread() }) // and the thread ends with it
	}
	all.Wait()
	require.Equal(t, 1, query[int](t, c.URL(), "SELECT 1"))
	require.NoError(t, c.Err())
}

// Pitfall: Ctrl-C goes to the whole group, and postgres must outlive our workers.
func TestCtrlCDoesNotReachTheServer(t *testing.T) {
	b := setup(t)
	h := startHelper(t, helperSpec{DataDir: b.cfg.DataDir, TmpDir: b.tmpDir, PipeGuard: true})
	require.Empty(t, h.Error)
	group, err := syscall.Getpgid(h.PID)
	require.NoError(t, err)
	require.Equal(t, h.PID, group)
	require.NoError(t, syscall.Kill(-h.cmd.Process.Pid, syscall.SIGINT))
	require.Equal(t, 1, query[int](t, h.URL, "SELECT 1"))
	h.leave(t) // in order
}

// Pitfall: the port that was free a moment ago is taken.
func TestTakenPortIsTriedAgain(t *testing.T) {
	b := setup(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	taken := listener.Addr().(*net.TCPAddr).Port
	asked := 0
	b.freePort = func() (int, error) {
		if asked++; asked < 3 {
			return taken, nil
		}
		return freePort()
	}
	c := b.start(t)
	require.Equal(t, 3, asked)
	require.NotEqual(t, taken, c.port)
	require.NoError(t, c.Stop(t.Context()))

	b.cfg.Port = taken
	require.Contains(t, b.startError(t), fmt.Sprintf("port %d is taken: set TES_PG_PORT", taken))

	b.cfg.Port = 0
	asked = -100
	require.Contains(t, b.startError(t), "could not create any TCP/IP sockets", "five times and no more")
	require.Equal(t, -95, asked)
}

func TestFixedPortIsUsed(t *testing.T) {
	b := setup(t)
	for range 5 { // somebody may take it before us
		var err error
		b.cfg.Port, err = freePort()
		require.NoError(t, err)
		c, err := start(t.Context(), b.cfg, b.machine)
		if err != nil && strings.Contains(err.Error(), "is taken") {
			continue
		}
		require.NoError(t, err)
		require.Contains(t, c.URL(), fmt.Sprintf("@127.0.0.1:%d/tes?", b.cfg.Port))
		require.NoError(t, c.Stop(t.Context()))
		return
	}
	t.Fatal("five free ports were taken")
}

// Pitfall: what a child sees of the environment. This initdb only tells.
func TestChildrenGetAnEnvironmentOfTheirOwn(t *testing.T) {
	b := setup(t)
	b.cfg.BinDir = fakeBinaries(t, "postgres (PostgreSQL) 18.4", "env; echo PWD=$(pwd); exit 3")
	got := b.startError(t)
	require.Contains(t, got, "initdb: exit status 3")
	for _, want := range []string{"LC_ALL=C", "TZ=UTC", "PATH=" + b.cfg.BinDir + ":/usr/bin:/bin", "PWD=/"} {
		require.Contains(t, got, "\n"+want+"\n")
	}
	require.NotContains(t, got, "HOME=")
}
