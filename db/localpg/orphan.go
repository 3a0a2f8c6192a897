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

// settle looks at the postmaster.pid of an earlier run. We hold the lock, so
// whatever it names is either an orphan of ours or nobody's business.
//
// postgres itself replaces the file of a process that is gone. It refuses to start
// if the pid is alive, and in a container, where few pids are in use, the same one
// is soon somebody else's.
func (m *machine) settle(p *place, logf func(string, ...any)) error {
	pid, ok := postmasterPID(p.data)
	if !ok || !alive(pid) {
		return nil
	}
	if isPostgresOf(pid, p.data) {
		logf("stopping process %d, left behind on %s", pid, p.data)
		return m.stopOrphan(p.data, syscall.SIGINT)
	}
	// If processes of that server are still alive without their postmaster,
	// postgres notices by its shared memory and refuses all the same.
	logf("postmaster.pid names process %d, which is another program: moving the file away", pid)
	if err := os.Rename(filepath.Join(p.data, "postmaster.pid"), filepath.Join(p.base, "postmaster.pid.stale")); err != nil {
		return fmt.Errorf("move a stale postmaster.pid away: %w", err)
	}
	return nil
}

// stopOrphan stops the postgres that runs on a data directory without its parent.
func (m *machine) stopOrphan(data string, sig syscall.Signal) error {
	pid, ok := postmasterPID(data)
	if !ok || !isPostgresOf(pid, data) {
		return nil
	}
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

// alive is also true of a zombie, as it is for postgres.
func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || err == syscall.EPERM
}

// isPostgresOf goes by the command line, which we wrote ourselves; a zombie has
// none.
func isPostgresOf(pid int, data string) bool {
	words := commandLine(pid) + " "
	program, _, _ := strings.Cut(words, " ")
	return filepath.Base(program) == "postgres" && strings.Contains(words, " -D "+data+" ")
}
