package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// guest is a Dialer into a guest whose services are sockets of the test's.
type guest struct {
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	tries atomic.Int32
}

func (g *guest) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	g.tries.Add(1)
	return g.dial(ctx, network, address)
}

// towards is a guest that has everything at one address of the host.
func towards(addr net.Addr) *guest {
	return &guest{dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr.String())
	}}
}

// service is a TCP service whose connections f answers.
func service(t *testing.T, f func(c *net.TCPConn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr()
}

// echo sends back what comes until the client's end, and only then its own.
func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

func specs(t *testing.T, in ...string) []Spec {
	t.Helper()
	var out []Spec
	for _, s := range in {
		spec, err := Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, spec)
	}
	return out
}

// publish opens and serves; the end of the test is that of both, and holds them to it.
func publish(t *testing.T, d Dialer, c Config, in ...string) *Set {
	t.Helper()
	s, err := Open(specs(t, in...), c)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s, d)
	return s
}

func serve(t *testing.T, s *Set, d Dialer) {
	t.Helper()
	end := make(chan error, 1)
	go func() { end <- s.Serve(context.Background(), d) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-end; err != nil {
			t.Errorf("Serve: %v", err)
		}
		for _, p := range s.Addrs() {
			if p.Stats.Open != 0 || p.Stats.Waiting != 0 {
				t.Errorf("after the end: %+v", p)
			}
		}
	})
}

