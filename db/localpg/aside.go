package localpg

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// MoveAside moves the content of a durable base directory, except the lock and the
// downloads, into a new directory beside the base, and returns the new directory; "" if
// the base was empty. Nothing is deleted. A base directory in use is an error.
func MoveAside(dataDir, owner string) (string, error) {
	entries, err := os.ReadDir(dataDir)
	if os.IsNotExist(err) {
		return "", nil
	}

	if err != nil {
		return "", fmt.Errorf("look at %s: %w", dataDir, err)
	}

	// A running postgres, or an embedded JetStream, would lose its files.
	held, err := takeLock(filepath.Join(dataDir, "lock"), owner)
	if err != nil {
		return "", fmt.Errorf("%s is %w", dataDir, err)
	}
	defer held.release()

	aside := fmt.Sprintf("%s.old-%s", filepath.Clean(dataDir), time.Now().UTC().Format("20060102T150405.000"))
	moved := false
	for _, entry := range entries {
		if entry.Name() == "lock" || entry.Name() == "cache" {
			continue
		}

		// Made only if there is something to move.
		if !moved {
			if err := os.Mkdir(aside, 0o755); err != nil { //nolint:gosec // the account of PostgreSQL must search the directory, as before
				return "", fmt.Errorf("make %s: %w", aside, err)
			}
			moved = true
		}

		if err := os.Rename(filepath.Join(dataDir, entry.Name()), filepath.Join(aside, entry.Name())); err != nil {
			return "", fmt.Errorf("move %s away: %w", entry.Name(), err)
		}
	}

	if !moved {
		return "", nil
	}

	return aside, nil
}
