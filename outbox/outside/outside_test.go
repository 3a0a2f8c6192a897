package outside

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAllow(t *testing.T) {
	t.Parallel()

	guard := guardDial([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")})
	for address, ok := range map[string]bool{
		"93.184.216.34:443": true, "93.184.216.34:80": true, "93.184.216.34:8080": false, "10.1.2.3:5432": true, "[::ffff:10.1.2.3]:5432": true, "10.2.0.1:443": false,
		"[fd00:1::5]:8080": true, "[fd00:2::5]:443": false, "127.0.0.1:80": false, "nonsense": false, "[2606:2800:220:1::1]:443": true,
	} {
		network := "tcp4"
		if strings.HasPrefix(address, "[") {
			network = "tcp6"
		}
		require.Equal(t, ok, guard(network, address, nil) == nil, address)
	}
	require.ErrorIs(t, guard("udp4", "10.1.2.3:53", nil), ErrBlocked)
	require.Nil(t, NewClient(Config{}).Transport.(*http.Transport).Proxy, "no proxy, whatever the environment says")
}

// Addresses that lead inside, as they stand and in the disguises of IPv6.
func TestInsideIsBlocked(t *testing.T) {
	t.Parallel()
	guard := guardDial(nil)
	for _, address := range []string{
		"127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "169.254.169.254", "fd00:ec2::254", "fd00::1", "fe80::1", "64:ff9b::7f00:1",
		"64:ff9b::a9fe:a9fe", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "2002:7f00:1::", "100.64.0.1", "10.0.0.1",
		"172.16.0.1", "192.168.1.1", "255.255.255.255", "224.0.0.1", "198.18.0.1",
	} {
		for _, network := range []string{"tcp4", "tcp6"} {
			require.ErrorIs(t, guard(network, netip.AddrPortFrom(netip.MustParseAddr(address), 80).String(), nil), ErrBlocked, address)
		}
	}
}
