package netstack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Where fields are in an ARP message for Ethernet and IPv4 (RFC 826).
const (
	arpLen                                               = 28
	arpOp, arpSenderMAC, arpSenderIP, arpTargetIP        = 6, 8, 14, 24
	arpRequest, arpReply                                 = 1, 2
	arpEthernetIPv4                               uint64 = 0x0001_0800_06_04 // the first six bytes
)

// Protocol numbers (IANA), as far as the outside of a packet needs them.
const (
	protoHopByHop = 0
	protoTCP      = 6
	protoUDP      = 17
	protoFrag6    = 44
	protoICMPv6   = 58

	dhcpServerPort = 67
	dhcpClientPort = 68
)

// filter says whether gVisor gets a frame of the guest's, a private copy of at
// least an Ethernet header. What it does not get has been dealt with here:
// answered, or dropped and counted. It is the one place where a source that is
// not the guest's, or a destination that is no one's, is found.
func (s *Stack) filter(frame []byte, gso bool) bool {
	dst, src := frame[0:6], frame[6:12]
	if src[0]&1 != 0 || [6]byte(src) == s.cfg.MAC {
		s.stats.spoofed.Add(1)
		return false
	}
	if dst[0]&1 == 0 && [6]byte(dst) != s.cfg.MAC {
		s.stats.unroutable.Add(1) // to a station that is not there
		return false
	}
	packet := frame[ethLen:]
	switch tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(frame[12:])) {
	case header.ARPProtocolNumber:
		return s.filterARP(src, packet)
	case header.IPv4ProtocolNumber:
		return s.filter4(src, packet, gso)
	case header.IPv6ProtocolNumber:
		if !s.cfg.NoIPv6 {
			return s.filter6(packet, gso)
		}
	}
	s.stats.guestBad.Add(1)
	return false
}

// filterARP lets through requests for the gateway's own addresses and what the
// guest says of its own: gVisor, answering in the world's name, would claim any.
func (s *Stack) filterARP(src, p []byte) bool {
	if len(p) < arpLen || binary.BigEndian.Uint64(p)>>16 != arpEthernetIPv4 {
		s.stats.guestBad.Add(1)
		return false
	}
	sender := netip.AddrFrom4([4]byte(p[arpSenderIP:]))
	if !s.isGuest(sender) && !sender.IsUnspecified() || string(p[arpSenderMAC:arpSenderMAC+6]) != string(src) {
		s.stats.spoofed.Add(1)
		return false
	}
	switch binary.BigEndian.Uint16(p[arpOp:]) {
	case arpRequest: // one for another address, the guest's own among them, has no answer
		return s.isOurs(netip.AddrFrom4([4]byte(p[arpTargetIP:])))
	case arpReply:
		return !sender.IsUnspecified()
	}
	s.stats.guestBad.Add(1)
	return false
}

func (s *Stack) filter4(mac, p []byte, gso bool) bool {
	ip := header.IPv4(p)
	if !ip.IsValid(len(p)) {
		s.stats.guestBad.Add(1)
		return false
	}
	src, dst := netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
	fragment := ip.More() || ip.FragmentOffset() != 0
	if ip.Protocol() == protoUDP && !fragment && (src.IsUnspecified() || s.isGuest(src)) {
		if u := ip.Payload(); len(u) >= header.UDPMinimumSize && header.UDP(u).DestinationPort() == dhcpServerPort &&
			header.UDP(u).SourcePort() == dhcpClientPort {
			s.handleDHCP(mac, ip)
			return false
		}
	}
	if !s.isGuest(src) {
		s.stats.spoofed.Add(1)
		return false
	}
	if !gso && int(ip.TotalLength()) > s.cfg.MTU {
		s.tooBig(header.IPv4ProtocolNumber, ip, uint32(s.cfg.MTU))
		return false
	}
	switch s.place(dst) {
	case placeOurs:
		return true
	case placeWorld:
		return !s.cfg.HostOnly || s.noWhere()
	case placeLink:
		s.unreachable(header.IPv4ProtocolNumber, ip, unreachHost)
	}
	return s.noWhere()
}

// noWhere counts a packet that cannot go anywhere.
func (s *Stack) noWhere() bool {
	s.stats.unroutable.Add(1)
	return false
}

func (s *Stack) filter6(p []byte, gso bool) bool {
	ip := header.IPv6(p)
	if !ip.IsValid(len(p)) {
		s.stats.guestBad.Add(1)
		return false
	}
	src, dst := netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
	if src.Is4In6() || dst.Is4In6() { // never on a wire (RFC 6890), and the host would take it for IPv4
		return s.noWhere()
	}
	payload := ip.Payload()
	proto := ip.NextHeader()
	fragment := proto == protoFrag6
	if fragment && len(payload) >= header.IPv6FragmentHeaderSize {
		proto = payload[0]
	}
	if !s.isGuest(src) && !(src.IsUnspecified() && proto == protoICMPv6 && !fragment) {
		s.stats.spoofed.Add(1)
		return false
	}
	s.learn6(src)
	if !gso && lengthIPv6(ip) > s.cfg.MTU {
		s.tooBig(header.IPv6ProtocolNumber, ip, uint32(s.cfg.MTU))
		return false
	}
	if proto == protoICMPv6 && !fragment {
		return s.filterICMPv6(src, dst, ip)
	}
	if ip.NextHeader() == protoHopByHop { // multicast listener reports (RFC 3810): there is no one to tell
		return s.noWhere()
	}
	// Other extension headers are for routers that are not here, and could hide
	// an echo request that gVisor would answer itself; so could fragments.
	switch proto {
	case protoTCP, protoUDP:
	case protoICMPv6:
		payload[0] = protoParts
	default:
		s.stats.guestBad.Add(1)
		return false
	}
	switch s.place(dst) {
	case placeOurs:
		return true
	case placeWorld:
		return !s.cfg.HostOnly || s.noWhere()
	case placeLink:
		s.unreachable(header.IPv6ProtocolNumber, ip, unreachHost)
	}
	return s.noWhere()
}

