package localpg

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// maxSocketPath is the maximum length of a socket's path on macOS; Linux allows four bytes
// more.
const maxSocketPath = 103

// place is the directory of one cluster, and its lock.
type place struct {
	base      string // the base directory
	data      string // the data directory, made by initdb
	log       string // the output of postgres, of the current run
	sockets   string // directory of the socket: mode 0700, owned by the account, with a short path
	throwaway bool
	lock      *lock
	guard     *guard // nil for a durable cluster on Linux, where the kernel stops postgres
}

func (m *machine) openPlace(cfg Config, acc account) (*place, error) {
	open := m.openDurable
	if cfg.Throwaway {
		open = m.openThrowaway
	}

	p, err := open(cfg, acc)
	if err != nil {
		return nil, err
	}

	if err := m.makeSockets(p, acc); err != nil {
		return nil, errors.Join(err, p.close())
	}

	if p.throwaway || m.pipeGuard {
		if p.guard, err = startGuard(p); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}

	return p, nil
}

// openDurable makes the base directory of a durable cluster, if necessary, and locks it.
func (m *machine) openDurable(cfg Config, acc account) (*place, error) {
	mode := os.FileMode(0o700)
	if acc.drop {
		// The account must search the directory.
		mode = 0o755
	}

	// Checked before anything is made, and again when the directory exists.
	const advice = "set TES_DATA_DIR to a place it can reach, e.g. /var/lib/tes"
	if there, err := filepath.EvalSymlinks(deepestExisting(cfg.DataDir)); err == nil {
		if err := acc.reach(there, advice); err != nil {
			return nil, err
		}
	}

	if err := MkdirAll(cfg.DataDir, mode); err != nil {
		return nil, fmt.Errorf("make %s: %w: set TES_DATA_DIR to a place that can be written", cfg.DataDir, err)
	}

	// Paths are compared later, so one directory must have one path.
	base, err := filepath.EvalSymlinks(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", cfg.DataDir, err)
	}

	if err := acc.reach(base, advice); err != nil {
		return nil, err
	}

	held, err := takeLock(filepath.Join(base, "lock"), cfg.Owner)
	if err != nil {
		if inUse := (*heldError)(nil); errors.As(err, &inUse) {
			return nil, fmt.Errorf("%s is %w", base, err)
		}
		return nil, fmt.Errorf("lock %s: %w: set TES_DATA_DIR to a place that can be written", base, err)
	}

	return &place{
		base:    base,
		data:    filepath.Join(base, "pg"),
		log:     filepath.Join(base, "postgres.log"),
		sockets: shortSockets(base),
		lock:    held,
	}, nil
}

// deepestExisting returns the last directory of a path that exists.
func deepestExisting(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || filepath.Dir(dir) == dir {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// shortSockets returns a directory with a short path for the sockets of base. The path is
// the same at each start, so a directory left by a killed process is used again.
func shortSockets(base string) string {
	sum := sha256.Sum256([]byte(base))
	return "/tmp/tes-" + hex.EncodeToString(sum[:6])
}

// makeSockets makes the directory of the socket, or uses an existing one. /tmp is open to
// all users: an existing path may be from the last run, or a trap; and the account of
// PostgreSQL can replace its own directory at any time. So one open directory is checked
// and changed, by descriptor, and never a path.
func (m *machine) makeSockets(p *place, acc account) error {
	err := os.Mkdir(p.sockets, 0o700)
	if err == nil || errors.Is(err, os.ErrExist) {
		var dir *os.File

		// If the path is not usable, a directory with a random name is.
		if dir, err = m.openSockets(p.sockets, acc); err != nil {
			if p.sockets, err = os.MkdirTemp("/tmp", "tes-"); err == nil {
				dir, err = m.openSockets(p.sockets, acc)
			}
		}

		if err == nil {
			defer dir.Close()

			m.at(stageSockets)
			if err = dir.Chmod(0o700); err == nil {
				return m.giveOpen(dir, acc)
			}
		}
	}

	return fmt.Errorf("make a directory for the socket: %w", err)
}

// openSockets opens a directory that belongs to the current user or to the account.
func (m *machine) openSockets(path string, acc account) (*os.File, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller wraps it
	}

	info, err := dir.Stat()
	if err == nil && ownerOf(info) != acc.uid && ownerOf(info) != m.euid {
		err = fmt.Errorf("%s belongs to uid %d", path, ownerOf(info))
	}

	if err != nil {
		_ = dir.Close()
		return nil, err
	}

	return dir, nil
}

// major returns the PostgreSQL version of the data directory; 0 if there is none yet.
func (p *place) major(acc account) (int, error) {
	info, err := os.Stat(p.data)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}

	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", p.data, err)
	}

	// postgres refuses a data directory of another user.
	if owner := ownerOf(info); owner != acc.uid {
		return 0, wrongOwner(p.data, owner, acc)
	}

	text, err := os.ReadFile(filepath.Join(p.data, "PG_VERSION"))
	if err != nil {
		return 0, fmt.Errorf("%s is no data directory of PostgreSQL: %w. Move it away: tes dev --reset", p.data, err)
	}

	major, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("%s/PG_VERSION: %w", p.data, err)
	}

	return major, nil
}

// wrongOwner replaces the message of postgres: "could not access the server configuration
// file … Permission denied".
func wrongOwner(data string, owner int, acc account) error {
	advice := "run as that user, or chown"
	if acc.drop && owner != 0 {
		name := strconv.Itoa(owner)
		if found, err := user.LookupId(name); err == nil {
			name = found.Username
		}
		advice = "set TES_PG_USER=" + name + ", or chown"
	} else if acc.drop {
		advice = "chown it"
	}

	return fmt.Errorf("%s belongs to uid %d, PostgreSQL would run as uid %d: %s", data, owner, acc.uid, advice)
}

// close releases the place. The directories of a throw-away cluster are removed before the
// lock, so that no other process sees the directories unlocked.
func (p *place) close() error {
	err := os.RemoveAll(p.sockets)
	if p.throwaway {
		// postmaster.pid names the shared memory, so it is read before the directory is removed.
		removeShared(p.data)
		err = errors.Join(err, os.RemoveAll(p.base))
		p.lock.remove()

		// Succeeds only for the last cluster in the directory.
		_ = os.Remove(filepath.Dir(p.base))
	} else {
		p.lock.release()
	}

	if p.guard != nil {
		p.guard.dismiss()
	}

	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}

	return nil
}

// randomHex returns an unpredictable name or password.
func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
