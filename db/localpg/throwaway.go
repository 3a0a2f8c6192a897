package localpg

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// openThrowaway makes a lock c-….lock, and then a directory c-…, in $TMPDIR/tespg-<uid>. A
// directory with a free lock is abandoned.
func (m *machine) openThrowaway(cfg Config, acc account) (*place, error) {
	// The last cluster to end removes the parent directory, so making the parent and making
	// a lock inside may have to be repeated.
	var parent string
	var held *lock
	var err error
	for range 20 {
		if parent, err = m.throwawayParent(acc); err != nil {
			return nil, err
		}

		held, err = takeLock(filepath.Join(parent, "c-"+randomHex(6)+".lock"), cfg.Owner)
		if err == nil {
			break
		}
	}

	if err != nil {
		return nil, fmt.Errorf("make a temporary cluster: %w", err)
	}

	// With its own lock held, this cluster is safe from the sweeps of others.
	m.sweep(parent, cfg.Logf)

	base := strings.TrimSuffix(held.path, ".lock")
	p := &place{
		base:      base,
		data:      filepath.Join(base, "pg"),
		log:       filepath.Join(base, "postgres.log"),
		sockets:   throwawaySockets(base),
		throwaway: true,
		lock:      held,
	}

	mode := os.FileMode(0o700)
	if acc.drop {
		mode = 0o711
	}

	if err := MkdirAll(base, mode); err != nil {
		held.remove()
		return nil, fmt.Errorf("make a temporary cluster: %w", err)
	}

	return p, nil
}

// throwawaySockets returns the directory of the socket, outside of base if base is too long.
func throwawaySockets(base string) string {
	if len(socketPath(filepath.Join(base, "s"), socketOnlyPort)) > maxSocketPath {
		return shortSockets(base)
	}
	return filepath.Join(base, "s")
}

// throwawayParent makes the parent directory of throw-away clusters. Its name is
// predictable, so an existing directory must belong to the current user.
func (m *machine) throwawayParent(acc account) (string, error) {
	tmp, err := filepath.EvalSymlinks(m.tmpDir)
	if err != nil {
		return "", fmt.Errorf("look at TMPDIR: %w", err)
	}

	if err := acc.reach(tmp, "set TMPDIR to a place it can reach, e.g. /tmp"); err != nil {
		return "", err
	}

	mode := os.FileMode(0o700)
	if acc.drop {
		mode = 0o711
	}

	parent := filepath.Join(tmp, "tespg-"+strconv.Itoa(m.euid))
	if err := os.Mkdir(parent, mode); err == nil {
		if err := os.Chmod(parent, mode); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("make a temporary cluster: %w", err)
		}
		return parent, nil
	} else if !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make a temporary cluster: %w", err)
	}

	info, err := os.Lstat(parent)
	if errors.Is(err, os.ErrNotExist) {
		// Removed at this moment: taking the lock fails, and openThrowaway tries again.
		return parent, nil
	}

	if err != nil {
		return "", fmt.Errorf("make a temporary cluster: %w", err)
	}

	if !info.IsDir() || ownerOf(info) != m.euid || info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("%s is not a directory that only we can write: remove it, or set TMPDIR", parent)
	}

	return parent, nil
}

// sweep removes abandoned clusters. Clusters that cannot be removed stay for the next sweep.
func (m *machine) sweep(parent string, logf func(string, ...any)) {
	locks, _ := filepath.Glob(filepath.Join(parent, "c-*.lock"))
	for _, path := range locks {
		held, err := takeLock(path, "sweep")
		if err != nil {
			// In use.
			continue
		}

		base := strings.TrimSuffix(path, ".lock")
		logf("removing %s, whose owner is gone", base)

		// Before the files: a running postgres would write new ones.
		if err := m.stopOrphan(filepath.Join(base, "pg"), syscall.SIGQUIT); err != nil {
			logf("%v", err)
			held.release()
			continue
		}

		removeShared(filepath.Join(base, "pg"))
		if err := errors.Join(os.RemoveAll(base), os.RemoveAll(throwawaySockets(base))); err != nil {
			logf("remove %s: %v", base, err)
			held.release()
			continue
		}

		held.remove()
	}
}
