package netstack

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// TestUDP carries datagrams both ways, small, empty and in fragments.
func TestUDP(t *testing.T) {
	s, g := setup6(t, Config{}, netstacktest.Options{})
	for _, addr := range []string{world4, world6} {
		c, err := g.DialUDP(udpEcho(t, addr))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, n := range []int{1, 1400, 9000, 0, 60000} {
			want := noise(n)
			if _, err := c.Write(want); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			got := make([]byte, 65536)
			k, err := c.Read(got)
			if err != nil || !bytes.Equal(got[:k], want) {
				t.Errorf("%s, %d bytes: %d came back, %v; %+v", addr, n, k, err, s.Stats())
			}
		}
	}
	if n := s.Stats().Flows; n != 2 {
		t.Errorf("%d flows", n)
	}
}

// TestUDPRefused: a port that nobody has the guest hears of, from the host's ICMP,
// and a host that cannot be reached too.
func TestUDPRefused(t *testing.T) {
	var seen [256]chan struct{}
	for i := range seen {
		seen[i] = make(chan struct{}, 1)
	}
	s, g := setup(t, Config{}, netstacktest.Options{Tap: func(_ [netstacktest.HeaderLen]byte, f []byte) bool {
		if m := icmpOf(f); len(m) >= 8+20+8 && m[0] == byte(header.ICMPv4DstUnreachable) {
			// The quoted packet has to be the guest's own.
			q := header.IPv4(m[8:])
			if q.SourceAddress().String() == "10.0.2.15" && q.Protocol() == protoUDP {
				signal(seen[m[1]])
			}
		}
		return true
	}})
	l, err := net.ListenPacket("udp", world4+":0")
	if err != nil {
		t.Fatal(err)
	}
	shut := l.LocalAddr().(*net.UDPAddr).AddrPort()
	_ = l.Close()
	for _, c := range []struct {
		to   netip.AddrPort
		code header.ICMPv4Code
	}{
		{shut, header.ICMPv4PortUnreachable},
		{netip.MustParseAddrPort(noHost4 + ":9"), header.ICMPv4HostUnreachable},
		{netip.AddrPortFrom(s.cfg.Gateway, 9), header.ICMPv4PortUnreachable},
	} {
		g.SendFrame(udpDatagram(g.MAC(), netip.MustParseAddrPort("10.0.2.15:1000"), c.to, []byte("x")))
		select {
		case <-seen[c.code]:
		case <-time.After(5 * time.Second):
			t.Errorf("%v: no message with code %d; %+v", c.to, c.code, s.Stats())
		}
	}
	// A socket of the guest's learns it as a socket does.
	c, err := g.DialUDP(shut)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	eventually(t, "the guest's socket says that it was refused", func() bool { // gonet is not woken by it
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		return err != nil && strings.Contains(err.Error(), "refused")
	})
}

