package netstack

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

var testGuest = [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}

// send gives a stack one frame.
func send(s *Stack, frame []byte) {
	var h [headerLen]byte
	s.Send(&h, [][]byte{frame})
}

// drain takes what waits for the guest.
func drain(s *Stack, each func(h [headerLen]byte, frame []byte)) {
	for {
		h, runs, ok := s.Next()
		if !ok {
			return
		}
		var f []byte
		for _, r := range runs {
			f = append(f, r...)
		}
		hdr := *h
		s.Pop()
		if each != nil {
			each(hdr, f)
		}
	}
}

func newStack(t testing.TB, cfg Config) *Stack {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// neverDial fails the test if anything of the guest's gets out.
func neverDial(t testing.TB) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, address string) (net.Conn, error) {
		t.Errorf("%s %s was dialled", network, address)
		return nil, syscall.ECONNREFUSED
	}
}

// TestSpoofedSources: a guest speaks for itself only.
func TestSpoofedSources(t *testing.T) {
	s := newStack(t, Config{Dial: neverDial(t)})
	dst := netip.MustParseAddrPort(world4 + ":80")
	dst6 := netip.MustParseAddrPort("[" + world6 + "]:80")
	n := uint64(0)
	for _, src := range []string{"10.0.2.2", "10.0.2.3", "10.0.2.16", "10.0.2.255", "192.0.2.1", "127.0.0.1", "0.0.0.0", "255.255.255.255"} {
		a := netip.AddrPortFrom(netip.MustParseAddr(src), 5)
		send(s, udpDatagram(testGuest, a, dst, []byte("x")))
		send(s, tcpSegment(testGuest, a, dst, header.TCPFlagSyn, 1))
		send(s, arpMessage(testGuest, arpReply, a.Addr(), s.cfg.Gateway))
		n += 3
	}
	n-- // an ARP reply from nobody is no claim: it is dropped as senseless
	for _, src := range []string{"fd73:6d6f:6c76::2", "fd73:6d6f:6c76::3", "2001:db8::9", "::1", "::", "fe80::2"} {
		a := netip.AddrPortFrom(netip.MustParseAddr(src), 5)
		send(s, udpDatagram(testGuest, a, dst6, []byte("x")))
		send(s, tcpSegment(testGuest, a, dst6, header.TCPFlagSyn, 1))
		n += 2
	}
	send(s, udpDatagram(s.cfg.MAC, netip.AddrPortFrom(s.cfg.Guest, 5), dst, nil)) // the gateway's MAC
	n++
	if got := s.Stats().Spoofed; got != n {
		t.Errorf("%d frames are counted as spoofed, of %d; %+v", got, n, s.Stats())
	}
	drain(s, func(_ [headerLen]byte, f []byte) { t.Errorf("an answer: %x", f) })

	// What the configuration allows is no spoof.
	wide := newStack(t, Config{Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	send(wide, udpDatagram(testGuest, netip.MustParseAddrPort("192.0.2.7:5"), netip.MustParseAddrPort("10.0.2.2:9"), nil))
	if st := wide.Stats(); st.Spoofed != 0 {
		t.Errorf("%+v", st)
	}
}

// TestNeighbours: ARP and neighbour discovery are answered for the gateway's own
// addresses, and for no other: the guest's own is not taken from it.
func TestNeighbours(t *testing.T) {
	s := newStack(t, Config{})
	answers := func() map[string]bool {
		got := map[string]bool{}
		drain(s, func(_ [headerLen]byte, f []byte) {
			switch binary.BigEndian.Uint16(f[12:]) {
			case 0x0806:
				if binary.BigEndian.Uint16(f[ethLen+arpOp:]) == arpReply {
					got[netip.AddrFrom4([4]byte(f[ethLen+arpSenderIP:])).String()] = true
				}
			case 0x86dd:
				if m := icmpOf(f); len(m) >= 24 && m[0] == byte(header.ICMPv6NeighborAdvert) {
					got[netip.AddrFrom16([16]byte(m[8:])).String()] = true
				}
			}
		})
		return got
	}
	own := []string{"10.0.2.2", "10.0.2.3", "fd73:6d6f:6c76::2", "fd73:6d6f:6c76::3", "fe80::2"}
	for _, a := range append([]string{"10.0.2.15", "10.0.2.1", "10.0.2.77", "8.8.8.8", "fd73:6d6f:6c76::15", "fd73:6d6f:6c76::1", "fe80::1", "2001:db8::1"}, own...) {
		target := netip.MustParseAddr(a)
		if target.Is4() {
			send(s, arpMessage(testGuest, arpRequest, s.cfg.Guest, target))
			send(s, arpMessage(testGuest, arpRequest, netip.IPv4Unspecified(), target)) // a probe (RFC 5227 §2.1.1)
			continue
		}
		send(s, solicit(testGuest, netip.MustParseAddr("fd73:6d6f:6c76::15"), target))
	}
	got := answers()
	for _, a := range own {
		if !got[a] {
			t.Errorf("no answer for %s", a)
		}
		delete(got, a)
	}
	for a := range got {
		t.Errorf("the stack claims %s", a)
	}
	// A neighbour advertisement for the gateway's address is a lie.
	before := s.Stats().Spoofed
	f := solicit(testGuest, netip.MustParseAddr("fd73:6d6f:6c76::15"), s.gateway6)
	f[ethLen+header.IPv6MinimumSize] = byte(header.ICMPv6NeighborAdvert)
	send(s, f)
	f[ethLen+header.IPv6MinimumSize] = byte(header.ICMPv6RouterAdvert)
	send(s, f)
	if n := s.Stats().Spoofed - before; n != 2 {
		t.Errorf("%d of 2 lies are counted", n)
	}
}

// solicit is a frame with a neighbour solicitation.
func solicit(mac [6]byte, src, target netip.Addr) []byte {
	m := make([]byte, 24)
	m[0] = byte(header.ICMPv6NeighborSolicit)
	copy(m[8:], target.AsSlice())
	m = append(append(m, 1, 1), mac[:]...) // source link-layer address
	dst := tcpip.AddrFromSlice(target.AsSlice())
	h := header.ICMPv6(m)
	h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: tcpip.AddrFromSlice(src.AsSlice()), Dst: dst}))
	f := ether(mac, header.IPv6ProtocolNumber, ipPacket(src, target, protoICMPv6, m))
	f[ethLen+7] = 255 // the hop limit that neighbour discovery insists on
	return f
}

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// TestSYNFlood: SYNs that nobody follows up hold a bounded number of connections,
// and the rest is reset; another machine's stack is none the worse.
func TestSYNFlood(t *testing.T) {
	var mu sync.Mutex
	open, most := 0, 0
	to := serve(t, world4, func(c *net.TCPConn) {
		mu.Lock()
		open++
		most = max(most, open)
		mu.Unlock()
		_, _ = c.Read(make([]byte, 1))
		mu.Lock()
		open--
		mu.Unlock()
		_ = c.Close()
	})
	s := newStack(t, Config{Limits: Limits{Handshakes: 100}})
	before, routines := heap(), runtime.NumGoroutine()
	for port := range 65535 {
		send(s, tcpSegment(testGuest, netip.AddrPortFrom(s.cfg.Guest, uint16(port+1)), to, header.TCPFlagSyn, 7))
		if port%1000 == 0 {
			drain(s, nil)
		}
	}
	if n := runtime.NumGoroutine() - routines; n > 100*5 {
		t.Errorf("%d goroutines more", n)
	}
	if grown := int64(heap()) - int64(before); grown > 32<<20 {
		t.Errorf("%d MiB more", grown>>20)
	}
	mu.Lock()
	if most > 2*100 { // the server hears a moment later that one has ended
		t.Errorf("%d connections to the server at once", most)
	}
	mu.Unlock()
	if st := s.Stats(); st.OverLimit < 65535-1000 || st.Connections != 0 {
		t.Errorf("%+v", st)
	}
	_, g := setup(t, Config{}, netstacktest.Options{})
	c, err := g.DialTCP(timeout(t, 5*time.Second), serve(t, world4, echoServer))
	if err != nil {
		t.Fatal(err)
	}
	ping(t, c)
	_ = c.Close()
}

