//go:build linux && (amd64 || arm64)

package localpg

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A server that is killed cleans nothing up: what it shared with its processes is
// removed with its directory.
func TestKilledServerLeavesNoSharedMemory(t *testing.T) {
	b := setup(t)
	b.cfg.Throwaway = true
	c := b.start(t)
	pid := c.server.pid
	require.True(t, sharedMemoryOf(t, pid))
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	require.NoError(t, err)
	require.False(t, strings.Contains(string(maps), "/dev/shm/"), "nobody would find it there")
	c.server.signal(syscall.SIGKILL)
	<-c.Done()
	require.NoError(t, c.Stop(t.Context()))
	require.NoDirExists(t, c.Dir())
	eventually(t, func() error { // its processes notice
		if sharedMemoryOf(t, pid) {
			return fmt.Errorf("its shared memory is there")
		}
		return nil
	})
}
