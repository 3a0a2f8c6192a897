package localpg

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// MoveAside renames what a durable base directory holds, but for its lock and its
// downloads, into one new directory beside it, and says which; "" if there was
// nothing. Nothing is deleted. A directory in use is refused.
func MoveAside(dataDir, owner string) (string, error) {
	entries, err := os.ReadDir(dataDir)
	if os.IsNotExist(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", dataDir, err)
	}
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
		if !moved {
			if err := os.Mkdir(aside, 0o755); err != nil { //nolint:gosec // postgres's account must get through, as before
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
