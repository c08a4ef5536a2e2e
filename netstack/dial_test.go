package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// TestDialContext reaches the guest's services from the host, TCP and UDP, both
// families, and says with an errno why it does not.
func TestDialContext(t *testing.T) {
	s, g := setup6(t, Config{GuestMAC: [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}}, netstacktest.Options{})
	for _, at := range []string{"10.0.2.15:80", "[" + guestAddr(netip.MustParseAddr("::")).String() + "]:80"} {
		l, err := g.Listen(netip.MustParseAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				}()
			}
		}()
		u, err := g.ListenUDP(netip.MustParseAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		go func() {
			buf := make([]byte, 2000)
			for {
				n, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(buf[:n], from)
			}
		}()
	}
	ctx := timeout(t, 10*time.Second)
	for _, c := range [][2]string{{"tcp", ":80"}, {"tcp", "guest:80"}, {"tcp4", "10.0.2.15:80"}, {"tcp6", "guest:80"}, {"udp", ":80"}, {"udp6", ":80"}} {
		conn, err := s.DialContext(ctx, c[0], c[1])
		if err != nil {
			t.Errorf("%v: %v", c, err)
			continue
		}
		ping(t, conn)
		if w, ok := conn.(interface{ CloseWrite() error }); ok && c[0][:3] == "tcp" {
			if err := w.CloseWrite(); err != nil {
				t.Error(err)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("%v: after the end: %v", c, err)
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.EOF) {
			t.Errorf("%v: a deadline: %v", c, err)
		}
		_ = conn.Close()
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v: after Close: %v", c, err)
		}
	}
	if _, err := s.DialContext(ctx, "tcp", ":81"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a shut port: %v", err)
	}
	u, err := s.DialContext(ctx, "udp", ":81")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	_, _ = u.Write([]byte("x"))
	_ = u.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := u.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a shut UDP port: %v", err)
	}
	for _, bad := range [][2]string{{"tcp", "192.0.2.1:80"}, {"tcp", "10.0.2.2:80"}, {"tcp", "example.com:80"}, {"tcp", ":http"}, {"tcp", "80"}, {"tcp", ":70000"}, {"unix", ":80"}, {"ip", ":80"}, {"tcp5", ":80"}} {
		if c, err := s.DialContext(ctx, bad[0], bad[1]); err == nil {
			_ = c.Close()
			t.Errorf("%v was dialled", bad)
		}
	}
}

// TestDialWaits: a guest that has not come up yet is waited for, as long as asked.
func TestDialWaits(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.DialContext(timeout(t, 50*time.Millisecond), "tcp", ":80"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody there: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		c, err := s.DialContext(timeout(t, 20*time.Second), "tcp", ":80")
		if err == nil {
			_ = c.Close()
		}
		got <- err
	}()
	// Longer than gVisor asks for an address that nobody has.
	time.Sleep(3500 * time.Millisecond)
	g, err := netstacktest.New(s, netstacktest.Options{Address: netip.MustParsePrefix("10.0.2.15/24")})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	l, err := g.Listen(netip.MustParseAddrPort("10.0.2.15:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := <-got; err != nil {
		t.Errorf("the guest came up: %v", err)
	}
}

// TestListen: what is served at the gateway's address the guest reaches, without
// a socket of the host's; on a host-only link too, where nothing else is.
func TestListen(t *testing.T) {
	for _, hostOnly := range []bool{false, true} {
		s, g := setup6(t, Config{HostOnly: hostOnly}, netstacktest.Options{})
		l, err := s.Listen("tcp", ":8080")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				}()
			}
		}()
		ctx := timeout(t, 10*time.Second)
		for _, to := range []string{"10.0.2.2:8080", "[fd73:6d6f:6c76::2]:8080"} {
			c, err := g.DialTCP(ctx, netip.MustParseAddrPort(to))
			if err != nil {
				t.Fatalf("host-only %v, %s: %v", hostOnly, to, err)
			}
			ping(t, c)
			_ = c.Close()
		}
		if _, err := s.Listen("tcp", ":8080"); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a taken port: %v", err)
		}
		if _, err := s.Listen("tcp", "192.0.2.1:80"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("another's address: %v", err)
		}
		any0, err := s.Listen("tcp", ":0")
		if err != nil || any0.Addr().(*net.TCPAddr).Port == 0 {
			t.Errorf("any port: %v, %v", any0, err)
		}
		to := serve(t, world4, echoServer)
		if hostOnly {
			short := timeout(t, 300*time.Millisecond)
			if _, err := g.DialTCP(short, to); err == nil {
				t.Error("the world is reached over a host-only link")
			}
			if _, err := g.DialTCP(ctx, netip.MustParseAddrPort("10.0.2.2:22")); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("a port that nobody has: %v", err)
			}
		}
		_ = l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a closed listener: %v", err)
		}
		if _, err := g.DialTCP(ctx, netip.MustParseAddrPort("10.0.2.2:8080")); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("after Close: %v", err)
		}
	}
}
