package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// disk is a file system of its own, whose power can be cut.
type disk struct{ file, dir string }

// newDisk makes one. Only root may, on a machine that has loop devices; why says what
// is in the way.
func newDisk(t *testing.T) (d *disk, why string) {
	t.Helper()
	d = &disk{file: filepath.Join(t.TempDir(), "disk"), dir: filepath.Join(t.TempDir(), "mounted")}
	require.NoError(t, os.Mkdir(d.dir, 0o700))
	require.NoError(t, os.WriteFile(d.file, nil, 0o600))
	require.NoError(t, os.Truncate(d.file, 256<<20))
	if said, err := exec.Command("mkfs.ext4", "-q", "-F", d.file).CombinedOutput(); err != nil {
		return nil, "mkfs.ext4: " + err.Error() + " " + string(said)
	}
	if said, err := d.mount(); err != nil {
		return nil, "mount: " + err.Error() + " " + said
	}
	t.Cleanup(func() { _ = exec.Command("umount", "--lazy", d.dir).Run() })
	return d, ""
}

func (d *disk) mount() (said string, err error) {
	text, err := exec.Command("mount", "-o", "loop", d.file, d.dir).CombinedOutput()
	return string(text), err
}

const (
	ext4Shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN
	ext4NoLogFlush = 2          // what is not in the journal by now never will be
)

// cut cuts the power: nothing reaches the disk any more, of what was written and of
// what is going to be.
func (d *disk) cut(t *testing.T) {
	t.Helper()
	root, err := os.Open(d.dir)
	require.NoError(t, err)
	defer func() { require.NoError(t, root.Close()) }()
	flags := uint32(ext4NoLogFlush)
	_, _, no := syscall.Syscall(syscall.SYS_IOCTL, root.Fd(), ext4Shutdown, uintptr(unsafe.Pointer(&flags)))
	require.Zero(t, no, no.Error())
}

// restart mounts it again; whoever used it must be gone.
func (d *disk) restart(t *testing.T) {
	t.Helper()
	said, err := exec.Command("umount", d.dir).CombinedOutput()
	require.NoError(t, err, "%s", said)
	text, err := d.mount()
	require.NoError(t, err, text)
}
