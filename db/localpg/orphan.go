package localpg

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clearStalePID handles the postmaster.pid of an earlier run. The caller holds the lock, so
// the file names either an orphaned postgres of this directory, or an unrelated process.
//
// postgres itself replaces the file if the process is gone, but refuses to start if the pid
// is alive. In a container, with few pids in use, the pid soon belongs to another process.
func (m *machine) clearStalePID(p *place, logf func(string, ...any)) error {
	pid, ok := postmasterPID(p.data)
	if !ok || !alive(pid) {
		return nil
	}

	// A postgres of this directory without a parent: the lock proves that no process owns it.
	if isPostgresOf(pid, p.data) {
		logf("stopping process %d, left behind on %s", pid, p.data)
		return m.stopOrphan(p.data, syscall.SIGINT)
	}

	// If other processes of that server are alive without their postmaster, postgres
	// detects them by their shared memory, and still refuses to start.
	logf("postmaster.pid names process %d, which is another program: moving the file away", pid)
	if err := os.Rename(filepath.Join(p.data, "postmaster.pid"), filepath.Join(p.base, "postmaster.pid.stale")); err != nil {
		return fmt.Errorf("move a stale postmaster.pid away: %w", err)
	}

	return nil
}

// stopOrphan stops a postgres that runs on a data directory without its parent.
func (m *machine) stopOrphan(data string, sig syscall.Signal) error {
	pid, ok := postmasterPID(data)
	if !ok || !isPostgresOf(pid, data) {
		return nil
	}

	// Each signal gets ten seconds. The process is not a child, so its end can only be polled.
	for _, sig := range []syscall.Signal{sig, syscall.SIGQUIT, syscall.SIGKILL} {
		_ = syscall.Kill(pid, sig)

		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if !isPostgresOf(pid, data) {
				return nil
			}
		}
	}

	return fmt.Errorf("postgres (process %d) runs on %s and does not stop", pid, data)
}

func postmasterPID(data string) (int, bool) {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return 0, false
	}

	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))

	return pid, err == nil && pid > 1
}

// alive reports whether a process with this pid exists. A zombie counts as alive, as it
// does for postgres.
func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || err == syscall.EPERM
}

// isPostgresOf decides by the command line, which this package has written. A zombie has no
// command line.
func isPostgresOf(pid int, data string) bool {
	words := commandLine(pid) + " "
	program, _, _ := strings.Cut(words, " ")
	return filepath.Base(program) == "postgres" && strings.Contains(words, " -D "+data+" ")
}
