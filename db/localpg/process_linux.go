package localpg

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

const hasParentDeathSignal = true

// child returns the attributes of every child: its own process group, because a Ctrl-C goes
// to the whole group and postgres must end after the workers; and a parent-death signal. The
// kernel sends the signal when the parent thread ends, not the process: see run.
func child(acc account, death syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: death, Credential: acc.credential()}
}

// commandLine returns the command line of a process; empty for a zombie.
func commandLine(pid int) string {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
}