// learn6 takes note of the guest's address, for DialContext.
func (s *Stack) learn6(a netip.Addr) {
	if !a.IsValid() || !s.cfg.Subnet6.Contains(a) || s.isOurs(a) {
		return
	}
	if last := s.lastGuest6.Load(); last == nil || *last != a {
		s.lastGuest6.Store(&a)
	}
}

func lengthIPv6(ip header.IPv6) int { return header.IPv6MinimumSize + int(ip.PayloadLength()) }

// filterICMPv6 keeps neighbour discovery to what is true on this link, answers
// router solicitations, and carries echo requests on.
func (s *Stack) filterICMPv6(src, dst netip.Addr, ip header.IPv6) bool {
	m := header.ICMPv6(ip.Payload())
	if len(m) < header.ICMPv6MinimumSize {
		s.stats.guestBad.Add(1)
		return false
	}
	var target netip.Addr
	if len(m) >= header.ICMPv6NeighborSolicitMinimumSize {
		target = netip.AddrFrom16([16]byte(m[8:]))
	}
	switch m.Type() {
	case header.ICMPv6RouterSolicit:
		s.advertise()
		return false
	case header.ICMPv6NeighborSolicit:
		if src.IsUnspecified() { // it is about to take this address (RFC 4862 §5.4.2)
			s.learn6(target)
		}
		return target.IsValid() && s.isOurs(target) // duplicates of the guest's own address are not ours to see
	case header.ICMPv6NeighborAdvert:
		if !target.IsValid() || !s.isGuest(target) {
			s.stats.spoofed.Add(1)
			return false
		}
		return true
	case header.ICMPv6RouterAdvert, header.ICMPv6RedirectMsg:
		s.stats.spoofed.Add(1)
		return false
	}
	if src.IsUnspecified() {
		return s.noWhere()
	}
	switch s.place(dst) {
	case placeOurs:
		return true
	case placeWorld:
		if m.Type() == header.ICMPv6EchoRequest && !s.cfg.HostOnly {
			if s.validEcho6(ip) {
				s.echo(src, dst, m, ip)
			}
			return false
		}
	case placeLink:
		s.unreachable(header.IPv6ProtocolNumber, ip, unreachHost)
	}
	return s.noWhere()
}

// askAsGateway has gVisor ask for the guest's link address in the gateway's name:
// it does so in the name of whoever has sent the guest something, which some guests
// do not answer, and which would have them take a stranger for a neighbour.
func (s *Stack) askAsGateway(pkt *stack.PacketBuffer) {
	n := pkt.NetworkHeader().Slice()
	if pkt.NetworkProtocolNumber == header.ARPProtocolNumber {
		if len(n) >= arpLen && !s.isOurs(netip.AddrFrom4([4]byte(n[arpSenderIP:]))) {
			copy(n[arpSenderIP:], s.cfg.Gateway.AsSlice())
		}
		return
	}
	if len(n) < header.IPv6MinimumSize || n[6] != protoICMPv6 {
		return
	}
	if len(pkt.TransportHeader().Slice()) > 0 {
		unhideParts(pkt)
		return
	}
	b, _ := pkt.Data().PullUp(pkt.Data().Size()) // gVisor has the whole solicitation there
	m := header.ICMPv6(b)
	if len(m) < header.ICMPv6NeighborSolicitMinimumSize || m.Type() != header.ICMPv6NeighborSolicit {
		return
	}
	ip := header.IPv6(n)
	if src := netip.AddrFrom16([16]byte(n[8:])); s.isOurs(src) || src.IsUnspecified() {
		return
	}
	ip.SetSourceAddress(tcpip.AddrFromSlice(s.gateway6.AsSlice()))
	m.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: m, Src: ip.SourceAddress(), Dst: ip.DestinationAddress(),
	}))
}

// place is where an address is, as seen by the guest.
type place int

const (
	placeNowhere place = iota // no packet may go there
	placeOurs                 // the gateway
	placeLink                 // on the link, and not the gateway: no one is there
	placeWorld
)

// place must be right about every address that the host would take for itself:
// a guest's 127.0.0.1, 0.0.0.0 or ::1 is not the host's.
func (s *Stack) place(a netip.Addr) place {
	switch {
	case s.isOurs(a):
		return placeOurs
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.Is4In6():
		return placeNowhere
	}
	if a.Is4() {
		b := a.As4()
		switch {
		case b[0] == 0 || b[0] == 127 || b[0] >= 240: // RFC 1122 §3.2.1.3; 255.255.255.255 among them
			return placeNowhere
		case a == lastAddr(s.cfg.Subnet) || a == s.cfg.Subnet.Addr():
			return placeNowhere
		case s.cfg.Subnet.Contains(a):
			return placeLink
		}
		return placeWorld
	}
	switch b := a.As16(); {
	case s.cfg.NoIPv6, a.IsLinkLocalUnicast(): // link-local is this link only
		return placeNowhere
	case s.cfg.Subnet6.Contains(a):
		return placeLink
	case b[0]&0xe0 == 0x20, b[0]&0xfe == 0xfc: // global unicast and ULA (RFC 4291 §2.4, RFC 4193)
		return placeWorld
	case binary.BigEndian.Uint32(b[:]) == 0x0064ff9b: // NAT64 (RFC 6052 §2.1, RFC 8215)
		return placeWorld
	}
	return placeNowhere
}
