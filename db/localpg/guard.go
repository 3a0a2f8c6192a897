package localpg

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// guard is a shell that cleans up after the program if the program is killed. The shell
// reads from a pipe. If the pipe closes without the word "dismissed", the shell stops
// postgres and removes the directories of a throw-away cluster. On Linux the parent-death
// signal stops postgres, and the shell only removes directories.
//
// The shell is a child of the program and not of postgres, because the postmaster restarts
// all its children when an unknown child dies.
type guard struct {
	pipe *os.File
	once sync.Once
	done chan struct{} // closed when the shell has exited
}

// guardScript takes a signal, a directory to remove only if empty, and directories to
// remove. The loops end after about ten seconds: a postgres that has ended but was not
// waited for (a zombie) still answers kill -0.
const guardScript = `
signal=$1 parent=$2; shift 2
pid=
while read -r verb arg; do
  case $verb in
    pid) pid=$arg ;;
    dismissed) exit 0 ;;
  esac
done
i=0
if [ -n "$pid" ]; then
  kill -"$signal" "$pid"
  while kill -0 "$pid" && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
fi
while [ $# -gt 0 ] && ! rm -rf "$@" && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done
[ -z "$parent" ] || rmdir "$parent"
`

// startGuard starts the shell. The caller must call watch when postgres runs, and dismiss.
func startGuard(p *place) (*guard, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	defer read.Close()

	// A durable cluster is shut down cleanly, and no directory is removed.
	args := []string{"-c", guardScript, "guard", "INT", ""}
	if p.throwaway {
		args = []string{"-c", guardScript, "guard", "QUIT", filepath.Dir(p.base), p.sockets, p.base, p.lock.path}
	}

	cmd := exec.Command("/bin/sh", args...)
	cmd.Dir = "/"
	cmd.Env = childEnv("/usr/bin")
	cmd.Stdin = read

	// In its own group: a Ctrl-C would end the shell.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		_ = write.Close()
		return nil, fmt.Errorf("start the guard: %w", err)
	}

	g := &guard{pipe: write, done: make(chan struct{})}
	go func() {
		defer close(g.done)

		_ = cmd.Wait()
	}()

	return g, nil
}

// watch tells the guard which process to stop. An error is ignored: without the guard the
// cluster works, but is not cleaned up after a kill.
func (g *guard) watch(pid int) {
	_, _ = fmt.Fprintf(g.pipe, "pid %d\n", pid)
}

// dismiss ends the guard, and waits for its exit.
func (g *guard) dismiss() {
	g.once.Do(func() {
		_, _ = fmt.Fprintln(g.pipe, "dismissed")
		_ = g.pipe.Close()
	})

	<-g.done
}
