package pgpool

import (
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT, a constant missing in package syscall.
const tcpUserTimeout = 0x12

// giveUpAfter makes the kernel close a connection whose bytes are not acknowledged for d.
func giveUpAfter(d time.Duration) func(network, address string, raw syscall.RawConn) error {
	return func(network, _ string, raw syscall.RawConn) (err error) {
		// A socket in the file system has no network to lose bytes.
		if network == "unix" {
			return nil
		}

		control := raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(d.Milliseconds()))
		})

		if control != nil {
			return control
		}

		return err
	}
}
