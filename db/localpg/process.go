package localpg

import (
	"os/exec"
	"runtime"
	"syscall"
)

// process is a child that somebody waits for.
type process struct {
	pid  int
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read it after done
}

// run starts a command and waits for it, on one thread that does nothing else: the
// parent-death signal follows the thread, and the Go runtime ends threads as it
// likes.
func run(cmd *exec.Cmd) (*process, error) {
	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal does nothing to a process that has been waited for, whose pid may be
// another's by now.
func (p *process) signal(sig syscall.Signal) {
	if !p.ended() {
		_ = syscall.Kill(p.pid, sig)
	}
}
