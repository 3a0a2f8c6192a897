//go:build linux && (amd64 || arm64)

package localpg

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// removeShared removes the System V shared memory of a killed server. postgres does the same
// at its next start in the data directory, which a throw-away cluster does not have. After
// an orderly end there is no postmaster.pid, and nothing to remove.
func removeShared(data string) {
	text, _ := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	lines := strings.Split(string(text), "\n")
	if len(lines) < 7 {
		return
	}

	ids := strings.Fields(lines[6]) // key and id
	if len(ids) != 2 {
		return
	}

	all, _ := os.ReadFile("/proc/sysvipc/shm")
	for line := range strings.Lines(string(all)) {
		// key, id, mode, size, creator: compared too, because ids are reused.
		if f := strings.Fields(line); len(f) > 4 && f[1] == ids[1] && f[4] == strings.TrimSpace(lines[0]) {
			if id, err := strconv.Atoi(ids[1]); err == nil {
				_, _, _ = syscall.Syscall(syscall.SYS_SHMCTL, uintptr(id), 0, 0) // IPC_RMID
			}
		}
	}
}
