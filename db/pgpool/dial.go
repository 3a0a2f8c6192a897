package pgpool

import (
	"net"
	"time"
)

// silence is the time after which a connection without answers is closed: sent bytes are
// not acknowledged, or three keepalive probes of an idle connection. Linux would wait for
// a quarter of an hour, and with the connection a caller without a deadline.
const silence = 20 * time.Second

// dialer returns the dialer for the connections of every pool.
func dialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 2, Interval: silence / 8, Count: 4},
		Control:         giveUpAfter(silence),
	}
}