// TestUDPBlockingConn: a connection of the embedder's that takes nothing holds up
// neither the guest's other packets nor Close.
func TestUDPBlockingConn(t *testing.T) {
	pipe, end := net.Pipe()
	defer end.Close()
	s, g := setup(t, Config{Dial: func(context.Context, string, string) (net.Conn, error) { return pipe, nil }}, netstacktest.Options{})
	for range 100 {
		g.SendFrame(udpDatagram(g.MAC(), netip.AddrPortFrom(s.cfg.Guest, 5), netip.MustParseAddrPort(world4+":9"), []byte("x")))
	}
	eventually(t, "what there is no room for is dropped", func() bool { return s.Stats().FlowDrops > 0 })
	for range 2 {
		if _, err := end.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestUDPIdle: a flow that is not used goes, and the next datagram makes a new one.
func TestUDPIdle(t *testing.T) {
	s, g := setup(t, Config{Limits: Limits{UDPIdle: 100 * time.Millisecond}}, netstacktest.Options{})
	c, err := g.DialUDP(udpEcho(t, world4))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		ping(t, c)
		eventually(t, "the flow has expired", func() bool { st := s.Stats(); return st.Flows == 0 })
	}
	if st := s.Stats(); st.Expired != 2 || st.FlowsTotal != 2 {
		t.Errorf("%+v", st)
	}
}

// TestUDPTooManyFlows: the one idle longest makes room, whatever a guest opens.
func TestUDPTooManyFlows(t *testing.T) {
	const limit = 50
	s, g := setup(t, Config{Limits: Limits{Flows: limit}}, netstacktest.Options{})
	to := udpEcho(t, world4)
	for port := range 65535 {
		g.SendFrame(udpDatagram(g.MAC(), netip.AddrPortFrom(s.cfg.Guest, uint16(port+1)), to, []byte("x")))
		if n := s.Stats().Flows; n > 2*limit { // those that are ending count until they have
			t.Fatalf("%d flows at once after %d", n, port)
		}
	}
	eventually(t, "no more flows than are allowed are left", func() bool { return s.Stats().Flows <= limit })
	c, err := g.DialUDP(to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ping(t, c)
}

// TestPathMTU: a packet that must not be fragmented and is too large for the link
// or for the path is answered with the size that would go.
func TestPathMTU(t *testing.T) {
	type tooBig struct {
		v6  bool
		mtu int
	}
	got := make(chan tooBig, 4)
	s, g := setup6(t, Config{MTU: 9000}, netstacktest.Options{Tap: func(_ [netstacktest.HeaderLen]byte, f []byte) bool {
		switch m := icmpOf(f); {
		case len(m) < 8:
		case m[0] == byte(header.ICMPv4DstUnreachable) && header.ICMPv4(m).Code() == header.ICMPv4FragmentationNeeded && f[ethLen]>>4 == 4:
			got <- tooBig{false, int(header.ICMPv4(m).MTU())}
		case m[0] == byte(header.ICMPv6PacketTooBig) && f[ethLen]>>4 == 6:
			got <- tooBig{true, int(header.ICMPv6(m).MTU())}
		}
		return true
	}})
	want := func(what string, w tooBig) {
		t.Helper()
		select {
		case g := <-got:
			if g != w {
				t.Errorf("%s: %+v, want %+v", what, g, w)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: nothing came; %+v", what, s.Stats())
		}
	}
	df := func(f []byte) []byte {
		ip := header.IPv4(f[ethLen:])
		ip.SetFlagsFragmentOffset(header.IPv4FlagDontFragment, 0)
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		return f
	}
	src := netip.MustParseAddrPort("10.0.2.15:1000")
	g.SendFrame(df(udpDatagram(g.MAC(), src, netip.MustParseAddrPort(world4+":9"), noise(9500))))
	want("more than the link", tooBig{false, 9000})
	g.SendFrame(udpDatagram(g.MAC(), netip.AddrPortFrom(guestAddr(s.gateway6), 1), netip.MustParseAddrPort("["+world6+"]:9"), noise(9500)))
	want("IPv6, more than the link", tooBig{true, 9000})
	if _, err := net.InterfaceByName("smol0"); err != nil {
		t.Skip("NOT RUN: the path's MTU: this kernel has no virtual Ethernet:", err)
	}
	g.SendFrame(df(udpDatagram(g.MAC(), src, netip.MustParseAddrPort(silent4+":9"), noise(2000))))
	want("more than the path", tooBig{false, 1400})
}

// TestPing: the gateway answers itself, and otherwise the host that was asked.
func TestPing(t *testing.T) {
	type reply struct {
		from    string
		id, seq uint16
		payload string
	}
	replies := make(chan reply, 16)
	s, g := setup6(t, Config{}, netstacktest.Options{Tap: func(_ [netstacktest.HeaderLen]byte, f []byte) bool {
		m := icmpOf(f)
		if len(m) < 8 || m[0] != 0 && m[0] != 129 {
			return true
		}
		r := reply{id: uint16(m[4])<<8 | uint16(m[5]), seq: uint16(m[6])<<8 | uint16(m[7]), payload: string(m[8:])}
		if f[ethLen]>>4 == 4 {
			r.from = header.IPv4(f[ethLen:]).SourceAddress().String()
		} else {
			r.from = header.IPv6(f[ethLen:]).SourceAddress().String()
		}
		replies <- r
		return true
	}})
	for _, to := range []string{"10.0.2.2", "10.0.2.3", world4, "fd73:6d6f:6c76::2", world6} {
		dst := netip.MustParseAddr(to)
		for seq := range uint16(2) {
			g.SendFrame(echoRequest(g.MAC(), guestAddr(dst), dst, 777, seq, []byte("payload")))
			select {
			case r := <-replies:
				if r != (reply{to, 777, seq, "payload"}) {
					t.Errorf("%s: %+v", to, r)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("%s: no answer; %+v", to, s.Stats())
			}
		}
	}
	g.SendFrame(echoRequest(g.MAC(), s.cfg.Guest, netip.MustParseAddr(silent4), 1, 1, nil))
	g.SendFrame(echoRequest(g.MAC(), s.cfg.Guest, netip.MustParseAddr(noHost4), 1, 1, nil))
	select {
	case r := <-replies:
		t.Errorf("an answer in the name of a host that gave none: %+v", r)
	case <-time.After(300 * time.Millisecond): // the absence of an event
	}
}

// inParts cuts a frame's IP packet, IPv6 without extension headers, into fragments
// of so many bytes of payload, a multiple of 8.
func inParts(frame []byte, id byte, size int) (out [][]byte) {
	ip := header.IPv6(frame[ethLen:])
	next, whole := ip.NextHeader(), ip.Payload()
	for off := 0; off < len(whole); off += size {
		part := whole[off:min(off+size, len(whole))]
		more := byte(1)
		if off+len(part) == len(whole) {
			more = 0
		}
		f := append([]byte{next, 0, byte(off >> 8), byte(off) | more, 0, 0, 0, id}, part...)
		b := append(append([]byte(nil), frame[:ethLen+header.IPv6MinimumSize]...), f...)
		h := header.IPv6(b[ethLen:])
		h.SetNextHeader(protoFrag6)
		h.SetPayloadLength(uint16(len(f)))
		out = append(out, b)
	}
	return out
}

// TestPing6InParts: a ping larger than the link's MTU comes in fragments, in any
// order, and is answered by whoever was asked; other ICMPv6 in fragments means
// nothing, least of all that an address is somebody else's (RFC 6980).
func TestPing6InParts(t *testing.T) {
	big := noise(5000)
	asked := make(chan []byte, 1)
	s, g := setup6(t, Config{Ping: func(_ context.Context, dst netip.Addr) (net.Conn, error) {
		if dst.String() != world6 {
			t.Errorf("%v was pinged", dst)
		}
		guest, host := net.Pipe()
		t.Cleanup(func() { _ = host.Close() })
		go func() {
			m := make([]byte, 65536)
			n, _ := host.Read(m)
			asked <- append([]byte(nil), m[:n]...)
			m[0] = byte(header.ICMPv6EchoReply)
			_, _ = host.Write(m[:n])
		}()
		return guest, nil
	}}, netstacktest.Options{})
	for i, to := range []string{world6, "fd73:6d6f:6c76::2"} {
		dst := netip.MustParseAddr(to)
		before := s.Stats().HostBytes
		whole := echoRequest(g.MAC(), guestAddr(dst), dst, 7, 1, big)
		m := header.ICMPv6(whole[ethLen+header.IPv6MinimumSize:])
		fs := inParts(whole, byte(i), 1200)
		for _, k := range []int{3, 0, 4, 1, 2} {
			g.SendFrame(fs[k])
		}
		eventually(t, to+" answers in full", func() bool { return s.Stats().HostBytes-before >= uint64(len(big)) })
		if i == 0 && !bytes.Equal(<-asked, m) {
			t.Error("the host was asked something else")
		}
		m.SetChecksum(m.Checksum() + 1)
		bad := s.Stats().GuestBad
		for _, f := range inParts(whole, byte(i+16), 1200) {
			g.SendFrame(f)
		}
		if n := s.Stats().GuestBad - bad; n != 1 {
			t.Errorf("%s: %d with a bad checksum", to, n)
		}
	}
	advert := append([]byte{byte(header.ICMPv6NeighborAdvert), 0, 0, 0, 0x20, 0, 0, 0}, netip.MustParseAddr(world6).AsSlice()...)
	advert = append(advert, 2, 1, 9, 9, 9, 9, 9, 9) // the target's link address
	src, dst := guestAddr(netip.IPv6Unspecified()), netip.MustParseAddr("fd73:6d6f:6c76::2")
	m := header.ICMPv6(advert)
	m.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: m, Src: tcpip.AddrFromSlice(src.AsSlice()), Dst: tcpip.AddrFromSlice(dst.AsSlice()),
	}))
	bad := s.Stats().GuestBad
	for _, size := range []int{8, 16, 64} {
		for _, f := range inParts(ether(g.MAC(), header.IPv6ProtocolNumber, ipPacket(src, dst, protoICMPv6, advert)), byte(64+size), size) {
			g.SendFrame(f)
		}
	}
	if n := s.Stats().GuestBad - bad; n != 3 {
		t.Errorf("%d messages in fragments were thrown away", n)
	}
}

// TestPingForbidden: where the host gives no echo sockets there is no answer, and
// the statistics say why.
func TestPingForbidden(t *testing.T) {
	answered := make(chan struct{}, 1)
	s, g := setup(t, Config{Ping: func(context.Context, netip.Addr) (net.Conn, error) {
		return nil, fmt.Errorf("echo socket: %w", syscall.EACCES)
	}}, netstacktest.Options{Tap: func(_ [netstacktest.HeaderLen]byte, f []byte) bool {
		if len(icmpOf(f)) > 0 && f[ethLen]>>4 == 4 {
			signal(answered)
		}
		return true
	}})
	g.SendFrame(echoRequest(g.MAC(), s.cfg.Guest, netip.MustParseAddr(world4), 1, 1, nil))
	eventually(t, "it is counted", func() bool { return s.Stats().PingForbidden == 1 })
	select {
	case <-answered:
		t.Error("the guest was told something")
	case <-time.After(100 * time.Millisecond): // the absence of an event
	}
}
