//go:build !linux

package main

import "testing"

// disk is a file system of its own, whose power can be cut: on Linux alone.
type disk struct{ dir string }

func newDisk(*testing.T) (*disk, string) { return nil, "needs Linux" }

func (*disk) cut(*testing.T)     {}
func (*disk) restart(*testing.T) {}
