//go:build unix && !linux

package localpg

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

const hasParentDeathSignal = false

// child returns the attributes of every child: its own process group, because a Ctrl-C goes
// to the whole group and postgres must end after the workers. There is no parent-death
// signal: the guard stops postgres.
func child(acc account, _ syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: acc.credential()}
}

// commandLine returns the command line of a process; empty if there is no such process.
func commandLine(pid int) string {
	out, _ := exec.Command("/bin/ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return strings.TrimSpace(string(out))
}
