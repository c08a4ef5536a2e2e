package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/smolvmm/smolvmm/netstack/audit"
	"github.com/smolvmm/smolvmm/netstack/policy"
)

// The network that a guest finds when nothing else is said: the addresses that
// QEMU's user network made customary and that images have written in them.
const (
	DefaultSubnet  = "10.0.2.0/24"
	DefaultSubnet6 = "fd73:6d6f:6c76::/64" // a ULA (RFC 4193 §3) whose global ID spells "smolv"

	DefaultMTU = 1500
	MinMTU     = 1280  // IPv6 cannot do with less (RFC 8200 §5)
	MaxMTU     = 65520 // 65,535 less a header or so: what virtio-net's peers take as the largest
)

// Answerer is a DNS server: it answers one query (RFC 1035 §4.1), or gives nil
// where there is nothing to say. It is called from many goroutines at once.
type Answerer interface {
	Answer(ctx context.Context, query []byte, overTCP bool) []byte
}

// Config is a machine's network. Its zero value is one: open to everything that
// the host reaches except the host's own loopback, and without DNS.
type Config struct {
	// Subnet is the IPv4 network between guest and gateway. Gateway, DNS and
	// Guest are addresses in it: by default its 2nd, 3rd and 15th.
	Subnet              netip.Prefix
	Gateway, DNS, Guest netip.Addr
	// Subnet6 is the IPv6 network, a /64, in which the guest makes itself an
	// address (SLAAC). The gateway is its 2nd address, DNS its 3rd.
	Subnet6 netip.Prefix
	// NoIPv6 leaves IPv6 out: no advertisements, no answers.
	NoIPv6 bool
	// Sources are addresses that the guest may use as its own besides Guest,
	// Subnet6 and link-local ones.
	Sources []netip.Prefix

	// MTU is the largest payload of a frame, in bytes: MinMTU to MaxMTU.
	MTU int
	// MAC is the gateway's, GuestMAC the guest's where it is known: the guest's
	// IPv6 address is reckoned from it until the guest has shown one.
	MAC, GuestMAC [6]byte

	// HostOnly is a link that reaches nothing but this Stack's DialContext and
	// Listen: no router and no DNS are announced.
	HostOnly bool
	// HostServices are the ports of the host's loopback that the guest reaches
	// at the gateway's address, TCP and UDP.
	HostServices []uint16

	// Hostname and SearchDomain are announced to the guest; none by default.
	Hostname, SearchDomain string

	// Dial connects to the world ("tcp" and "udp", an address and port); by
	// default net.Dialer does. What it returns is used best when it has
	// CloseWrite, SetLinger and SyscallConn, as net's own connections have.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Ping gives a connection to dst over which ICMP or ICMPv6 echo messages are
	// written and read, from their type on; by default PingSocket does.
	Ping func(ctx context.Context, dst netip.Addr) (net.Conn, error)
	// NameServer answers queries to port 53 of the gateway's and the DNS address;
	// without one they are refused.
	NameServer Answerer

	// Policy says what of the world the guest may reach; a nil one is open.
	// HostServices and what Listen opened it is not asked about.
	Policy *policy.Policy
	// Audit is told of every denial, from the packet path: it must not block.
	Audit func(audit.Event)

	Limits Limits
	// Log gets what an operator wants to know of, not what a guest does wrong.
	Log *slog.Logger
}

// Limits bound what a guest makes the host hold. A zero is the default.
type Limits struct {
	Connections int // TCP to the world at once, those being made included: 2,048
	Handshakes  int // of them being made: 512
	Flows       int // UDP and echo flows at once: 1,024

	UDPIdle     time.Duration // of a UDP flow: 2 minutes (RFC 4787 §4.3)
	DialTimeout time.Duration // for a connection to the world: 2 minutes, as long as a Linux guest tries
}

const (
	// A socket of the host's each: together with the flows below the 4,096 that
	// most hosts let a process have.
	defaultConnections = 2048
	defaultHandshakes  = 512
	defaultFlows       = 1024
	defaultUDPIdle     = 2 * time.Minute
	defaultDialTimeout = 2 * time.Minute

	// maxLimit keeps counts that come from a configuration sensible: there are
	// no more ports than this for one pair of addresses.
	maxLimit = 1 << 16
)

