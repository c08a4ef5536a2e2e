package netstack

import (
	"bytes"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// TestPartsTimeOut: the error about a ping whose fragments never became whole, as
// gVisor makes it after a minute, quotes the first of them as the guest sent it. Of
// other packets' the quote is left alone.
func TestPartsTimeOut(t *testing.T) {
	s, g := setup6(t, Config{}, netstacktest.Options{})
	gateway := netip.MustParseAddr("fd73:6d6f:6c76::2")
	guest := guestAddr(gateway)
	sent := inParts(echoRequest(g.MAC(), guest, gateway, 7, 1, noise(3000)), 1, 1200)[0][ethLen:]
	for _, c := range []struct {
		name          string
		typ           header.ICMPv6Type
		before, after byte // next header of the quoted fragment
	}{
		{"a ping's", header.ICMPv6TimeExceeded, protoParts, protoICMPv6},
		{"UDP's", header.ICMPv6TimeExceeded, protoUDP, protoUDP},
		{"another error", header.ICMPv6DstUnreachable, protoParts, protoParts},
	} {
		t.Run(c.name, func(t *testing.T) {
			quote := bytes.Clone(sent)
			quote[header.IPv6MinimumSize] = c.before
			// In views of its own for each header, as gVisor quotes.
			payload := buffer.MakeWithData(quote[:header.IPv6MinimumSize])
			rest := buffer.MakeWithData(quote[header.IPv6MinimumSize:])
			payload.Merge(&rest)
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
				ReserveHeaderBytes: header.IPv6MinimumSize + header.ICMPv6ErrorHeaderSize, Payload: payload,
			})
			defer pkt.DecRef()
			m := header.ICMPv6(pkt.TransportHeader().Push(header.ICMPv6ErrorHeaderSize))
			m.SetType(c.typ)
			m.SetCode(header.ICMPv6ReassemblyTimeout)
			src, dst := tcpip.AddrFromSlice(gateway.AsSlice()), tcpip.AddrFromSlice(guest.AsSlice())
			m.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
				Header: m, Src: src, Dst: dst, PayloadCsum: pkt.Data().Checksum(), PayloadLen: pkt.Data().Size(),
			}))
			ip := header.IPv6(pkt.NetworkHeader().Push(header.IPv6MinimumSize))
			ip.Encode(&header.IPv6Fields{
				PayloadLength: uint16(len(m) + len(quote)), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 64, SrcAddr: src, DstAddr: dst,
			})
			pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
			s.askAsGateway(pkt)

			all := append(bytes.Clone(m), pkt.Data().AsRange().ToSlice()...)
			want := bytes.Clone(quote)
			want[header.IPv6MinimumSize] = c.after
			if !bytes.Equal(all[len(m):], want) {
				t.Errorf("next header %d is quoted", all[len(m)+header.IPv6MinimumSize])
			}
			sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, src, dst, uint16(len(all)))
			if got := checksum.Checksum(all, sum); got != 0xffff {
				t.Errorf("the checksum is bad: %#x", got)
			}
		})
	}
}
