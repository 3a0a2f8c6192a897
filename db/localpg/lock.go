package localpg

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// lock is an flock on a file. The kernel releases an flock when its holder dies, in any way;
// a file with a pid does not have this property.
//
// fd is a descriptor and not an *os.File on purpose: the garbage collector closes an
// unreferenced *os.File, and would release the lock while postgres runs on.
type lock struct {
	fd   int
	path string
}

// heldError reports that another process holds the lock.
type heldError struct {
	holder string // "4711 tes dev"; empty if the holder has not written the file yet
}

func (e *heldError) Error() string {
	pid, name, _ := strings.Cut(e.holder, " ")
	if pid == "" {
		return "in use by another process"
	}

	return fmt.Sprintf("in use by process %s (%s)", pid, name)
}

// takeLock takes the lock, or fails at once with *heldError.
func takeLock(path, owner string) (*lock, error) {
	for {
		fd, err := retryOpen(path)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}

		if err := retryFlock(fd); err != nil {
			_ = syscall.Close(fd)

			// The holder has written its pid and name into the file.
			if errors.Is(err, syscall.EWOULDBLOCK) {
				holder, _ := os.ReadFile(path)
				return nil, &heldError{holder: strings.TrimSpace(string(holder))}
			}

			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		}

		if !sameFile(fd, path) {
			// The last holder removed the file between open and lock: the lock is on a file
			// without a name, and would exclude no other process.
			_ = syscall.Close(fd)
			continue
		}

		l := &lock{fd: fd, path: path}
		if err := l.sign(owner); err != nil {
			l.release()
			return nil, err
		}

		return l, nil
	}
}

func (l *lock) sign(owner string) error {
	if err := syscall.Ftruncate(l.fd, 0); err != nil {
		return &os.PathError{Op: "truncate", Path: l.path, Err: err}
	}

	if _, err := syscall.Pwrite(l.fd, fmt.Appendf(nil, "%d %s\n", os.Getpid(), owner), 0); err != nil {
		return &os.PathError{Op: "write", Path: l.path, Err: err}
	}

	return nil
}

// release unlocks before closing: a child that is being forked at this moment has the
// descriptor too, until its exec, and would hold the lock until then.
func (l *lock) release() {
	_ = syscall.Flock(l.fd, syscall.LOCK_UN)
	_ = syscall.Close(l.fd)
}

// remove releases a lock that is not needed any more, and deletes the file.
func (l *lock) remove() {
	_ = os.Remove(l.path)
	l.release()
}

func retryOpen(path string) (fd int, err error) {
	for {
		fd, err = syscall.Open(path, syscall.O_RDWR|syscall.O_CREAT|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0o644)
		if err != syscall.EINTR {
			return fd, err
		}
	}
}

func retryFlock(fd int) error {
	for {
		if err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EINTR {
			return err
		}
	}
}

// sameFile reports whether path still names the open file.
func sameFile(fd int, path string) bool {
	var ours, named syscall.Stat_t
	if syscall.Fstat(fd, &ours) != nil || syscall.Stat(path, &named) != nil {
		return false
	}

	return ours.Dev == named.Dev && ours.Ino == named.Ino
}
