package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// noise is data that nothing compresses or repeats.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// TestTCPTransfer carries data both ways, whole and in order, with and without
// what virtio-net can leave to the other side.
func TestTCPTransfer(t *testing.T) {
	for _, c := range []struct {
		name  string
		mtu   int
		bytes int
		o     netstacktest.Options
	}{
		{"plain", 1500, 20 << 20, netstacktest.Options{}},
		{"100MB with offloads", 65520, 100 << 20, netstacktest.Options{Offloads: netstacktest.AllOffloads}},
		{"TSO at 1500", 1500, 20 << 20, netstacktest.Options{Offloads: netstacktest.AllOffloads}},
		{"checksums only", 1500, 4 << 20, netstacktest.Options{Offloads: netstacktest.CSum | netstacktest.GuestCSum}},
		{"large frames", 65520, 20 << 20, netstacktest.Options{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := noise(c.bytes)
			_, g := setup(t, Config{MTU: c.mtu}, c.o)
			sums := make(chan [32]byte, 1)
			up := serve(t, world4, func(c *net.TCPConn) {
				h := sha256.New()
				_, _ = io.Copy(h, c)
				sums <- [32]byte(h.Sum(nil))
				_ = c.Close()
			})
			down := serve(t, world4, func(c *net.TCPConn) {
				_, _ = io.Copy(c, bytes.NewReader(data))
				_ = c.Close()
			})
			ctx := timeout(t, 60*time.Second)
			u, err := g.DialTCP(ctx, up)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			if _, err := u.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := u.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			want := sha256.Sum256(data)
			select {
			case got := <-sums:
				if got != want {
					t.Error("up: other bytes came than were sent")
				}
			case <-ctx.Done():
				t.Fatal("up: it never ended")
			}
			d, err := g.DialTCP(ctx, down)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			_ = d.SetDeadline(time.Now().Add(60 * time.Second))
			h := sha256.New()
			if n, err := io.Copy(h, d); err != nil || n != int64(len(data)) {
				t.Fatalf("down: %d bytes of %d, %v", n, len(data), err)
			}
			if [32]byte(h.Sum(nil)) != want {
				t.Error("down: other bytes came than were sent")
			}
		})
	}
}

