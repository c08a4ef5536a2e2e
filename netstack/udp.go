package netstack

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// maxDNS is how many queries over UDP are answered at once.
	maxDNS = 64
	// maxDatagram is what a UDP datagram can have (RFC 768).
	maxDatagram = 65535
)

// handleUDP gets datagrams that no socket inside the stack is there for. What it
// returns false for gVisor answers with port unreachable.
func (s *Stack) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.UDP(pkt.TransportHeader().Slice())
	size := pkt.Data().Size()
	lengthOK, sumOK := header.UDPValid(h, func() uint16 { return pkt.Data().Checksum() }, uint16(size),
		pkt.NetworkProtocolNumber, id.RemoteAddress, id.LocalAddress, pkt.RXChecksumValidated)
	size = min(size, int(h.Length())-header.UDPMinimumSize)
	if !lengthOK || !sumOK || size < 0 {
		s.stats.guestBad.Add(1)
		return true
	}
	payload, ok := pkt.Data().PullUp(size)
	if !ok && size > 0 {
		s.stats.guestBad.Add(1)
		return true
	}
	key := flowKey{proto: protoUDP, src: addrPort(id.RemoteAddress, id.RemotePort), dst: addrPort(id.LocalAddress, id.LocalPort)}
	if f := s.udp.lookup(key); f != nil {
		f.send(payload, dontFragment(pkt, s.cfg.MTU), pkt)
		return true
	}
	t, denied, ok := s.resolve("udp", key.dst)
	switch {
	case denied != "":
		s.unreachable(pkt.NetworkProtocolNumber, quotePacket(pkt), unreachAdmin)
		return true
	case !ok:
		return false
	case t.dns:
		s.answerDNS(id, pkt.NetworkProtocolNumber, append([]byte(nil), payload...))
		return true
	}
	if f := s.udp.open(key, t.addr, s.cfg.Limits.UDPIdle); f != nil {
		f.send(payload, dontFragment(pkt, s.cfg.MTU), pkt)
	}
	return true
}

// dontFragment says whether the sender wants to be told of a packet that is too
// large rather than have it fragmented: one that came in fragments does not.
func dontFragment(pkt *stack.PacketBuffer, mtu int) bool {
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		return header.IPv4(pkt.NetworkHeader().Slice()).Flags()&header.IPv4FlagDontFragment != 0
	}
	return pkt.Data().Size()+header.UDPMinimumSize+header.IPv6MinimumSize <= mtu
}

// answerDNS answers a query in a goroutine, as it may have to ask the host's
// resolver. A query too many is dropped: it is asked again.
func (s *Stack) answerDNS(id stack.TransportEndpointID, proto tcpip.NetworkProtocolNumber, query []byte) {
	select {
	case s.udp.dns <- struct{}{}:
	default:
		s.stats.overLimit.Add(1)
		return
	}
	if !s.enter() {
		<-s.udp.dns
		return
	}
	s.stats.dnsQueries.Add(1)
	go func() {
		defer s.wg.Done()
		defer func() { <-s.udp.dns }()
		if answer := s.cfg.NameServer.Answer(s.ctx, query, false); answer != nil && len(answer) <= maxDatagram-header.UDPMinimumSize {
			s.sendUDP(id.LocalAddress, id.RemoteAddress, id.LocalPort, id.RemotePort, proto, answer)
		}
	}()
}

// sendUDP sends a datagram to the guest. payload is copied.
func (s *Stack) sendUDP(from, to tcpip.Address, fromPort, toPort uint16, proto tcpip.NetworkProtocolNumber, payload []byte) {
	r, terr := s.stack.FindRoute(nicID, from, to, proto, false)
	if terr != nil {
		return
	}
	defer r.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(r.MaxHeaderLength()) + header.UDPMinimumSize,
		Payload:            buffer.MakeWithData(payload),
	})
	defer pkt.DecRef()
	u := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	pkt.TransportProtocolNumber = header.UDPProtocolNumber
	length := uint16(pkt.Size())
	u.Encode(&header.UDPFields{SrcPort: fromPort, DstPort: toPort, Length: length})
	sum := ^u.CalculateChecksum(checksum.Combine(
		header.PseudoHeaderChecksum(header.UDPProtocolNumber, from, to, length), pkt.Data().Checksum()))
	if sum == 0 { // it would mean none (RFC 768)
		sum = 0xffff
	}
	u.SetChecksum(sum)
	_ = r.WritePacket(stack.NetworkHeaderParams{Protocol: header.UDPProtocolNumber, TTL: r.DefaultTTL()}, pkt)
}
