package egress

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
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

// The addresses of cloud providers, as they stand and in every disguise that leads to
// them. The networks round them may be allowed: that opens none.
func TestProvidersAreBlocked(t *testing.T) {
	t.Parallel()
	shut, wide := guardDial(nil), guardDial(prefixes("0.0.0.0/0", "::/0"))
	for provider, addresses := range map[string][]string{
		"AWS":                          {"169.254.169.254", "169.254.169.253", "169.254.169.123", "fd00:ec2::254", "fd00:ec2::253", "fd00:ec2::123"},
		"AWS ECS, EKS":                 {"169.254.170.2", "169.254.170.23", "fd00:ec2::23"},
		"Azure":                        {"168.63.129.16", "169.254.169.254"},
		"GCP":                          {"169.254.169.254", "fd20:ce::254", "199.36.153.4", "199.36.153.7", "199.36.153.8", "199.36.153.11"},
		"OCI":                          {"169.254.169.254", "192.0.0.192", "fd00:c1::a9fe:a9fe"},
		"Alibaba":                      {"100.100.100.200"},
		"Tencent":                      {"169.254.0.23"},
		"IBM":                          {"161.26.0.10", "166.8.0.1", "166.11.255.255"},
		"Scaleway":                     {"169.254.169.254", "fd00:42::42"},
		"IPv4-mapped":                  {"::ffff:168.63.129.16", "::ffff:169.254.169.254", "::ffff:100.100.100.200", "::ffff:192.0.0.192"},
		"IPv4-compatible":              {"::168.63.129.16", "::169.254.169.254"},
		"SIIT":                         {"::ffff:0:168.63.129.16"},
		"NAT64":                        {"64:ff9b::168.63.129.16", "64:ff9b::a9fe:a9fe", "64:ff9b::100.100.100.200", "64:ff9b:1::168.63.129.16"},
		"NAT64, a prefix of one's own": {"2600:1f14:64::168.63.129.16", "2a01:111:64::a9fe:a9fe", "2606:4700:64::100.100.100.200"},
		"6to4":                         {"2002:a83f:8110::", "2002:a9fe:a9fe::1", "2002:6464:64c8::"},
		"Teredo":                       {"2001:0:4136:e378:8000:63bf:57c0:7eef"}, // 168.63.129.16, inverted
		"ISATAP":                       {"2600:1f14::5efe:a83f:8110", "2600:1f14::200:5efe:a9fe:a9fe"},
	} {
		for _, address := range addresses {
			to := netip.AddrPortFrom(netip.MustParseAddr(address), 80).String()
			for _, network := range []string{"tcp4", "tcp6"} {
				require.ErrorIs(t, shut(network, to, nil), ErrBlocked, "%s: %s", provider, address)
				require.ErrorIs(t, wide(network, to, nil), ErrBlocked, "%s: %s, in an allowed network", provider, address)
			}
		}
	}
}

// A provider's address is opened by a network as narrow as its own; and what is behind a
// translator's prefix by that and by its own network.
func TestProvidersAreOpenedByName(t *testing.T) {
	t.Parallel()
	for allow, addresses := range map[string]map[string]bool{
		"169.254.169.254/32":     {"169.254.169.254": true, "169.254.169.253": false, "::ffff:169.254.169.254": true, "64:ff9b::a9fe:a9fe": false},
		"169.254.0.0/16":         {"169.254.20.10": true, "169.254.169.254": false},
		"100.64.0.0/10":          {"100.100.100.201": true, "100.100.100.200": false},
		"166.8.0.0/14":           {"166.8.0.1": true},
		"fd00::/8":               {"fd00::1": true, "fd00:ec2::254": false},
		"fd00:ec2::254/128":      {"fd00:ec2::254": true},
		"64:ff9b::/96":           {"64:ff9b::93.184.216.34": true, "64:ff9b::10.0.0.1": false, "64:ff9b::127.0.0.1": false, "64:ff9b::a9fe:a9fe": false},
		"2002::/16":              {"2002:5db8:d822::": true, "2002:a00:1::": false},
		"64:ff9b::a00:1/128":     {"64:ff9b::10.0.0.1": false},
		"2600:1f14:64::/96":      {"2600:1f14:64::5db8:d822": true, "2600:1f14:64::a9fe:a9fe": false},
		"64:ff9b::a9fe:a9fe/128": {"2600::a9fe:a9fe": false},
	} {
		guard := guardDial(prefixes(allow))
		for address, ok := range addresses {
			ip := netip.MustParseAddr(address)
			network := "tcp6"
			if ip.Unmap().Is4() {
				network = "tcp4"
			}
			require.Equal(t, ok, guard(network, netip.AddrPortFrom(ip, 80).String(), nil) == nil, "%s with %s", address, allow)
		}
	}
	require.NoError(t, guardDial(nil)("tcp6", "[2606:2800:220:1::1]:443", nil), "an honest address")
}

// No error says where it came from, or which name server said so.
func TestReasonNamesNoAddress(t *testing.T) {
	t.Parallel()
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 9, 8, 7), Port: 80}, Err: err}
	}
	unknown := dial(&net.DNSError{Err: "no such host", Name: "vault.inside", Server: "10.9.8.7:53", IsNotFound: true})
	refused := dial(guardDial(nil)("tcp4", "10.9.8.7:80", nil))
	require.Equal(t, Reason(unknown), Reason(refused), "which names there are is nobody's business")
	for want, err := range map[string]error{
		Unknown:                                      dial(&net.DNSError{Err: "server misbehaving", Name: "vault.inside", Server: "10.9.8.7:53", IsTemporary: true}),
		"the connection was refused":                 dial(&os.SyscallError{Syscall: "connect", Err: syscall.ECONNREFUSED}),
		"there is no way to the host":                dial(&os.SyscallError{Syscall: "connect", Err: syscall.EHOSTUNREACH}),
		"no answer in time":                          dial(os.ErrDeadlineExceeded),
		"the connection ended before the answer did": &net.OpError{Op: "read", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 9, 8, 7)}, Err: syscall.ECONNRESET},
		"no TLS connection: the host's certificate, or its version of the protocol, is not acceptable": fmt.Errorf("tls: %w", tls.AlertError(40)),
		"the answer is not one of HTTP": errors.New(`malformed HTTP response "SSH-2.0-inside"`),
	} {
		require.Equal(t, want, Reason(err))
	}
}
