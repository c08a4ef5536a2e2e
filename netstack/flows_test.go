package netstack

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// TestFlows: what is open is on the list with its ends and bytes, the newest
// first, no more of it than asked for, and gone when it has ended.
func TestFlows(t *testing.T) {
	before := time.Now()
	s, g := setup(t, Config{}, netstacktest.Options{})
	if got := s.Flows(10); len(got) != 0 {
		t.Errorf("nothing is open: %+v", got)
	}
	tcp := serve(t, world4, echoServer)
	c, err := g.DialTCP(timeout(t, 5*time.Second), tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange := func(c net.Conn, n int) {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	exchange(c, 1000)
	udp := udpEcho(t, world4)
	u, err := g.DialUDP(udp)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	exchange(u, 100)
	l, err := g.Listen(netip.AddrPortFrom(s.cfg.Guest, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	in, err := s.DialContext(timeout(t, 5*time.Second), "tcp", "guest:80")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, err := in.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	at := addrPortOf
	want := []Flow{
		{Proto: "tcp", Guest: at(server.LocalAddr()), Peer: at(in.LocalAddr()), Inbound: true, Received: 5},
		{Proto: "udp", Guest: at(u.LocalAddr()), Peer: udp, Sent: 100, Received: 100},
		{Proto: "tcp", Guest: at(c.LocalAddr()), Peer: tcp, Sent: 1000, Received: 1000},
	}
	var got []Flow
	eventually(t, "all bytes are counted", func() bool { // which is done behind their sending
		got = s.Flows(10)
		n := uint64(0)
		for _, f := range got {
			n += f.Sent + f.Received
		}
		return n == 5+2*100+2*1000
	})
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	last := time.Now()
	for i, f := range got {
		if f.Since.Before(before) || f.Since.After(last) {
			t.Errorf("%d: since %v, after %v", i, f.Since, last)
		}
		last = f.Since
		f.Since = time.Time{}
		if f != want[i] {
			t.Errorf("%d: %+v, want %+v", i, f, want[i])
		}
	}
	if got := s.Flows(2); len(got) != 2 || got[0].Guest != want[0].Guest || got[1].Guest != want[1].Guest {
		t.Errorf("the newest two: %+v", got)
	}
	if got := s.Flows(-1); len(got) != 0 {
		t.Errorf("fewer than none: %+v", got)
	}
	_, _ = c.Close(), in.Close()
	eventually(t, "what was closed is off the list", func() bool {
		f := s.Flows(10)
		return len(f) == 1 && f[0].Proto == "udp"
	})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if got := s.Flows(10); len(got) != 0 {
		t.Errorf("after Close: %+v", got)
	}
}
