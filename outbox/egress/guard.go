package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"code.dny.dev/ssrf"
)

// providers are addresses at which a cloud provider answers the machines of its customers: with
// credentials, with configuration, or as a gateway to private services. Some are in blocks that
// are formally public.
var providers = prefixes(
	"169.254.169.0/24",                   // AWS, GCP, Azure, OCI, DigitalOcean, IBM, Hetzner: metadata
	"169.254.170.0/24",                   // AWS: credentials of ECS tasks and EKS pods
	"169.254.0.23/32",                    // Tencent: metadata
	"168.63.129.16/32",                   // Azure: WireServer, which has the machine's certificates
	"100.100.100.200/32",                 // Alibaba: metadata
	"192.0.0.192/32",                     // OCI: metadata of older machines
	"199.36.153.4/30", "199.36.153.8/30", // GCP: restricted.googleapis.com, private.googleapis.com
	"166.8.0.0/14", "161.26.0.0/16", // IBM: private endpoints of its services
	"fd00:ec2::/32",          // AWS: metadata, credentials of EKS pods, names, time
	"fd20:ce::/32",           // GCP: metadata
	"fd00:c1::a9fe:a9fe/128", // OCI: metadata
	"fd00:42::42/128",        // Scaleway: metadata
)

// metadata are the IPv4 addresses of metadata services. An IPv6 address that ends in such an
// address is taken for the same address behind a translator's prefix. By chance, one IPv6 address
// in a hundred million ends so.
var metadata = prefixes(
	"169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32", "169.254.0.23/32", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32",
)

func prefixes(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		all[i] = netip.MustParsePrefix(text)
	}
	return all
}

// guard decides which addresses may be called.
type guard struct {
	allow  []netip.Prefix
	public *ssrf.Guardian
}

// guardDial returns a dialer's control function, which refuses an address before a packet leaves.
// Public addresses and allowed networks may be called.
func guardDial(allow []netip.Prefix) func(network, address string, c syscall.RawConn) error {
	g := guard{allow: allow, public: ssrf.New()}
	return func(network, address string, c syscall.RawConn) error {
		if err := g.check(network, address, c); err != nil {
			return fmt.Errorf("%w: %w", ErrBlocked, err)
		}
		return nil
	}
}

func (g guard) check(network, address string, c syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || !strings.HasPrefix(network, "tcp") {
		return g.public.Safe(network, address, c) //nolint:wrapcheck // the caller wraps it
	}

	// An IPv4 address in IPv6 notation is the same destination.
	ip := to.Addr().Unmap()
	// Before the allowed networks: a network such as 169.254.0.0/16 is not meant to open a metadata
	// service.
	if g.closed(providers, ip, ip) {
		return fmt.Errorf("%s is a cloud provider's", ip)
	}
	// A translator would forward the packet to the inner address.
	if inner, ok := translation(ip); ok && g.closed(providers, inner, ip) {
		return fmt.Errorf("%s holds %s, which is a cloud provider's", ip, inner)
	}
	if inner := last(ip); ip.Is6() && g.closed(metadata, inner, ip) {
		return fmt.Errorf("%s ends in %s, which is a cloud provider's", ip, inner)
	}
	// Allowed networks may be called on every port.
	if contains(g.allow, ip) {
		return g.translated(ip, to.Port())
	}

	return g.public.Safe(network, address, c) //nolint:wrapcheck // the caller wraps it
}

// closed reports whether an address is in one of the blocks and no allowed network opens it. An
// allowed network opens a block only if it is as narrow as the block: 100.64.0.0/10 leaves
// 100.100.100.200 closed. ip is the address that is dialled, which is the address or contains it;
// a network of ip alone always opens it.
func (g guard) closed(these []netip.Prefix, address, ip netip.Addr) bool {
	for _, p := range these {
		if p.Contains(address) {
			return !slices.ContainsFunc(g.allow, func(open netip.Prefix) bool {
				return open.Contains(address) && open.Bits() >= p.Bits() || open.Contains(ip) && open.IsSingleIP()
			})
		}
	}
	return false
}

// translated checks an allowed IPv6 address by the IPv4 address that a translator makes of it: to
// allow 64:ff9b::/96 is to allow the public internet behind the translator, not private addresses.
func (g guard) translated(ip netip.Addr, port uint16) error {
	inner, ok := translation(ip)
	if !ok || contains(g.allow, inner) {
		return nil
	}
	return g.public.SafeAddrPort(netip.AddrPortFrom(inner, port)) //nolint:wrapcheck // the caller wraps it
}

func contains(all []netip.Prefix, ip netip.Addr) bool {
	return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// translators are the prefixes of addresses that end in an IPv4 address by definition: RFC 6052,
// 8215, 4291 (compatible), 7915.
var translators = prefixes("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")

var (
	sixToFour = netip.MustParsePrefix("2002::/16") // RFC 3056: bytes 2 to 5
	teredo    = netip.MustParsePrefix("2001::/32") // RFC 4380: bytes 4 to 7 the server; the last four, inverted, the client
)

// translation returns the IPv4 address in an address of a well-known translator's prefix.
func translation(ip netip.Addr) (netip.Addr, bool) {
	b := ip.As16()
	switch {
	case ip.Is4():
		return netip.Addr{}, false
	case contains(translators, ip):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(ip):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case teredo.Contains(ip):
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}), true
	}
	return netip.Addr{}, false
}

// last returns the last four bytes as an IPv4 address, as in addresses of ISATAP and of translators
// with a network-specific prefix.
func last(ip netip.Addr) netip.Addr {
	b := ip.As16()
	return netip.AddrFrom4([4]byte(b[12:16]))
}
