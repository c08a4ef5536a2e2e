package netstack

import (
	"errors"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// unreach is why a destination cannot be had; both families have words for it
// (RFC 792, RFC 1812 §5.2.7.1; RFC 4443 §3.1).
type unreach int

const (
	unreachNet unreach = iota
	unreachHost
	unreachPort
	unreachAdmin
)

// maxQuote is how much of a packet an error quotes besides its IP header: the
// ports and, of TCP, sequence numbers and options.
const maxQuote = 64

// quote copies the beginning of a packet of the guest's for an error about it.
func quote(ip []byte, headerLen int) []byte {
	return append([]byte(nil), ip[:min(len(ip), headerLen+maxQuote)]...)
}

// quotePacket is quote of a packet that gVisor has taken apart.
func quotePacket(pkt *stack.PacketBuffer) []byte {
	n, t := pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()
	b := make([]byte, 0, len(n)+len(t))
	return append(append(b, n...), t[:min(len(t), maxQuote)]...)
}

// unreachable tells the guest that a packet cannot be delivered. ip is the
// packet from its IP header on, or the beginning of it.
func (s *Stack) unreachable(proto tcpip.NetworkProtocolNumber, ip []byte, why unreach) {
	if proto == header.IPv4ProtocolNumber {
		code := [...]header.ICMPv4Code{
			unreachNet: header.ICMPv4NetUnreachable, unreachHost: header.ICMPv4HostUnreachable,
			unreachPort: header.ICMPv4PortUnreachable, unreachAdmin: header.ICMPv4AdminProhibited,
		}[why]
		s.icmpError4(ip, header.ICMPv4DstUnreachable, code, 0, why == unreachPort)
		return
	}
	code := [...]header.ICMPv6Code{
		unreachNet: header.ICMPv6NetworkUnreachable, unreachHost: header.ICMPv6AddressUnreachable,
		unreachPort: header.ICMPv6PortUnreachable, unreachAdmin: header.ICMPv6Prohibited,
	}[why]
	s.icmpError6(ip, header.ICMPv6DstUnreachable, code, 0, why == unreachPort)
}

// tooBig tells the guest that a packet is larger than mtu, where it asked to be
// told; RFC 1191 §4, RFC 4443 §3.2.
func (s *Stack) tooBig(proto tcpip.NetworkProtocolNumber, ip []byte, mtu uint32) {
	s.stats.tooBig.Add(1)
	if proto == header.IPv6ProtocolNumber {
		s.icmpError6(ip, header.ICMPv6PacketTooBig, 0, max(mtu, MinMTU), false)
	} else if header.IPv4(ip).Flags()&header.IPv4FlagDontFragment != 0 {
		s.icmpError4(ip, header.ICMPv4DstUnreachable, header.ICMPv4FragmentationNeeded, mtu, false)
	}
}

// icmpError4 sends an error about a packet, from the gateway or, where the
// destination itself would speak, in its name. Of fragments only the first gets one.
func (s *Stack) icmpError4(ip header.IPv4, typ header.ICMPv4Type, code header.ICMPv4Code, rest uint32, fromDst bool) {
	if len(ip) < header.IPv4MinimumSize || int(ip.HeaderLength()) > len(ip) || ip.FragmentOffset() != 0 {
		return
	}
	from := tcpip.AddrFromSlice(s.cfg.Gateway.AsSlice())
	if fromDst {
		from = ip.DestinationAddress()
	}
	q := quote(ip, int(ip.HeaderLength()))
	s.sendICMP(from, ip.SourceAddress(), header.IPv4ProtocolNumber, q, header.ICMPv4MinimumSize, func(m []byte) {
		h := header.ICMPv4(m)
		h.SetType(typ)
		h.SetCode(code)
		h.SetMTU(uint16(min(rest, 65535)))
	})
}

func (s *Stack) icmpError6(ip header.IPv6, typ header.ICMPv6Type, code header.ICMPv6Code, rest uint32, fromDst bool) {
	if len(ip) < header.IPv6MinimumSize || s.cfg.NoIPv6 {
		return
	}
	from := tcpip.AddrFromSlice(s.gateway6.AsSlice())
	if fromDst {
		from = ip.DestinationAddress()
	}
	q := quote(ip, header.IPv6MinimumSize)
	s.sendICMP(from, ip.SourceAddress(), header.IPv6ProtocolNumber, q, header.ICMPv6MinimumSize, func(m []byte) {
		h := header.ICMPv6(m)
		h.SetType(typ)
		h.SetCode(code)
		if rest != 0 {
			header.ICMPv6(m).SetMTU(rest)
		}
	})
}

// sendICMP sends a message of ICMP or ICMPv6 whose first size bytes fill writes,
// and whose checksum is added. It is fragmented where need be. payload is ours.
func (s *Stack) sendICMP(from, to tcpip.Address, proto tcpip.NetworkProtocolNumber, payload []byte, size int, fill func([]byte)) {
	r, terr := s.stack.FindRoute(nicID, from, to, proto, false)
	if terr != nil {
		return
	}
	defer r.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(r.MaxHeaderLength()) + size,
		Payload:            buffer.MakeWithData(payload),
	})
	defer pkt.DecRef()
	m := pkt.TransportHeader().Push(size)
	clear(m)
	fill(m)
	params := stack.NetworkHeaderParams{Protocol: header.ICMPv4ProtocolNumber, TTL: r.DefaultTTL()}
	if proto == header.IPv4ProtocolNumber {
		pkt.TransportProtocolNumber = header.ICMPv4ProtocolNumber
		h := header.ICMPv4(m)
		h.SetChecksum(0)
		h.SetChecksum(header.ICMPv4Checksum(h, pkt.Data().Checksum()))
	} else {
		params.Protocol = header.ICMPv6ProtocolNumber
		pkt.TransportProtocolNumber = header.ICMPv6ProtocolNumber
		h := header.ICMPv6(m)
		h.SetChecksum(0)
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
			Header: h, Src: from, Dst: to, PayloadCsum: pkt.Data().Checksum(), PayloadLen: len(payload),
		}))
	}
	_ = r.WritePacket(params, pkt) // what the link has no room for it counts
}

// whyUnreachable reads a host socket's error; ok says whether it is one that an
// ICMP message tells of.
func whyUnreachable(err error) (why unreach, ok bool) {
	for _, e := range []struct {
		errno syscall.Errno
		why   unreach
	}{
		{syscall.EHOSTUNREACH, unreachHost},
		{syscall.EHOSTDOWN, unreachHost},
		{syscall.ENETUNREACH, unreachNet},
		{syscall.ENETDOWN, unreachNet},
		{syscall.EADDRNOTAVAIL, unreachNet}, // the host has no address of this family
		{syscall.EAFNOSUPPORT, unreachNet},
		{syscall.EACCES, unreachAdmin}, // the host's own packet filter
		{syscall.EPERM, unreachAdmin},
	} {
		if errors.Is(err, e.errno) {
			return e.why, true
		}
	}
	return 0, false
}

// addrPort is an address of gVisor's as the standard library has it.
func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	n, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(n, port)
}