// TestFragmentsNeverFinish: beginnings of packets are kept in a bounded amount.
func TestFragmentsNeverFinish(t *testing.T) {
	s := newStack(t, Config{Dial: neverDial(t)})
	before := heap()
	for i := range 20000 {
		f := udpDatagram(testGuest, netip.AddrPortFrom(s.cfg.Guest, 1), netip.MustParseAddrPort(world4+":9"), make([]byte, 1400))
		ip := header.IPv4(f[ethLen:])
		ip.SetID(uint16(i))
		ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		send(s, f)
		// And IPv6's, with another identification each.
		frag := append([]byte{protoUDP, 0, 0, 1, 0, 0, byte(i >> 8), byte(i)}, make([]byte, 1400)...)
		send(s, ether(testGuest, header.IPv6ProtocolNumber, ipPacket(guestAddr(netip.IPv6Unspecified()), netip.MustParseAddr(world6), protoFrag6, frag)))
	}
	if grown := int64(heap()) - int64(before); grown > 32<<20 {
		t.Errorf("%d MiB more", grown>>20)
	} else {
		t.Logf("%d KiB more", grown>>10)
	}
	if st := s.Stats(); st.GuestBad != 0 || st.Spoofed != 0 {
		t.Errorf("the fragments were not taken: %+v", st)
	}
}