// TestTCPIPv6 reaches an IPv6 server from an address of SLAAC's, and hears of one
// that cannot be reached. (gVisor as a guest pays no heed to that message.)
func TestTCPIPv6(t *testing.T) {
	unreachable := make(chan struct{}, 1)
	_, g := setup6(t, Config{}, netstacktest.Options{Tap: func(_ [netstacktest.HeaderLen]byte, f []byte) bool {
		if m := icmpOf(f); len(m) > 8+40+20 && m[0] == 1 && m[1] == 3 && m[8]>>4 == 6 { // RFC 4443 §3.1: address unreachable
			signal(unreachable)
		}
		return true
	}})
	c, err := g.DialTCP(timeout(t, 5*time.Second), serve(t, world6, echoServer))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ping(t, c)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	go func() {
		<-unreachable
		cancel()
	}()
	if _, err = g.DialTCP(ctx, netip.MustParseAddrPort("["+noHost6+"]:80")); !errors.Is(err, context.Canceled) {
		t.Errorf("a host that cannot be reached: %v, and no message about it", err)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ping has a line echoed.
func ping(t testing.TB, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
	_ = c.SetDeadline(time.Time{})
}

// TestTCPRefused: what the world refuses the guest sees refused, at once; what it
// cannot reach, as unreachable.
func TestTCPRefused(t *testing.T) {
	s, g := setup(t, Config{}, netstacktest.Options{})
	l, err := net.Listen("tcp", world4+":0")
	if err != nil {
		t.Fatal(err)
	}
	shut := l.Addr().(*net.TCPAddr).AddrPort()
	_ = l.Close()
	for _, c := range []struct {
		to   netip.AddrPort
		want string
	}{
		{shut, "refused"},
		{netip.AddrPortFrom(s.cfg.Gateway, 22), "refused"},
		{netip.AddrPortFrom(s.cfg.DNS, 53), "refused"},
		{netip.MustParseAddrPort(noHost4 + ":80"), "no route to host"},
		{netip.MustParseAddrPort(noAdmin4 + ":80"), "no route to host"},
		{netip.MustParseAddrPort("10.0.2.77:80"), "no route to host"},
	} {
		begin := time.Now()
		conn, err := g.DialTCP(timeout(t, 10*time.Second), c.to)
		if err == nil {
			_ = conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.to, err, c.want)
		}
		if d := time.Since(begin); d > 500*time.Millisecond && c.to.Addr() != netip.MustParseAddr("10.0.2.77") {
			t.Errorf("%v: after %v", c.to, d)
		}
	}
	if st := s.Stats(); st.Refused != 1 || st.Unreachable != 2 || st.Connections != 0 {
		t.Errorf("%+v", st)
	}
}

// TestLoopbackIsClosed: the host's own loopback is no destination, however it is
// written, but for single ports at the gateway's address.
func TestLoopbackIsClosed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
			go echoServer(c.(*net.TCPConn))
		}
	}()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	dialled := make(chan string, 100)
	cfg := Config{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled <- address
		return nil, syscall.ECONNREFUSED
	}}
	_, g := setup6(t, cfg, netstacktest.Options{})
	var wg sync.WaitGroup
	for _, a := range []string{"127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "255.255.255.255", "240.0.0.1", "224.0.0.1", "10.0.2.2", "10.0.2.3", "10.0.2.255", "10.0.2.0",
		"::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "fe80::1", "ff02::1", "fd73:6d6f:6c76::2"} {
		addr := netip.MustParseAddr(a)
		for _, f := range [][]byte{synTo(g, addr, port), udpTo(g, addr, port)} {
			wg.Go(func() { g.SendFrame(f) })
		}
	}
	wg.Wait()
	select {
	case a := <-dialled:
		t.Errorf("the guest had %s dialled", a)
	case <-time.After(200 * time.Millisecond): // the absence of an event
	}

	s, g := setup(t, Config{HostServices: []uint16{port}}, netstacktest.Options{})
	c, err := g.DialTCP(timeout(t, 5*time.Second), netip.AddrPortFrom(s.cfg.Gateway, port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ping(t, c)
}

// TestTCPHalfClose: each direction ends by itself.
func TestTCPHalfClose(t *testing.T) {
	_, g := setup(t, Config{}, netstacktest.Options{})
	// The guest ends first; the server answers only then.
	c, err := g.DialTCP(timeout(t, 5*time.Second), serve(t, world4, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		_, _ = c.Write(append([]byte("got "), b...))
		_ = c.Close()
	}))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.Write([]byte("question"))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "got question" {
		t.Errorf("%q, %v", b, err)
	}
	_ = c.Close()

	// The server ends first, and still reads.
	got := make(chan string, 1)
	c, err = g.DialTCP(timeout(t, 5*time.Second), serve(t, world4, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("bye"))
		_ = c.CloseWrite()
		b, err := io.ReadAll(c)
		got <- string(b) + errText(err)
		_ = c.Close()
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
		t.Errorf("%q, %v", b, err)
	}
	_, _ = c.Write([]byte("late"))
	_ = c.CloseWrite()
	if s := <-got; s != "late" {
		t.Errorf("the server, after its own end: %q", s)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return " " + err.Error()
}

// TestTCPReset: RST stays RST, both ways.
func TestTCPReset(t *testing.T) {
	s, g := setup(t, Config{}, netstacktest.Options{})
	ended := make(chan error, 1)
	to := serve(t, world4, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
		_ = c.Close()
	})
	c, err := g.DialTCP(timeout(t, 5*time.Second), to)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("x"))
	c.Reset()
	select {
	case err := <-ended:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the guest reset, and the server saw: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the server never heard of the guest's RST")
	}

	c, err = g.DialTCP(timeout(t, 5*time.Second), serve(t, world4, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
		_ = c.Close()
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the server reset, and the guest saw: %v", err)
	}

	// A guest that resets while the server reads nothing.
	stall := make(chan struct{})
	c, err = g.DialTCP(timeout(t, 5*time.Second), serve(t, world4, func(c *net.TCPConn) {
		<-stall
		_, err := io.Copy(io.Discard, c)
		ended <- err
		_ = c.Close()
	}))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(c, zeros{}) // until nothing goes any more
	c.Reset()
	eventually(t, "nothing is left of the connections", func() bool { return s.Stats().Connections == 0 })
	close(stall)
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the guest reset a full connection, and the server saw: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// TestTCPMany opens 1,000 connections, has all of them alive at once, and more
// are refused.
func TestTCPMany(t *testing.T) {
	const many = 1000
	s, g := setup(t, Config{Limits: Limits{Connections: many, Handshakes: 64}}, netstacktest.Options{})
	to := serve(t, world4, echoServer)
	begin := time.Now()
	conns := make([]net.Conn, many)
	work := make(chan int)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range work {
				c, err := g.DialTCP(timeout(t, 20*time.Second), to)
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
					continue
				}
				conns[i] = c
			}
		})
	}
	for i := range many {
		work <- i
	}
	close(work)
	wg.Wait()
	if t.Failed() {
		return
	}
	took := time.Since(begin)
	t.Logf("%d connections in %v: %.0f a second", many, took, many/took.Seconds())
	if rate := many / took.Seconds(); rate < 200 {
		t.Errorf("%.0f connections a second, 200 are wanted", rate)
	}
	// The guest knows of a connection a moment before its counter does.
	eventually(t, "each connection is counted", func() bool { return s.Stats().Connections == many })
	if _, err := g.DialTCP(timeout(t, 5*time.Second), to); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("one too many: %v", err)
	}
	for _, c := range conns {
		ping(t, c)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	eventually(t, "the connections are gone", func() bool { return s.Stats().Connections == 0 })
}
