package netstack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// script is frames as FuzzFrames takes them: each after its length, 16 bits.
func script(frames ...[]byte) []byte {
	var b []byte
	for _, f := range frames {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(f))), f...)
	}
	return b
}

// FuzzFrames sends a stack whatever a guest could. Nothing may crash or hang, reach
// the host's loopback, or come back that claims another's address.
func FuzzFrames(f *testing.F) {
	guest, guest6 := netip.MustParseAddr("10.0.2.15"), guestAddr(netip.IPv6Unspecified())
	world, gw := netip.MustParseAddrPort(world4+":80"), netip.MustParseAddr("10.0.2.2")
	world6 := netip.MustParseAddrPort("[" + world6 + "]:80")
	arp := arpMessage(testGuest, arpRequest, guest, gw)
	from, from6 := netip.AddrPortFrom(guest, 1000), netip.AddrPortFrom(guest6, 1000)
	for _, flags := range []byte{0, 1, 2, 3} {
		// Whole exchanges: an address, a connection to the world and one to a
		// listener, datagrams, queries, pings, a lease, a prefix.
		f.Add(flags, script(arp, tcpSegment(testGuest, from, world, header.TCPFlagSyn, 1),
			tcpSegment(testGuest, from, netip.AddrPortFrom(gw, 8080), header.TCPFlagSyn, 1),
			tcpSegment(testGuest, from, world, header.TCPFlagAck, 2), tcpSegment(testGuest, from, world, header.TCPFlagRst, 2)))
		f.Add(flags, script(arp, udpDatagram(testGuest, from, world, []byte("x")), udpDatagram(testGuest, from, netip.AddrPortFrom(gw, 53), []byte("query"))))
		f.Add(flags, script(arp, echoRequest(testGuest, guest, world.Addr(), 1, 1, []byte("x")), echoRequest(testGuest, guest, gw, 1, 1, nil)))
		f.Add(flags, script(solicit(testGuest, guest6, netip.MustParseAddr("fe80::2")), udpDatagram(testGuest, from6, world6, []byte("x")),
			tcpSegment(testGuest, from6, world6, header.TCPFlagSyn, 1), echoRequest(testGuest, guest6, world6.Addr(), 1, 1, nil)))
		f.Add(flags, script(dhcpFrame(testGuest, netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), dhcpMsg(testGuest, dhcpDiscover, netip.Addr{}))))
		rs := make([]byte, 8)
		rs[0] = byte(header.ICMPv6RouterSolicit)
		f.Add(flags, script(ether(testGuest, header.IPv6ProtocolNumber, ipPacket(guest6, netip.MustParseAddr("ff02::2"), protoICMPv6, rs))))
		// What has the stack ask for the guest's link address, of either family.
		f.Add(flags, script(tcpSegment(testGuest, from6, world6, header.TCPFlagSyn, 1)))
		f.Add(flags, script(tcpSegment(testGuest, from, world, header.TCPFlagSyn, 1)))
		// Fragments, one of which completes the packet.
		whole := udpDatagram(testGuest, from, world, make([]byte, 64))
		var frags [][]byte
		for off := 0; off < 72; off += 24 {
			p := append([]byte(nil), whole[:ethLen+header.IPv4MinimumSize]...)
			p = append(p, whole[ethLen+header.IPv4MinimumSize+off:ethLen+header.IPv4MinimumSize+off+24]...)
			ip := header.IPv4(p[ethLen:])
			ip.SetTotalLength(header.IPv4MinimumSize + 24)
			fl := uint8(header.IPv4FlagMoreFragments)
			if off == 48 {
				fl = 0
			}
			ip.SetFlagsFragmentOffset(fl, uint16(off))
			ip.SetChecksum(0)
			ip.SetChecksum(^ip.CalculateChecksum())
			frags = append(frags, p)
		}
		f.Add(flags, script(append([][]byte{arp}, frags...)...))
		f.Add(flags, script(ether(testGuest, header.IPv6ProtocolNumber, ipPacket(guest6, world6.Addr(), protoFrag6,
			append([]byte{protoUDP, 0, 0, 0, 0, 0, 0, 1}, whole[ethLen+header.IPv4MinimumSize:]...)))))
		for _, to := range []netip.Addr{world6.Addr(), netip.MustParseAddr("fe80::2")} {
			f.Add(flags, script(append([][]byte{solicit(testGuest, guest6, netip.MustParseAddr("fe80::2"))},
				inParts(echoRequest(testGuest, guest6, to, 1, 1, make([]byte, 100)), 1, 56)...)...))
		}
	}
	f.Fuzz(func(t *testing.T, flags byte, b []byte) {
		hang := time.AfterFunc(5*time.Second, func() {
			all := make([]byte, 1<<20)
			panic(fmt.Sprintf("it hangs:\n%s", all[:runtime.Stack(all, true)]))
		})
		defer hang.Stop()
		cfg := Config{NameServer: answerer{}, HostServices: []uint16{8081}, HostOnly: flags&2 != 0}
		cfg.Dial = func(_ context.Context, network, address string) (net.Conn, error) {
			a, err := netip.ParseAddrPort(address)
			if err != nil || cfg.HostOnly || a.Port() != 8081 && (a.Addr().IsLoopback() || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || a.Addr().Is4In6()) {
				t.Errorf("%s %s was dialled", network, address)
			}
			if strings.HasSuffix(address, ":80") {
				c, d := net.Pipe()
				_ = d.Close()
				return c, nil
			}
			return nil, syscall.ECONNREFUSED
		}
		cfg.Ping = func(context.Context, netip.Addr) (net.Conn, error) { return nil, syscall.EHOSTUNREACH }
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Listen("tcp", ":8080"); err != nil {
			t.Fatal(err)
		}
		if flags&1 != 0 {
			s.Negotiated(s.Offloads())
		}
		check := func(h [headerLen]byte, f []byte) {
			if len(f) < ethLen || [6]byte(f[6:]) != s.cfg.MAC {
				t.Fatalf("a frame that is none of the gateway's: %x", f)
			}
			if h[hdrGSOType] == gsoNone && len(f) > ethLen+s.cfg.MTU {
				t.Fatalf("%d bytes in a frame", len(f))
			}
			if binary.BigEndian.Uint16(f[12:]) == 0x0806 && !s.isOurs(netip.AddrFrom4([4]byte(f[ethLen+arpSenderIP:]))) {
				t.Fatalf("it claims an address: %x", f)
			}
			if m := icmpOf(f); len(m) > 0 && (f[ethLen]>>4 == 6 && m[0] == byte(header.ICMPv6EchoReply) && !s.isOurs(netip.AddrFrom16([16]byte(f[ethLen+8:]))) ||
				f[ethLen]>>4 == 4 && m[0] == byte(header.ICMPv4EchoReply) && !s.isOurs(netip.AddrFrom4([4]byte(f[ethLen+12:])))) {
				t.Fatalf("it answers a ping for a host that was not asked: %x", f)
			}
			if m := icmpOf(f); f[ethLen]>>4 == 6 && len(m) >= 24 && m[0] == byte(header.ICMPv6NeighborSolicit) && !s.isOurs(netip.AddrFrom16([16]byte(f[ethLen+8:]))) {
				t.Fatalf("it asks in another's name: %x", f)
			}
		}
		for n := 0; len(b) >= 2 && n < 64; n++ {
			size := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			var h [headerLen]byte
			if flags&1 != 0 {
				h[hdrFlags], h[hdrGSOType] = flags>>2&1, flags>>3&1
				binary.LittleEndian.PutUint16(h[hdrCSumStart:], uint16(flags)<<4)
			}
			frame := b[2 : 2+size]
			// In runs, as a guest would have it.
			s.Send(&h, [][]byte{frame[:size/3], frame[size/3 : size/2], frame[size/2:]})
			b = b[2+size:]
			drain(s, check)
		}
		drain(s, check)
	})
}
