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

// maxSocketPath is the longest path of a socket that macOS allows; Linux has room
// for four bytes more.
const maxSocketPath = 103

// place is where one cluster lives, and the lock that makes it ours.
type place struct {
	base      string // all of it
	data      string // what initdb makes
	log       string // what postgres says, this time
	sockets   string // 0700 and the account's; has a short path
	throwaway bool
	lock      *lock
	guard     *guard // nil for a durable cluster on Linux, which needs none
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

func (m *machine) openDurable(cfg Config, acc account) (*place, error) {
	mode := os.FileMode(0o700)
	if acc.drop {
		mode = 0o755 // the account must get to its data through it
	}
	const advice = "set TES_DATA_DIR to a place it can reach, e.g. /var/lib/tes"
	if there, err := filepath.EvalSymlinks(lastThere(cfg.DataDir)); err == nil {
		if err := acc.reach(there, advice); err != nil {
			return nil, err // before anything is made
		}
	}
	if err := mkdirAll(cfg.DataDir, mode); err != nil {
		return nil, fmt.Errorf("make %s: %w: set TES_DATA_DIR to a place that can be written", cfg.DataDir, err)
	}
	// The same directory by two names would be two places to everything that
	// compares paths.
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

// lastThere is the last directory of a path that exists.
func lastThere(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || filepath.Dir(dir) == dir {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// shortSockets is a directory with a short path for the sockets of base. It is the
// same every time, so what a killed process leaves is used again.
func shortSockets(base string) string {
	sum := sha256.Sum256([]byte(base))
	return "/tmp/tes-" + hex.EncodeToString(sum[:6])
}

// makeSockets makes the directory for the socket, or takes the one that is there. /tmp
// belongs to everybody: what stands there may be ours from last time, or somebody's
// trap, and the account that PostgreSQL runs under can put another thing in the place of
// what is its own. So what is looked at, and what root then gives away, is one open
// directory, and never a name.
func (m *machine) makeSockets(p *place, acc account) error {
	err := os.Mkdir(p.sockets, 0o700)
	if err == nil || errors.Is(err, os.ErrExist) {
		var dir *os.File
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

// openSockets opens a directory that is ours or the account's.
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

// major says which PostgreSQL made the data directory; 0 if there is none yet.
func (p *place) major(acc account) (int, error) {
	info, err := os.Stat(p.data)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", p.data, err)
	}
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

// wrongOwner replaces what postgres would say: "could not access the server
// configuration file … Permission denied".
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

// close gives the place back: the directories of a throw-away cluster are gone
// before the lock is.
func (p *place) close() error {
	err := os.RemoveAll(p.sockets)
	if p.throwaway {
		removeShared(p.data)
		err = errors.Join(err, os.RemoveAll(p.base))
		p.lock.remove()
		_ = os.Remove(filepath.Dir(p.base)) // if we were the last
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

// randomHex is a name, or a password, that nobody guesses.
func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // it never fails
	return hex.EncodeToString(b)
}
