package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// handleDHCP answers a datagram from port 68 to port 67. The answer is made as a
// frame here, as the client has no address to which gVisor could find a way.
func (s *Stack) handleDHCP(mac []byte, ip header.IPv4) {
	u := header.UDP(ip.Payload())
	if int(u.Length()) > len(u) || u.Length() < header.UDPMinimumSize {
		s.stats.guestBad.Add(1)
		return
	}
	dst := netip.AddrFrom4([4]byte(ip.DestinationAddressSlice()))
	if dst != s.cfg.Gateway && dst != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && dst != lastAddr(s.cfg.Subnet) {
		s.stats.unroutable.Add(1)
		return
	}
	body := u[header.UDPMinimumSize:u.Length()]
	m, err := parseDHCP(body)
	if err != nil || string(m.chaddr[:]) != string(mac) {
		s.stats.guestBad.Add(1)
		return
	}
	reply, to := s.answerDHCP(m)
	if reply == nil {
		return
	}
	s.stats.dhcp.Add(1)
	target := tcpip.LinkAddress(m.chaddr[:])
	if to == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		target = header.EthernetBroadcastAddress
	}
	s.link.pushFrame(s.udpFrame(target, to, reply))
}

// udpFrame is a frame with a datagram from the gateway's DHCP port to a client's.
func (s *Stack) udpFrame(mac tcpip.LinkAddress, to netip.Addr, payload []byte) *buffer.View {
	size := header.UDPMinimumSize + len(payload)
	v := buffer.NewViewSize(ethLen + header.IPv4MinimumSize + size)
	b := v.AsSlice()
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: s.link.mac, DstAddr: mac, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(b[ethLen:])
	from, dst := tcpip.AddrFromSlice(s.cfg.Gateway.AsSlice()), tcpip.AddrFromSlice(to.AsSlice())
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + size), TTL: 64, Protocol: protoUDP, SrcAddr: from, DstAddr: dst,
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	u := header.UDP(b[ethLen+header.IPv4MinimumSize:])
	u.Encode(&header.UDPFields{SrcPort: dhcpServerPort, DstPort: dhcpClientPort, Length: uint16(size)})
	copy(u[header.UDPMinimumSize:], payload)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, from, dst, uint16(size))
	u.SetChecksum(^u.CalculateChecksum(checksum.Checksum(payload, sum)))
	return v
}
