package publish

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// udpService sends each datagram back.
func udpService(t *testing.T) net.Addr {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
	return c.LocalAddr()
}

func exchange(t *testing.T, c net.Conn, msg []byte) {
	t.Helper()
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, maxDatagram)
	n, err := c.Read(got)
	if err != nil || !bytes.Equal(got[:n], msg) {
		t.Errorf("%v: %d bytes, %v; want %d", c.LocalAddr(), n, err, len(msg))
	}
}

// TestUDP: many clients at a time get their own answers, of any size, in both
// families.
func TestUDP(t *testing.T) {
	s := publish(t, towards(udpService(t)), Config{}, "53/udp")
	var clients sync.WaitGroup
	for _, a := range s.Addrs()[0].Addrs {
		for i := range 10 {
			c := dial(t, a)
			clients.Go(func() {
				for j := range 20 {
					exchange(t, c, []byte(fmt.Sprintf("client %d of %v says %d", i, a, j)))
				}
				exchange(t, c, nil)
			})
		}
	}
	clients.Wait()
	// One after the other, as a burst of them overruns a socket's queue.
	for _, a := range s.Addrs()[0].Addrs {
		exchange(t, dial(t, a), bytes.Repeat([]byte("large"), 12_000))
	}
	if st := s.Addrs()[0].Stats; st.Open != 22 || st.Accepted != 22 || st.Dropped != 0 || st.ToGuest != st.FromGuest {
		t.Errorf("%+v", st)
	}
}

// TestUDPWildcard: the answer comes from the address that was asked, which a
// connected client insists on.
func TestUDPWildcard(t *testing.T) {
	s := publish(t, towards(udpService(t)), Config{}, "0.0.0.0::53/udp", "[::]::53/udp")
	ps := s.Addrs()
	for i, hosts := range [][]string{{"127.0.0.1", "127.0.0.2", "127.9.9.9"}, {"::1"}} {
		for _, h := range append(hosts, others(t, i == 1)...) {
			a := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(h), ps[i].Spec.HostPort))
			exchange(t, dial(t, a), []byte("to "+h))
		}
	}
	// One client that asks two addresses has two flows.
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	for _, h := range []string{"127.0.0.3", "127.0.0.4", "127.0.0.3"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(h), ps[0].Spec.HostPort)
		if _, err := c.WriteToUDPAddrPort([]byte(h), to); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil || from != to || string(b[:n]) != h {
			t.Errorf("asked %v, %v answered %q, %v", to, from, b[:n], err)
		}
	}
}

// others are the host's own addresses besides the loopback.
func others(t *testing.T, v6 bool) []string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is6() == v6 && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Addr().String())
		}
	}
	return out
}

// TestUDPFlowsAreBounded: who comes when the table is full is not served, and
// counted; those in it are, and room comes with idleness.
func TestUDPFlowsAreBounded(t *testing.T) {
	s := publish(t, towards(udpService(t)), Config{MaxFlows: 2, Idle: 300 * time.Millisecond}, "127.0.0.1::53/udp")
	a := s.Addrs()[0].Addrs[0]
	first, second, third := dial(t, a), dial(t, a), dial(t, a)
	exchange(t, first, []byte("1"))
	exchange(t, second, []byte("2"))
	if _, err := third.Write([]byte("3")); err != nil {
		t.Fatal(err)
	}
	exchange(t, first, []byte("still there"))
	st := s.Addrs()[0].Stats
	if st.Dropped != 1 || st.Accepted != 2 {
		t.Errorf("%+v: want one datagram dropped and two flows", st)
	}
	for deadline := time.Now().Add(10 * time.Second); s.Addrs()[0].Stats.Open != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("idle flows stay: %+v", s.Addrs()[0].Stats)
		}
	}
	exchange(t, third, []byte("now"))
}

// TestUDPRefused: a service that is not there ends the flow, and one that comes
// later is reached by the next datagram.
func TestUDPRefused(t *testing.T) {
	addr := udpService(t)
	gone, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	g := &guest{}
	refused := make(chan struct{})
	g.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if g.tries.Load() == 1 {
			c, err := towards(gone.LocalAddr()).dial(ctx, network, address)
			return &closeTold{c, refused}, err
		}
		return towards(addr).dial(ctx, network, address)
	}
	s := publish(t, g, Config{}, "127.0.0.1::53/udp")
	c := dial(t, s.Addrs()[0].Addrs[0])
	if _, err := c.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	<-refused
	for s.Addrs()[0].Stats.Open != 0 { // its last steps
		time.Sleep(time.Millisecond)
	}
	exchange(t, c, []byte("found"))
}

// closeTold tells of its Close.
type closeTold struct {
	net.Conn
	told chan struct{}
}

func (c *closeTold) Close() error {
	close(c.told)
	return c.Conn.Close()
}

// TestInjectedPacketConn: one that is no UDPConn serves as well.
func TestInjectedPacketConn(t *testing.T) {
	u, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	s := NewSet(Config{})
	if err := s.AddPacket(Spec{Network: "udp", GuestPort: 53}, struct{ net.PacketConn }{u}); err != nil {
		t.Fatal(err)
	}
	serve(t, s, towards(udpService(t)))
	for range 2 {
		c := dial(t, u.LocalAddr())
		exchange(t, c, []byte("one"))
		exchange(t, c, []byte("two"))
	}
	if st := s.Addrs()[0].Stats; st.Open != 2 {
		t.Errorf("%+v", st)
	}
}
