package localpg

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

const hasParentDeathSignal = true

// child is how every child is started: in a group of its own, because Ctrl-C goes
// to the whole group and postgres must outlive our workers; and so that it gets the
// signal if we die. The kernel means the thread that started it, not the process:
// see process.
func child(acc account, death syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: death, Credential: acc.credential()}
}

// commandLine is empty for a zombie, which has ended.
func commandLine(pid int) string {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
}