// TestQueueIsBounded: a guest that takes nothing has its frames dropped, counted.
func TestQueueIsBounded(t *testing.T) {
	s := newStack(t, Config{})
	send(s, arpMessage(testGuest, arpRequest, s.cfg.Guest, s.cfg.Gateway)) // so that the stack knows the MAC
	for range 2 * maxQueue {
		send(s, arpMessage(testGuest, arpRequest, s.cfg.Guest, s.cfg.Gateway))
	}
	st := s.Stats()
	if st.HostDropped != maxQueue+1 || st.HostFrames != maxQueue {
		t.Errorf("%+v", st)
	}
	n := 0
	drain(s, func([headerLen]byte, []byte) { n++ })
	if n != maxQueue {
		t.Errorf("%d frames came", n)
	}
}

// TestNext: the same frame until Pop; a wake-up for each time that there was
// nothing; none after OnReady(nil); nothing of an earlier driver's.
func TestNext(t *testing.T) {
	s := newStack(t, Config{})
	wakes := 0
	s.OnReady(func() { wakes++ })
	ask := func() { send(s, arpMessage(testGuest, arpRequest, s.cfg.Guest, s.cfg.Gateway)) }
	ask()
	if wakes != 0 {
		t.Error("woken, though Next has not been called")
	}
	_, a, ok := s.Next()
	_, b, ok2 := s.Next()
	if !ok || !ok2 || &a[0][0] != &b[0][0] {
		t.Error("Next gave another frame before Pop")
	}
	s.Negotiated(0) // while the device reads a frame
	if _, c, ok := s.Next(); !ok || &a[0][0] != &c[0][0] {
		t.Error("the frame that the device has was taken from it")
	}
	s.Pop()
	s.Pop() // no harm
	if _, _, ok := s.Next(); ok {
		t.Error("a frame too many")
	}
	ask()
	ask()
	if wakes != 1 {
		t.Errorf("%d wake-ups for two frames", wakes)
	}
	s.Negotiated(0)
	if _, _, ok := s.Next(); ok {
		t.Error("a frame from before a reset")
	}
	s.OnReady(nil)
	ask()
	if wakes != 1 {
		t.Error("woken after OnReady(nil)")
	}
	s.OnReady(func() { wakes++ })
	if wakes != 2 {
		t.Error("not woken for what came while nobody listened")
	}
}

// TestCost: a stack that has nothing to do costs little, and is made quickly.
func TestCost(t *testing.T) {
	const n = 50
	live := func() int {
		runtime.GC()
		runtime.GC() // pools are emptied by the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc + m.StackInuse)
	}
	first := newStack(t, Config{}) // what the process pays once
	_ = first.Close()
	before := live()
	stacks := make([]*Stack, n)
	best := time.Hour
	for i := range stacks {
		begin := time.Now()
		stacks[i] = newStack(t, Config{})
		best = min(best, time.Since(begin))
	}
	each := (live() - before) / n >> 10
	t.Logf("%d KiB live for each stack; the quickest was made in %v", each, best)
	if each <= 0 || each > 512 {
		t.Errorf("an idle stack has %d KiB", each)
	}
	if best > 2*time.Millisecond {
		t.Errorf("the quickest of %d took %v", n, best)
	}
	runtime.KeepAlive(stacks)
}
