package netstack

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

var testGateway = [6]byte{0x02, 's', 'm', 'o', 'l', 2}

// ether is a frame from a MAC address to the gateway's.
func ether(src [6]byte, typ tcpip.NetworkProtocolNumber, payload []byte) []byte {
	b := append(append([]byte(nil), testGateway[:]...), src[:]...)
	return append(binary.BigEndian.AppendUint16(b, uint16(typ)), payload...)
}

// ipPacket is a packet with right checksums of its own.
func ipPacket(src, dst netip.Addr, proto uint8, payload []byte) []byte {
	if dst.Is4() {
		b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(payload))
		ip := header.IPv4(b)
		ip.Encode(&header.IPv4Fields{
			TotalLength: uint16(len(b) + len(payload)), TTL: 64, Protocol: proto,
			SrcAddr: tcpip.AddrFromSlice(src.AsSlice()), DstAddr: tcpip.AddrFromSlice(dst.AsSlice()),
		})
		ip.SetChecksum(^ip.CalculateChecksum())
		return append(b, payload...)
	}
	b := make([]byte, header.IPv6MinimumSize, header.IPv6MinimumSize+len(payload))
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength: uint16(len(payload)), TransportProtocol: tcpip.TransportProtocolNumber(proto), HopLimit: 64,
		SrcAddr: tcpip.AddrFromSlice(src.AsSlice()), DstAddr: tcpip.AddrFromSlice(dst.AsSlice()),
	})
	return append(b, payload...)
}

func etherType(a netip.Addr) tcpip.NetworkProtocolNumber { return protocolOf(a) }

func pseudo(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, n int) uint16 {
	return header.PseudoHeaderChecksum(proto, tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice()), uint16(n))
}

// guestAddr is the guest's address of dst's family, as netstacktest's MAC address
// makes it.
func guestAddr(dst netip.Addr) netip.Addr {
	if dst.Is4() {
		return netip.MustParseAddr("10.0.2.15")
	}
	return netip.MustParseAddr("fd73:6d6f:6c76:0:5054:ff:fe12:3456")
}

// tcpSegment is a frame with a segment.
func tcpSegment(mac [6]byte, src, dst netip.AddrPort, flags header.TCPFlags, seq uint32) []byte {
	b := make([]byte, header.TCPMinimumSize)
	h := header.TCP(b)
	h.Encode(&header.TCPFields{
		SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: seq, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 65535,
	})
	h.SetChecksum(^h.CalculateChecksum(pseudo(header.TCPProtocolNumber, src.Addr(), dst.Addr(), len(b))))
	return ether(mac, etherType(dst.Addr()), ipPacket(src.Addr(), dst.Addr(), protoTCP, b))
}

func synTo(g *netstacktest.Guest, dst netip.Addr, port uint16) []byte {
	return tcpSegment(g.MAC(), netip.AddrPortFrom(guestAddr(dst), 4321), netip.AddrPortFrom(dst, port), header.TCPFlagSyn, 1)
}

// udpDatagram is a frame with a datagram.
func udpDatagram(mac [6]byte, src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, header.UDPMinimumSize, header.UDPMinimumSize+len(payload))
	b = append(b, payload...)
	u := header.UDP(b)
	u.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(len(b))})
	u.SetChecksum(^u.CalculateChecksum(checksum.Checksum(payload, pseudo(header.UDPProtocolNumber, src.Addr(), dst.Addr(), len(b)))))
	return ether(mac, etherType(dst.Addr()), ipPacket(src.Addr(), dst.Addr(), protoUDP, b))
}

func udpTo(g *netstacktest.Guest, dst netip.Addr, port uint16) []byte {
	return udpDatagram(g.MAC(), netip.AddrPortFrom(guestAddr(dst), 4321), netip.AddrPortFrom(dst, port), []byte("x"))
}

// echoRequest is a frame with a ping.
func echoRequest(mac [6]byte, src, dst netip.Addr, id, seq uint16, payload []byte) []byte {
	b := make([]byte, echoHeaderLen, echoHeaderLen+len(payload))
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	b = append(b, payload...)
	proto := uint8(1)
	if dst.Is4() {
		h := header.ICMPv4(b)
		h.SetType(header.ICMPv4Echo)
		h.SetChecksum(header.ICMPv4Checksum(h, 0))
	} else {
		proto = protoICMPv6
		h := header.ICMPv6(b)
		h.SetType(header.ICMPv6EchoRequest)
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
			Header: h, Src: tcpip.AddrFromSlice(src.AsSlice()), Dst: tcpip.AddrFromSlice(dst.AsSlice()),
		}))
	}
	return ether(mac, etherType(dst), ipPacket(src, dst, proto, b))
}

// arpMessage is a frame with an ARP message to everyone.
func arpMessage(mac [6]byte, op uint16, sender, target netip.Addr) []byte {
	p := []byte{0, 1, 8, 0, 6, 4, byte(op >> 8), byte(op)}
	p = append(append(append(p, mac[:]...), sender.AsSlice()...), 0, 0, 0, 0, 0, 0)
	f := ether(mac, header.ARPProtocolNumber, append(p, target.AsSlice()...))
	copy(f, "\xff\xff\xff\xff\xff\xff")
	return f
}

// icmpOf is the ICMP or ICMPv6 message in a frame, if it has one whose checksums
// are right.
func icmpOf(f []byte) []byte {
	p := f[ethLen:]
	switch tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(f[12:])) {
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(p)
		if ip.IsValid(len(p)) && ip.IsChecksumValid() && ip.Protocol() == 1 && checksum.Checksum(ip.Payload(), 0) == 0xffff {
			return ip.Payload()
		}
	case header.IPv6ProtocolNumber:
		ip := header.IPv6(p)
		if !ip.IsValid(len(p)) || ip.NextHeader() != protoICMPv6 {
			return nil
		}
		m := header.ICMPv6(ip.Payload())
		if header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: m, Src: ip.SourceAddress(), Dst: ip.DestinationAddress()}) == m.Checksum() {
			return m
		}
	}
	return nil
}

// TestFramesAreRight: what the tests send is well-formed, or they prove nothing.
func TestFramesAreRight(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mac := [6]byte{2, 0, 0, 0, 0, 9}
	for _, dst := range []string{world4, world6} {
		d := netip.MustParseAddr(dst)
		for name, f := range map[string][]byte{
			"tcp": tcpSegment(mac, netip.AddrPortFrom(guestAddr(d), 1), netip.AddrPortFrom(d, 2), header.TCPFlagSyn, 0),
			"udp": udpDatagram(mac, netip.AddrPortFrom(guestAddr(d), 1), netip.AddrPortFrom(d, 2), []byte("abc")),
		} {
			if !s.filter(f, false) {
				t.Errorf("%s to %s: %+v", name, dst, s.Stats())
			}
		}
	}
	if s.Stats().GuestBad != 0 {
		t.Errorf("%+v", s.Stats())
	}
}
