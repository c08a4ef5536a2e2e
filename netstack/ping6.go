package netstack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"
)

// protoParts is what the filter makes of ICMPv6 in a fragment (IANA: reserved, so
// that no packet has it): gVisor, which would obey a whole message itself, whoever it
// is for and whatever it claims, puts these together and gives them to parts.
const protoParts = 255

// parts is a transport protocol of gVisor's: it gets ICMPv6 messages that came in
// fragments, of which only an echo request means anything (RFC 6980 §5).
type parts struct{ s *Stack }

func (p parts) HandleUnknownDestinationPacket(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) stack.UnknownDestinationPacketDisposition {
	n := pkt.NetworkHeader().Slice()
	if len(n) < header.IPv6MinimumSize {
		return stack.UnknownDestinationPacketMalformed
	}
	// The packet as it would have been in one piece.
	b := make([]byte, 0, header.IPv6MinimumSize+echoHeaderLen+pkt.Data().Size())
	b = append(append(b, n[:header.IPv6MinimumSize]...), pkt.TransportHeader().Slice()...)
	b = append(b, pkt.Data().AsRange().ToSlice()...)
	ip := header.IPv6(b)
	ip.SetNextHeader(protoICMPv6)
	ip.SetPayloadLength(uint16(len(b) - header.IPv6MinimumSize))
	src, dst := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	m := header.ICMPv6(ip.Payload())
	switch {
	case m.Type() != header.ICMPv6EchoRequest:
		p.s.stats.guestBad.Add(1)
	case !p.s.validEcho6(ip):
	case p.s.isOurs(dst):
		p.s.replyEcho(ip.DestinationAddress(), ip.SourceAddress(), binary.BigEndian.Uint16(m[4:]), byte(header.ICMPv6EchoReply), m)
	default: // the filter has let no other destination pass
		p.s.echo(src, dst, m, ip)
	}
	return stack.UnknownDestinationPacketHandled
}

// unhideParts has gVisor's error about fragments that never became whole (RFC 8200
// §4.5) quote the first of them as the guest sent it.
func unhideParts(pkt *stack.PacketBuffer) {
	const next = header.IPv6MinimumSize // of the fragment header, in the quote
	m := header.ICMPv6(pkt.TransportHeader().Slice())
	if len(m) < header.ICMPv6MinimumSize || m.Type() != header.ICMPv6TimeExceeded {
		return
	}
	quoted, ok := pkt.Data().PullUp(next + header.IPv6FragmentHeaderSize)
	if !ok || header.IPv6(quoted).NextHeader() != protoFrag6 || quoted[next] != protoParts {
		return
	}
	quoted[next] = protoICMPv6
	ip := header.IPv6(pkt.NetworkHeader().Slice())
	m.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: m, Src: ip.SourceAddress(), Dst: ip.DestinationAddress(),
		PayloadCsum: pkt.Data().Checksum(), PayloadLen: pkt.Data().Size(),
	}))
}

// validEcho6 counts an echo request with a bad checksum.
func (s *Stack) validEcho6(ip header.IPv6) bool {
	m := header.ICMPv6(ip.Payload())
	if header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: m, Src: ip.SourceAddress(), Dst: ip.DestinationAddress(),
	}) == m.Checksum() || s.link.features.Load()&featCSum != 0 {
		return true
	}
	s.stats.guestBad.Add(1)
	return false
}

func (parts) Number() tcpip.TransportProtocolNumber { return protoParts }
func (parts) MinimumPacketSize() int                { return echoHeaderLen }

func (parts) Parse(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.TransportHeader().Consume(echoHeaderLen)
	return ok
}

func (parts) ParsePorts([]byte) (src, dst uint16, err tcpip.Error) { return 0, 0, nil }

func (parts) NewEndpoint(tcpip.NetworkProtocolNumber, *waiter.Queue) (tcpip.Endpoint, tcpip.Error) {
	return nil, &tcpip.ErrNotSupported{}
}

func (parts) NewRawEndpoint(tcpip.NetworkProtocolNumber, *waiter.Queue) (tcpip.Endpoint, tcpip.Error) {
	return nil, &tcpip.ErrNotSupported{}
}

func (parts) SetOption(tcpip.SettableTransportProtocolOption) tcpip.Error {
	return &tcpip.ErrUnknownProtocolOption{}
}

func (parts) Option(tcpip.GettableTransportProtocolOption) tcpip.Error {
	return &tcpip.ErrUnknownProtocolOption{}
}

func (parts) Close()   {}
func (parts) Wait()    {}
func (parts) Pause()   {}
func (parts) Resume()  {}
func (parts) Restore() {}
