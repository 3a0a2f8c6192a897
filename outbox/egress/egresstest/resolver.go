// Package egresstest plays what a name may do.
package egresstest

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// Resolver asks a name server that knows one IPv4 address for every name. The zero
// address is that of a name that it does not know.
func Resolver(t *testing.T, answer func() netip.Addr) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() { _ = server.Close(); <-done })
	go func() {
		defer close(done)

		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}

			end := 12
			for buf[end] != 0 {
				end += int(buf[end]) + 1
			}

			end += 5 // the root label, type and class
			if n < end {
				continue
			}

			reply := append([]byte{}, buf[:end]...)
			reply[2], reply[3] = 0x81, 0x80
			binary.BigEndian.PutUint16(reply[8:], 0)
			binary.BigEndian.PutUint16(reply[10:], 0)
			if reply[6], reply[7] = 0, 0; binary.BigEndian.Uint16(reply[end-4:]) == 1 {
				if ip := answer(); ip.IsValid() {
					bytes := ip.As4()
					reply[7] = 1
					reply = append(reply, 0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
					reply = append(reply, bytes[:]...)
				} else {
					reply[3] |= 3 // NXDOMAIN
				}
			}

			_, _ = server.WriteTo(reply, from)
		}
	}()

	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp4", server.LocalAddr().String())
	}}
}
