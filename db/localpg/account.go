package localpg

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// account is the user that PostgreSQL runs as: the current user, except for root, which
// PostgreSQL refuses.
type account struct {
	name     string
	uid, gid int
	drop     bool // the program runs as root, and children change to uid and gid
}

// account chooses the account. wanted is TES_PG_USER.
func (m *machine) account(wanted string) (account, error) {
	if m.euid != 0 {
		if wanted != "" {
			found, err := m.userByName(wanted)
			if err != nil || found.Uid != strconv.Itoa(m.euid) {
				return account{}, wrong("TES_PG_USER", wanted, "only root may run PostgreSQL under another account; unset it")
			}
		}

		return account{uid: m.euid, gid: os.Getegid()}, nil
	}

	names := []string{"postgres", "nobody"}
	if wanted != "" {
		names = []string{wanted}
	}

	// The first account that exists.
	for _, name := range names {
		found, err := m.userByName(name)
		if err != nil {
			continue
		}
		return accountOf(found)
	}

	if wanted != "" {
		return account{}, wrong("TES_PG_USER", wanted, "there is no such account")
	}

	return account{}, errors.New("running as root; PostgreSQL refuses root and neither account postgres nor nobody exists: set TES_PG_USER")
}

func accountOf(found *user.User) (account, error) {
	uid, err := strconv.Atoi(found.Uid)
	if err != nil {
		return account{}, fmt.Errorf("account %s: %w", found.Username, err)
	}

	gid, err := strconv.Atoi(found.Gid)
	if err != nil {
		return account{}, fmt.Errorf("account %s: %w", found.Username, err)
	}

	if uid == 0 {
		return account{}, wrong("TES_PG_USER", found.Username, "PostgreSQL refuses root; name another account")
	}

	return account{name: found.Username, uid: uid, gid: gid, drop: true}, nil
}

// credential returns the credential of child processes; nil if children keep the current
// user. Supplementary groups are dropped.
func (a account) credential() *syscall.Credential {
	if !a.drop {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
}

// explain adds the cause to EPERM, the error of a root without capabilities. The error
// comes from the first chown or the first child.
func (a account) explain(err error) error {
	if a.drop && errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("root here may not change user (no CAP_SETUID/CAP_CHOWN): run as an ordinary user or set TES_DATABASE_URL (%w)", err)
	}
	return err
}

// give changes the owner of path to the account. If path is a link, the link is not
// followed: a link could be placed there to give away another file.
func (m *machine) give(path string, a account) error {
	if !a.drop {
		return nil
	}

	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return a.explain(fmt.Errorf("give %s to uid %d: %w", path, a.uid, err))
	}
	defer file.Close()

	return m.giveOpen(file, a)
}

// giveOpen is give for an open file.
func (m *machine) giveOpen(file *os.File, a account) error {
	if !a.drop {
		return nil
	}

	if err := m.chown(file, a.uid, a.gid); err != nil {
		return a.explain(fmt.Errorf("give %s to uid %d: %w", file.Name(), a.uid, err))
	}

	return nil
}

// reach checks that the account can search dir, which must exist, and all directories
// above, by their mode bits. Without this check the error would come from the middle of
// initdb, because root itself can search every directory.
func (a account) reach(dir, advice string) error {
	if !a.drop {
		return nil
	}

	step := "/"
	for _, name := range append([]string{""}, strings.Split(strings.Trim(dir, "/"), "/")...) {
		step = filepath.Join(step, name)
		info, err := os.Stat(step)
		if err != nil {
			return fmt.Errorf("look at %s: %w", step, err)
		}

		if !a.maySearch(info) {
			return fmt.Errorf("%s (mode %03o) cannot be searched by uid %d: %s", step, info.Mode().Perm(), a.uid, advice)
		}
	}

	return nil
}

func (a account) maySearch(info os.FileInfo) bool {
	// As the kernel decides: the first matching class counts, even if it denies.
	stat := info.Sys().(*syscall.Stat_t)
	switch {
	case int(stat.Uid) == a.uid:
		return info.Mode()&0o100 != 0
	case int(stat.Gid) == a.gid:
		return info.Mode()&0o010 != 0
	default:
		return info.Mode()&0o001 != 0
	}
}

func ownerOf(info os.FileInfo) int {
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

// MkdirAll is os.MkdirAll independent of the umask: with root's umask 077 the account of
// PostgreSQL could not search the new directories.
func MkdirAll(dir string, mode os.FileMode) error {
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		return nil
	}

	if parent := filepath.Dir(dir); parent != dir {
		if err := MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}

	if err := os.Mkdir(dir, mode); err != nil {
		if errors.Is(err, os.ErrExist) {
			// Another process has made the directory meanwhile.
			return nil
		}
		return err
	}

	return os.Chmod(dir, mode)
}
