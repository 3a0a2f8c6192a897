package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// inlineLogs is how much the programs of a failed test may have said to stand in the
// test's own output. More goes to files, or nobody would find the failure above it.
const inlineLogs = 64 << 10

// said is what the programs of one test have said, kept if it fails.
type said struct {
	mu   sync.Mutex
	logs []string // guarded by mu
}

var saidIn sync.Map // *said by *testing.T

// saidBy is what the programs of a test say. The first call registers what is done with
// it when the test and all of its programs have ended, so it comes before they start.
func saidBy(t *testing.T) *said {
	t.Helper()
	mine, old := saidIn.LoadOrStore(t, &said{})
	if !old {
		t.Cleanup(func() {
			saidIn.Delete(t)
			if t.Failed() {
				mine.(*said).tell(t)
			}
		})
	}
	return mine.(*said)
}

func (s *said) add(log string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logs = append(s.logs, log)
}

// tell shows the logs, or says in one line where they are.
func (s *said) tell(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if all := strings.Join(s.logs, "\n"); len(all) <= inlineLogs {
		t.Log(all)
		return
	}
	dir, err := os.MkdirTemp("", "tes-failed-")
	require.NoError(t, err)
	for i, log := range s.logs {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.log", len(s.logs)-i)), []byte(log), 0o600))
	}
	t.Logf("The failure stands above. The logs of its %d programs, in the order of their starts, are in %s", len(s.logs), dir)
}
