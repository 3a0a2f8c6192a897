//go:build !linux

package pgpool

import (
	"syscall"
	"time"
)

// giveUpAfter does nothing: only Linux has a setting for unacknowledged bytes.
func giveUpAfter(time.Duration) func(network, address string, raw syscall.RawConn) error {
	return nil
}
