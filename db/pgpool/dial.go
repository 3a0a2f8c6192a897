package pgpool

import (
	"net"
	"time"
)

// silence is after how long a connection is given up that carries nothing: what was sent is
// not acknowledged, or, on an idle one, three probes are not. Linux by itself would wait for
// a quarter of an hour, and a caller without a deadline with it.
const silence = 20 * time.Second

// dialer makes the connections of every pool.
func dialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 2, Interval: silence / 8, Count: 4},
		Control:         giveUpAfter(silence),
	}
}
