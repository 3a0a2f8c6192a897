package localpg

import (
	"os/exec"
	"runtime"
	"syscall"
)

// process is a child process with a goroutine that waits for its end.
type process struct {
	pid  int
	done chan struct{} // closed when the process has ended
	err  error         // the result of Wait; valid after done
}

// run starts a command, and waits for its end, on a thread of its own: the parent-death
// signal is sent when the parent thread ends, and the Go runtime may end idle threads.
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

		// The thread stays locked until the child has ended.
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

// signal sends a signal, unless the process has been waited for: its pid may belong to
// another process by then.
func (p *process) signal(sig syscall.Signal) {
	if !p.ended() {
		_ = syscall.Kill(p.pid, sig)
	}
}
