package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/localpg"
)

// openDir is a temporary directory that the account of PostgreSQL can reach too;
// t.TempDir's parent is ours alone.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

// dataDir is an empty data directory. Where binaries are downloaded, it shares
// them with all others.
func dataDir(t *testing.T) string {
	t.Helper()
	dir := openDir(t)
	if os.Getenv("TES_PG_SYSTEM") == "off" {
		base := os.Getenv("TES_DATA_DIR")
		if base == "" {
			var err error
			base, err = localpg.DefaultBaseDir()
			require.NoError(t, err)
		}
		require.NoError(t, os.MkdirAll(filepath.Join(base, "cache"), 0o755))
		require.NoError(t, os.Symlink(filepath.Join(base, "cache"), filepath.Join(dir, "cache")))
	}
	return dir
}

// processesOf lists the living processes, other than ours, that name a directory.
func processesOf(dir string) []string {
	var found []string
	add := func(pid int, command string) {
		if pid != os.Getpid() && strings.Contains(command, dir) {
			found = append(found, fmt.Sprintf("%d %s", pid, command))
		}
	}
	if runtime.GOOS == "linux" {
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range lines {
			text, _ := os.ReadFile(path)
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			add(pid, strings.ReplaceAll(string(text), "\x00", " "))
		}
		return found
	}
	out, _ := exec.Command("/bin/ps", "-axo", "pid=,command=").Output()
	for line := range strings.Lines(string(out)) {
		number, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		pid, _ := strconv.Atoi(number)
		add(pid, command)
	}
	return found
}

// nothingRuns demands that no process names the directory any more.
func nothingRuns(t *testing.T, dir string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if left := processesOf(dir); len(left) > 0 {
			return fmt.Errorf("still running: %q", left)
		}
		return nil
	})
}

// names lists what is in a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	var list []string
	for _, entry := range entries {
		list = append(list, entry.Name())
	}
	return list
}

// nothingIn waits until a directory is empty: what a killed process leaves is
// removed by somebody else.
func nothingIn(t *testing.T, dir string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if left := names(t, dir); len(left) > 0 {
			return fmt.Errorf("left in %s: %q", dir, left)
		}
		return nil
	})
}

// tree is every file under a directory with its mode and content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		text := ""
		if entry.Type().IsRegular() {
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(raw)
		}
		name, _ := filepath.Rel(dir, path)
		files[name] = fmt.Sprintf("%v %v %s", info.Mode(), info.ModTime(), text)
		return nil
	}))
	return files
}
