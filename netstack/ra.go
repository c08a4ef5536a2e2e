package netstack

import (
	"encoding/binary"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	// advertiseEvery is well within the lifetimes that an advertisement gives, and
	// within MaxRtrAdvInterval's default of 600 s (RFC 4861 §6.2.1).
	advertiseEvery  = 5 * time.Minute
	routerLifetime  = 30 * time.Minute // 3 × MaxRtrAdvInterval, as RFC 4861 has it
	prefixValid     = 30 * 24 * time.Hour
	prefixPreferred = 7 * 24 * time.Hour
)

// Options of neighbour discovery (RFC 4861 §4.6; RFC 8106 §5).
const (
	ndSourceLink = 1
	ndPrefix     = 3
	ndMTU        = 5
	ndRDNSS      = 25
	ndDNSSL      = 31

	prefixOnLink, prefixAutonomous = 0x80, 0x40
)

// advertise sends a router advertisement, now and from then on every few minutes.
func (s *Stack) advertise() {
	s.link.pushFrame(s.advertisement())
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
	case s.adverts == nil:
		s.adverts = time.AfterFunc(advertiseEvery, s.advertise)
	default:
		s.adverts.Reset(advertiseEvery)
	}
}

// advertisement is a router advertisement to all nodes (RFC 4861 §4.2). A
// host-only link has a prefix, and no router.
func (s *Stack) advertisement() *buffer.View {
	seconds := func(b []byte, d time.Duration) []byte {
		return binary.BigEndian.AppendUint32(b, uint32(d/time.Second))
	}
	b := []byte{byte(header.ICMPv6RouterAdvert), 0, 0, 0, 64, 0}
	life := routerLifetime
	if s.cfg.HostOnly {
		life = 0
	}
	b = binary.BigEndian.AppendUint16(b, uint16(life/time.Second))
	b = append(b, make([]byte, 8)...) // reachable time and retransmission timer: the guest's own
	b = append(append(b, ndSourceLink, 1), s.cfg.MAC[:]...)
	b = append(b, ndMTU, 1, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(s.cfg.MTU))
	b = append(b, ndPrefix, 4, 64, prefixOnLink|prefixAutonomous)
	b = seconds(seconds(b, prefixValid), prefixPreferred)
	b = append(append(b, 0, 0, 0, 0), s.cfg.Subnet6.Addr().AsSlice()...)
	if s.cfg.NameServer != nil && !s.cfg.HostOnly {
		b = seconds(append(b, ndRDNSS, 3, 0, 0), routerLifetime)
		b = append(b, s.dns6.AsSlice()...)
	}
	if name := dnsName(s.cfg.SearchDomain); name != nil {
		for len(name)%8 != 0 {
			name = append(name, 0)
		}
		b = seconds(append(b, ndDNSSL, byte(1+len(name)/8), 0, 0), routerLifetime)
		b = append(b, name...)
	}

	all := header.IPv6AllNodesMulticastAddress
	v := buffer.NewViewSize(ethLen + header.IPv6MinimumSize + len(b))
	f := v.AsSlice()
	header.Ethernet(f).Encode(&header.EthernetFields{
		SrcAddr: s.link.mac, DstAddr: header.EthernetAddressFromMulticastIPv6Address(all), Type: header.IPv6ProtocolNumber,
	})
	src := tcpip.AddrFromSlice(s.linkLocal.AsSlice())
	header.IPv6(f[ethLen:]).Encode(&header.IPv6Fields{
		PayloadLength: uint16(len(b)), TransportProtocol: header.ICMPv6ProtocolNumber,
		HopLimit: header.NDPHopLimit, SrcAddr: src, DstAddr: all,
	})
	m := header.ICMPv6(f[ethLen+header.IPv6MinimumSize:])
	copy(m, b)
	m.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: m, Src: src, Dst: all}))
	return v
}

// dnsName is a name in the form of RFC 1035 §3.1; nil if it has none.
func dnsName(s string) []byte {
	s = strings.TrimSuffix(s, ".")
	if s == "" {
		return nil
	}
	var b []byte
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return nil
		}
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}
