package main

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// The kernel's structures for interfaces, addresses and routes as they lie in
// memory on amd64, NetBSD 9 to 11.

// Address families and types (sys/socket.h, net/if_types.h).
const (
	familyInet  = 2
	familyLink  = 18
	familyInet6 = 24
	ifTypeEther = 6
)

// Sizes in bytes.
const (
	sizeIfreq     = 144 // net/if.h: a name and a sockaddr_storage
	sizeIfalias   = 64  // net/if.h, struct ifaliasreq
	sizeIn6Alias  = 128 // netinet6/in6_var.h, struct in6_aliasreq
	sizeSockIn    = 16
	sizeSockIn6   = 28
	sizeName      = 16
	sizeRTHeader  = 120 // net/route.h, struct rt_msghdr
	sizeBPFHeader = 26  // net/bpf.h, struct bpf_hdr up to bh_hdrlen
	infinite      = 0xffffffff
	rtmVersion    = 4
	rtmAdd        = 1
	rtfUp         = 0x1
	rtfGateway    = 0x2
	rtfStatic     = 0x800
	rtaDst        = 0x1
	rtaGateway    = 0x2
	rtaNetmask    = 0x4
	bpfAlign      = 8
	maxIfconf     = 256 * sizeIfreq
	sdlNameAt     = 8 // net/if_dl.h, sdl_data
)

// iface is an interface of this machine.
type iface struct {
	name  string
	index uint16
	mac   mac
}

// parseIfconf reads what SIOCGIFCONF gives: an ifreq for each address of each
// interface. One with an Ethernet address is listed.
func parseIfconf(b []byte) (list []iface) {
	for ; len(b) >= sizeIfreq; b = b[sizeIfreq:] {
		sa := b[sizeName:sizeIfreq]
		if sa[1] != familyLink || sa[4] != ifTypeEther || sa[6] != 6 || sdlNameAt+int(sa[5])+6 > len(sa) {
			continue
		}
		name, _, _ := strings.Cut(string(b[:sizeName]), "\x00")
		list = append(list, iface{name, binary.LittleEndian.Uint16(sa[2:]), mac(sa[sdlNameAt+int(sa[5]):][:6])})
	}
	return list
}

// ifreq is a request about an interface; value is its ifr_flags, ifr_mtu or so.
func ifreq(name string, value []byte) []byte {
	b := make([]byte, sizeIfreq)
	copy(b[:sizeName-1], name)
	copy(b[sizeName:], value)
	return b
}

// sockaddr is an address as the kernel takes it. index is the interface of a
// link-local one, which the kernel wants within its third and fourth byte.
func sockaddr(a netip.Addr, index uint16) []byte {
	if a.Is4() {
		b := make([]byte, sizeSockIn)
		v := a.As4()
		b[0], b[1] = sizeSockIn, familyInet
		copy(b[4:], v[:])
		return b
	}
	b := make([]byte, sizeSockIn6)
	v := a.As16()
	b[0], b[1] = sizeSockIn6, familyInet6
	if a.IsLinkLocalUnicast() {
		binary.BigEndian.PutUint16(v[2:], index)
	}
	copy(b[8:], v[:])
	return b
}

// netmask is the mask of a prefix.
func netmask(p netip.Prefix) netip.Addr {
	b := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// ifalias is SIOCAIFADDR's struct ifaliasreq: address, broadcast address, mask.
func ifalias(name string, p netip.Prefix) []byte {
	b := make([]byte, sizeIfalias)
	copy(b[:sizeName-1], name)
	copy(b[16:], sockaddr(p.Addr(), 0))
	last, mask := p.Addr().As4(), netmask(p).As4()
	for i := range last {
		last[i] |= ^mask[i]
	}
	if !p.Addr().IsLoopback() {
		copy(b[32:], sockaddr(netip.AddrFrom4(last), 0))
	}
	copy(b[48:], sockaddr(netmask(p), 0))
	return b
}

// in6alias is SIOCAIFADDR_IN6's struct in6_aliasreq, with no end to the
// address's life: nothing would renew it.
func in6alias(name string, p netip.Prefix) []byte {
	b := make([]byte, sizeIn6Alias)
	copy(b[:sizeName-1], name)
	copy(b[16:], sockaddr(p.Addr(), 0))
	copy(b[72:], sockaddr(netmask(p), 0))
	binary.LittleEndian.PutUint32(b[120:], infinite)
	binary.LittleEndian.PutUint32(b[124:], infinite)
	return b
}

// addDefault is the routing message that adds a default route (route(4)).
func addDefault(gateway netip.Addr, index uint16, seq uint32) []byte {
	b := make([]byte, sizeRTHeader)
	b[2], b[3] = rtmVersion, rtmAdd
	le := binary.LittleEndian
	le.PutUint16(b[4:], index)
	le.PutUint32(b[8:], rtfUp|rtfGateway|rtfStatic)
	le.PutUint32(b[12:], rtaDst|rtaGateway|rtaNetmask)
	le.PutUint32(b[20:], seq)
	any := netip.IPv4Unspecified()
	if gateway.Is6() {
		any = netip.IPv6Unspecified()
	}
	for _, a := range []netip.Addr{any, gateway, any} {
		b = append(b, sockaddr(a, index)...)
		for len(b)%8 != 0 { // RT_ROUNDUP
			b = append(b, 0)
		}
	}
	le.PutUint16(b, uint16(len(b)))
	return b
}

// packets are the frames in what a read of a packet filter gave (bpf(4)).
func packets(b []byte) (frames [][]byte) {
	for len(b) >= sizeBPFHeader {
		caplen, hdrlen := int(binary.LittleEndian.Uint32(b[16:])), int(binary.LittleEndian.Uint16(b[24:]))
		if hdrlen < sizeBPFHeader || caplen > len(b)-hdrlen {
			return frames
		}
		frames = append(frames, b[hdrlen:hdrlen+caplen])
		next := (hdrlen + caplen + bpfAlign - 1) &^ (bpfAlign - 1)
		b = b[min(next, len(b)):]
	}
	return frames
}

// insn is an instruction of a packet filter (struct bpf_insn).
type insn struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// wanted lets through datagrams for a DHCP client and router advertisements, so
// that the filter costs the command's own packets nothing.
var wanted = []insn{
	{0x28, 0, 0, 12},            // 0: ldh [12]
	{0x15, 0, 5, typeIPv4},      // 1: IPv4, or to 7
	{0x30, 0, 0, 23},            // 2: ldb [23], the protocol
	{0x15, 0, 9, protoUDP},      // 3: UDP, or to 13
	{0xb1, 0, 0, ethHeader},     // 4: ldx 4*([14]&15)
	{0x48, 0, 0, 16},            // 5: ldh [x+16], the destination's port
	{0x15, 5, 6, portClient},    // 6: to 12 or 13
	{0x15, 0, 5, typeIPv6},      // 7: IPv6, or to 13
	{0x30, 0, 0, 20},            // 8: ldb [20], the next header
	{0x15, 0, 3, protoICMPv6},   // 9: ICMPv6, or to 13
	{0x30, 0, 0, 54},            // 10: ldb [54], the type
	{0x15, 0, 1, icmpRouterAdv}, // 11: an advertisement, or to 13
	{0x06, 0, 0, 0xffff},        // 12: let all of it through
	{0x06, 0, 0, 0},             // 13: drop it
}
