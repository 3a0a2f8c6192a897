//go:build unix && !linux

package localpg

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

const hasParentDeathSignal = false

// child is how every child is started: in a group of its own, because Ctrl-C goes
// to the whole group and postgres must outlive our workers. There is no
// parent-death signal here: the guard must do without.
func child(acc account, _ syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: acc.credential()}
}

// commandLine is empty if there is no such process.
func commandLine(pid int) string {
	out, _ := exec.Command("/bin/ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return strings.TrimSpace(string(out))
}
