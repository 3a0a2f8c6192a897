//go:build !linux

package pgpool

import (
	"syscall"
	"time"
)

// giveUpAfter leaves it to the system, which has no such setting.
func giveUpAfter(time.Duration) func(network, address string, raw syscall.RawConn) error {
	return nil
}
