package localpg

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// guard is a shell that outlives us by a moment if we are killed. It holds one end
// of a pipe; when the pipe ends without a word of dismissal, it stops postgres and
// removes the directories of a throw-away cluster. Where the kernel has a
// parent-death signal (Linux), that stops postgres, and the guard only cleans up.
//
// It is a child of ours and not of postgres, whose postmaster restarts everything
// if a child that it does not know dies.
type guard struct {
	pipe *os.File
	once sync.Once
	done chan struct{} // closed when the shell has ended
}

// The guard's first argument is the signal, the second a directory that is only
// removed if empty, the others are removed. A postgres that is gone but that nobody
// waited for still answers kill -0: hence the bound of some ten seconds.
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

func startGuard(p *place) (*guard, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	defer read.Close()

	args := []string{"-c", guardScript, "guard", "INT", ""}
	if p.throwaway {
		args = []string{"-c", guardScript, "guard", "QUIT", filepath.Dir(p.base), p.sockets, p.base, p.lock.path}
	}
	cmd := exec.Command("/bin/sh", args...)
	cmd.Dir = "/"
	cmd.Env = childEnv("/usr/bin")
	cmd.Stdin = read
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // else Ctrl-C ends it
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

// watch tells the guard whom to stop. It may be gone, which is no reason not to
// start: we lose what it would have done, no more.
func (g *guard) watch(pid int) {
	_, _ = fmt.Fprintf(g.pipe, "pid %d\n", pid)
}

// dismiss ends the guard, and returns when it has ended.
func (g *guard) dismiss() {
	g.once.Do(func() {
		_, _ = fmt.Fprintln(g.pipe, "dismissed")
		_ = g.pipe.Close()
	})
	<-g.done
}