// nth is the address at an offset in a prefix.
func nth(p netip.Prefix, n byte) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	b[len(b)-1] |= n
	a, _ := netip.AddrFromSlice(b)
	return a
}

// withDefaults fills in what is not set, and says what cannot be.
func (c Config) withDefaults() (Config, error) {
	if !c.Subnet.IsValid() {
		c.Subnet = netip.MustParsePrefix(DefaultSubnet)
	}
	c.Subnet = c.Subnet.Masked()
	if !c.Subnet.Addr().Is4() || c.Subnet.Bits() > 28 || c.Subnet.Bits() < 8 {
		return c, fmt.Errorf("the subnet %v: an IPv4 network from /8 to /28 is wanted", c.Subnet)
	}
	for _, a := range []struct {
		addr *netip.Addr
		n    byte
		name string
	}{{&c.Gateway, 2, "gateway"}, {&c.DNS, 3, "DNS"}, {&c.Guest, 0, "guest"}} {
		if !a.addr.IsValid() {
			n := a.n
			if n == 0 { // the 15th is the broadcast address of a /28
				n = 15
				if c.Subnet.Bits() == 28 {
					n = 14
				}
			}
			*a.addr = nth(c.Subnet, n)
		}
		if !c.Subnet.Contains(*a.addr) || *a.addr == c.Subnet.Addr() || *a.addr == lastAddr(c.Subnet) {
			return c, fmt.Errorf("the %s address %v is no host of the subnet %v", a.name, *a.addr, c.Subnet)
		}
	}
	if c.Gateway == c.DNS || c.Gateway == c.Guest || c.DNS == c.Guest {
		return c, fmt.Errorf("gateway %v, DNS %v and guest %v need an address each", c.Gateway, c.DNS, c.Guest)
	}
	if !c.Subnet6.IsValid() {
		c.Subnet6 = netip.MustParsePrefix(DefaultSubnet6)
	}
	c.Subnet6 = c.Subnet6.Masked()
	if !c.Subnet6.Addr().Is6() || c.Subnet6.Addr().Is4In6() || c.Subnet6.Bits() != 64 {
		return c, fmt.Errorf("the subnet %v: an IPv6 network of 64 bits is wanted, for SLAAC (RFC 4862 §5.5.3)", c.Subnet6)
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.MTU < MinMTU || c.MTU > MaxMTU {
		return c, fmt.Errorf("an MTU of %d: %d to %d bytes are possible", c.MTU, MinMTU, MaxMTU)
	}
	if c.MAC == ([6]byte{}) {
		c.MAC = [6]byte{0x02, 's', 'm', 'o', 'l', 2} // locally administered (IEEE 802 §8.2)
	}
	if c.MAC[0]&1 != 0 || c.GuestMAC[0]&1 != 0 || c.MAC == c.GuestMAC {
		return c, errors.New("the MAC addresses of gateway and guest must differ and be no multicast ones")
	}
	if len(c.Hostname) > 64 || len(c.SearchDomain) > 253 { // a DHCP option has 255 bytes, a name 253 (RFC 1035 §2.3.4)
		return c, errors.New("the host name has at most 64 bytes, the search domain 253")
	}
	c.HostServices = slices.Clone(c.HostServices)
	c.Sources = slices.Clone(c.Sources)
	if c.Dial == nil {
		d := &net.Dialer{KeepAlive: -1} // the guest's affair
		c.Dial = d.DialContext
	}
	if c.Ping == nil {
		c.Ping = PingSocket
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, l := range []struct {
		n   *int
		def int
	}{{&c.Limits.Connections, defaultConnections}, {&c.Limits.Handshakes, defaultHandshakes}, {&c.Limits.Flows, defaultFlows}} {
		if *l.n == 0 {
			*l.n = l.def
		}
		if *l.n < 0 || *l.n > maxLimit {
			return c, fmt.Errorf("a limit of %d: 1 to %d are possible", *l.n, maxLimit)
		}
	}
	if c.Limits.UDPIdle <= 0 {
		c.Limits.UDPIdle = defaultUDPIdle
	}
	if c.Limits.DialTimeout <= 0 {
		c.Limits.DialTimeout = defaultDialTimeout
	}
	return c, nil
}

// lastAddr is the broadcast address of an IPv4 network.
func lastAddr(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}
