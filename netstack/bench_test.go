package netstack

import (
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// BenchmarkTCP carries data between a TCP socket of the host's and one of a guest
// that is in this process too: both ends and both stacks share the processors.
func BenchmarkTCP(b *testing.B) {
	for _, c := range []struct {
		name string
		mtu  int
		o    netstacktest.Options
	}{
		{"mtu=1500", 1500, netstacktest.Options{}},
		{"mtu=1500,tso", 1500, netstacktest.Options{Offloads: netstacktest.AllOffloads}},
		{"mtu=65520", 65520, netstacktest.Options{}},
		{"mtu=65520,tso", 65520, netstacktest.Options{Offloads: netstacktest.AllOffloads}},
	} {
		for _, up := range []bool{true, false} {
			name := c.name + "/down"
			if up {
				name = c.name + "/up"
			}
			b.Run(name, func(b *testing.B) { benchTCP(b, c.mtu, c.o, up) })
		}
	}
}

func benchTCP(b *testing.B, mtu int, o netstacktest.Options, up bool) {
	const chunk = 1 << 20
	_, g := setup(b, Config{MTU: mtu}, o)
	data := make([]byte, chunk)
	done := make(chan struct{})
	to := serve(b, world4, func(c *net.TCPConn) {
		defer c.Close()
		if up {
			buf := make([]byte, 256<<10)
			for left := b.N * chunk; left > 0; {
				n, err := c.Read(buf)
				if err != nil {
					break
				}
				left -= n
			}
			close(done)
			return
		}
		for range b.N {
			if _, err := c.Write(data); err != nil {
				return
			}
		}
	})
	c, err := g.DialTCP(timeout(b, 10*time.Second), to)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.SetBytes(chunk)
	before := cpuTime()
	b.ResetTimer()
	if up {
		for range b.N {
			if _, err := c.Write(data); err != nil {
				b.Fatal(err)
			}
		}
		<-done
	} else if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10)); err != nil || n != int64(b.N)*chunk {
		b.Fatalf("%d bytes, %v", n, err)
	}
	gbit := float64(b.N) * chunk * 8 / 1e9
	b.ReportMetric(gbit/b.Elapsed().Seconds(), "Gbit/s")
	// What two processors could do that had nothing else to: the measure on a busy host.
	b.ReportMetric(gbit/(cpuTime()-before).Seconds()*2, "Gbit/2cpu-s")
}

// cpuTime is what the process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLatency is a request of a byte and its answer.
func BenchmarkLatency(b *testing.B) {
	_, g := setup(b, Config{}, netstacktest.Options{})
	c, err := g.DialTCP(timeout(b, 10*time.Second), serve(b, world4, echoServer))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := []byte{1}
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkConnect is a connection made and ended.
func BenchmarkConnect(b *testing.B) {
	_, g := setup(b, Config{}, netstacktest.Options{})
	to := serve(b, world4, func(c *net.TCPConn) { _ = c.Close() })
	ctx := timeout(b, time.Minute)
	for b.Loop() {
		c, err := g.DialTCP(ctx, to)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.ReadAll(c)
		_ = c.Close()
	}
}

// BenchmarkUDP is a datagram and its answer.
func BenchmarkUDP(b *testing.B) {
	_, g := setup(b, Config{}, netstacktest.Options{})
	c, err := g.DialUDP(udpEcho(b, world4))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 100)
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNew is what a machine's start pays for its network.
func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		s, err := New(Config{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = s.Close()
		b.StartTimer()
	}
}

// udpEcho echoes datagrams.
func udpEcho(t testing.TB, addr string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}