func dial(t *testing.T, a net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial(a.Network(), a.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // a test that hangs says where
	return c
}

// ask sends a message with its end, and gives all of the answer.
func ask(t *testing.T, a net.Addr, msg string) (string, error) {
	t.Helper()
	c := dial(t, a)
	if _, err := io.WriteString(c, msg); err != nil {
		return "", err
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestRelaysOnEveryKindOfSocket(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	s := publish(t, towards(service(t, echo)), Config{}, "80", "127.0.0.1::80", "[::1]::80", "0.0.0.0::80", "[::]::80", "unix:"+sock+":22")
	kinds := 0
	for _, p := range s.Addrs() {
		for _, a := range p.Addrs {
			kinds++
			if p.Spec.Network == "tcp" && (p.Spec.HostPort == 0 || addrPort(a).Port() != p.Spec.HostPort) {
				t.Errorf("%v listens on %v", p.Spec, a)
			}
			msg := strings.Repeat("what goes in comes out\n", 20000)
			if got, err := ask(t, a, msg); err != nil || got != msg {
				t.Errorf("%v: %d bytes came back, %v; want %d", a, len(got), err, len(msg))
			}
		}
	}
	if kinds != 7 {
		t.Errorf("%d sockets, want 7: the loopback of two families and five more", kinds)
	}
	for _, p := range s.Addrs() {
		if p.Stats.ToGuest != p.Stats.FromGuest || p.Stats.ToGuest == 0 || p.Stats.Refused+p.Stats.Resets != 0 {
			t.Errorf("%+v", p)
		}
	}
}

func TestDefaultIsTheLoopbackOfBothFamilies(t *testing.T) {
	s, err := Open(specs(t, "80", "80/udp"), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, p := range s.Addrs() {
		var got []string
		for _, a := range p.Addrs {
			got = append(got, a.String())
		}
		want := fmt.Sprintf("[127.0.0.1:%d [::1]:%[1]d]", p.Spec.HostPort)
		if fmt.Sprint(got) != want || p.Spec.HostPort == 0 {
			t.Errorf("%v listens on %v, want %s", p.Spec, got, want)
		}
	}
}

// TestWhereItLeads: the Dialer is asked for what the publication says.
func TestWhereItLeads(t *testing.T) {
	asked := make(chan string, 1)
	g := &guest{dial: func(_ context.Context, network, address string) (net.Conn, error) {
		asked <- network + " " + address
		c, far := net.Pipe()
		far.Close()
		return c, nil
	}}
	sock := filepath.Join(t.TempDir(), "s")
	s := publish(t, g, Config{}, "80", "tcp::0-10.0.2.15:81", "tcp::0-[fd00::15]:82", "unix:"+sock+":22", "53/udp")
	want := []string{"tcp guest:80", "tcp 10.0.2.15:81", "tcp [fd00::15]:82", "tcp guest:22", "udp guest:53"}
	for i, p := range s.Addrs() {
		c := dial(t, p.Addrs[0])
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if got := <-asked; got != want[i] {
			t.Errorf("%v asks for %s, want %s", p.Spec, got, want[i])
		}
	}
}

// TestManyConnections: 500 at a time, with their own bytes each.
func TestManyConnections(t *testing.T) {
	const n, size = 500, 20_000
	s := publish(t, towards(service(t, echo)), Config{}, "80")
	a := s.Addrs()[0].Addrs[0]
	var all, up sync.WaitGroup
	up.Add(n)
	for i := range n {
		all.Go(func() {
			c, err := net.Dial("tcp", a.String())
			if err != nil {
				up.Done()
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			msg := bytes.Repeat([]byte(fmt.Sprintf("%07d ", i)), size/8)
			_, err = c.Write(msg[:8])
			if err == nil {
				_, err = io.ReadFull(c, make([]byte, 8))
			}
			up.Done()
			up.Wait() // all are open
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				_, _ = c.Write(msg)
				_ = c.(*net.TCPConn).CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, msg) {
				t.Errorf("connection %d: %d bytes of %d, %v", i, len(got), len(msg), err)
			}
		})
	}
	up.Wait()
	if st := s.Addrs()[0].Stats; st.Open != n {
		t.Errorf("%d are open, want %d", st.Open, n)
	}
	all.Wait()
}

// TestConnectionsAreBounded: the one too many waits until another has ended.
func TestConnectionsAreBounded(t *testing.T) {
	s := publish(t, towards(service(t, echo)), Config{MaxConns: 2}, "80")
	a := s.Addrs()[0].Addrs[0]
	var open [2]net.Conn
	for i := range open {
		open[i] = dial(t, a)
		_, _ = open[i].Write([]byte{1})
		if _, err := io.ReadFull(open[i], make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	third := dial(t, a)
	_, _ = third.Write([]byte{3})
	_ = third.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := third.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the third of two: %v", err)
	}
	open[0].Close()
	_ = third.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(third, make([]byte, 1)); err != nil {
		t.Errorf("when there is room: %v", err)
	}
}

// TestCloseLeavesNothing: no goroutine, no descriptor, no file; connections that
// wait and those that are open are reset.
func TestCloseLeavesNothing(t *testing.T) {
	addr := service(t, echo)
	sock := filepath.Join(t.TempDir(), "s")
	fds := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skipf("NOT RUN: descriptors cannot be counted: %v", err)
		}
		return len(d)
	}
	goroutines, open := runtime.NumGoroutine(), fds()
	for _, byContext := range []bool{false, true} {
		g := &guest{dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasSuffix(address, ":1") {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return towards(addr).dial(ctx, network, address)
		}}
		s, err := Open(specs(t, "80", "1", "53/udp", "unix:"+sock+":80"), Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		end := make(chan error, 1)
		go func() { end <- s.Serve(ctx, g) }()
		ps := s.Addrs()
		talking, waiting := dial(t, ps[0].Addrs[0]), dial(t, ps[1].Addrs[0])
		_, _ = talking.Write([]byte{1})
		if _, err := io.ReadFull(talking, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		for g.tries.Load() < 2 {
			runtime.Gosched()
		}
		if byContext {
			cancel()
			if err := <-end; err != nil {
				t.Errorf("Serve: %v", err)
			}
			end <- nil
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-end; err != nil {
			t.Errorf("Serve: %v", err)
		}
		cancel()
		for _, c := range []net.Conn{talking, waiting} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("at the end: %v, want a reset", err)
			}
			c.Close()
		}
		if _, err := os.Lstat(sock); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the Unix socket: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("the second Close: %v", err)
		}
		if err := s.Serve(context.Background(), g); byContext && err == nil {
			t.Error("Serve twice is no error")
		}
	}
	// The far ends of the service's connections go when they hear of it.
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines || fds() > open; runtime.Gosched() {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, were %d; %d descriptors, were %d\n%s", runtime.NumGoroutine(), goroutines, fds(), open, buf[:runtime.Stack(buf, true)])
		}
	}
}

func TestInjectedListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	s := NewSet(Config{})
	if err := errors.Join(s.Add(Spec{Network: "tcp", GuestPort: 80}, l), s.AddPacket(Spec{Network: "udp", GuestPort: 53}, u)); err != nil {
		t.Fatal(err)
	}
	if s.Add(Spec{Network: "udp", GuestPort: 80}, l) == nil || s.AddPacket(Spec{Network: "tcp", GuestPort: 80}, u) == nil || s.Add(Spec{Network: "tcp"}, l) == nil {
		t.Error("a spec that does not fit its socket is taken")
	}
	serve(t, s, towards(service(t, echo)))
	if got, err := ask(t, l.Addr(), "mine"); err != nil || got != "mine" {
		t.Errorf("%q, %v", got, err)
	}
	if s.Add(Spec{Network: "tcp", GuestPort: 80}, l) == nil {
		t.Error("a listener is taken while Serve runs")
	}
}
