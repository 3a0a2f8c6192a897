package main

import "syscall"

func mountSmall(dir string) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m") // a test's
}

func unmount(dir string) error { return syscall.Unmount(dir, syscall.MNT_DETACH) } // a test's
