package publish

import (
	"context"
	"io"
	"net"
	"testing"
)

// benchmark publishes a service of the loopback's and gives both ways to it.
func benchmark(b *testing.B, f func(c net.Conn)) map[string]string {
	b.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	s, err := Open([]Spec{{Network: "tcp", GuestPort: 80}}, Config{})
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = s.Serve(context.Background(), towards(l.Addr())) }()
	b.Cleanup(func() {
		_ = s.Close()
		l.Close()
	})
	return map[string]string{"direct": l.Addr().String(), "published": s.Addrs()[0].Addrs[0].String()}
}

// BenchmarkStream is the rate of one connection, beside the same without a relay.
func BenchmarkStream(b *testing.B) {
	for name, at := range benchmark(b, func(c net.Conn) { _, _ = io.Copy(io.Discard, struct{ io.Reader }{c}) }) {
		b.Run(name, func(b *testing.B) {
			c, err := net.Dial("tcp", at)
			if err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, 1<<17)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c) // its end says that all has arrived
			c.Close()
		})
	}
}

// BenchmarkRoundTrip is the time of a byte there and back.
func BenchmarkRoundTrip(b *testing.B) {
	for name, at := range benchmark(b, func(c net.Conn) { _, _ = io.Copy(c, c) }) {
		b.Run(name, func(b *testing.B) {
			c, err := net.Dial("tcp", at)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			b.ReportAllocs()
			var buf [1]byte
			for b.Loop() {
				if _, err := c.Write(buf[:]); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, buf[:]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkConnect is the time of a connection with a byte there and back.
func BenchmarkConnect(b *testing.B) {
	for name, at := range benchmark(b, func(c net.Conn) { _, _ = io.Copy(c, c) }) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var buf [1]byte
			for b.Loop() {
				c, err := net.Dial("tcp", at)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.Write(buf[:]); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, buf[:]); err != nil {
					b.Fatal(err)
				}
				_ = c.(*net.TCPConn).SetLinger(0) // no port stays in TIME_WAIT
				c.Close()
			}
		})
	}
}
