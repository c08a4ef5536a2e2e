package netstack

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// TestClose: whatever was under way, no goroutine is left, and soon.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	hang := serveForever(t)
	ctx, cancel := context.WithCancel(context.Background())
	cfg := Config{NameServer: slowDNS{}, Ping: PingSocket}
	cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasPrefix(address, silent4) { // a connect that does not end
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g, err := netstacktest.New(s, netstacktest.Options{Address: netip.MustParsePrefix("10.0.2.15/24"), Gateway: s.cfg.Gateway, IPv6: true})
	if err != nil {
		t.Fatal(err)
	}
	full := make(chan struct{})
	for range 4 {
		c, err := g.DialTCP(timeout(t, 5*time.Second), hang)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			b := make([]byte, 1<<20)
			for _, err := c.Write(b); err == nil; _, err = c.Write(b) {
			}
			full <- struct{}{}
		}()
	}
	for range 4 {
		<-full
	}
	send(s, tcpSegment(g.MAC(), netip.AddrPortFrom(s.cfg.Guest, 9), netip.MustParseAddrPort(silent4+":9"), header.TCPFlagSyn, 1))
	for _, to := range []string{world4 + ":9", "10.0.2.3:53"} {
		send(s, udpDatagram(g.MAC(), netip.AddrPortFrom(s.cfg.Guest, 9), netip.MustParseAddrPort(to), []byte("x")))
	}
	send(s, echoRequest(g.MAC(), s.cfg.Guest, netip.MustParseAddr(world4), 1, 1, nil))
	l, err := s.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = l.Accept() })
	wg.Go(func() { _, _ = s.DialContext(ctx, "tcp", ":1") })
	wg.Go(func() {
		if c, err := s.DialContext(ctx, "udp", ":1"); err == nil {
			_, _ = c.Read(make([]byte, 1))
			_ = c.Close()
		}
	})
	begin := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("Close took %v", d)
	}
	_ = s.Close()
	cancel()
	wg.Wait()
	send(s, synTo(g, netip.MustParseAddr(world4), 80)) // nothing happens any more
	if _, err := s.Listen("tcp", ":81"); err == nil {
		t.Error("Listen after Close")
	}
	if _, err := s.DialContext(context.Background(), "tcp", ":81"); err == nil {
		t.Error("DialContext after Close")
	}
	g.Close()
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+2 }) // the test's server has two
	if t.Failed() {
		buf := make([]byte, 1<<20)
		t.Logf("%s", buf[:runtime.Stack(buf, true)])
	}
}

// TestSendDuringClose: a device may still be sending and taking frames.
func TestSendDuringClose(t *testing.T) {
	for range 5 {
		s, err := New(Config{Dial: func(context.Context, string, string) (net.Conn, error) {
			c, d := net.Pipe()
			_ = d.Close()
			return c, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var wg, begun sync.WaitGroup
		for queue := range 4 {
			begun.Add(1)
			wg.Go(func() {
				for i := 0; ; i++ {
					src := netip.AddrPortFrom(s.cfg.Guest, uint16(i*4+queue+1))
					send(s, arpMessage(testGuest, arpRequest, s.cfg.Guest, s.cfg.Gateway))
					send(s, tcpSegment(testGuest, src, netip.MustParseAddrPort(world4+":80"), header.TCPFlagSyn, 1))
					send(s, udpDatagram(testGuest, src, netip.MustParseAddrPort(world4+":80"), []byte("x")))
					if i == 5 {
						begun.Done()
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		wg.Go(func() {
			for {
				drain(s, nil)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		begun.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		close(stop)
		wg.Wait()
	}
}

// serveForever accepts connections and reads nothing.
func serveForever(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", world4+":0")
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			held = append(held, c)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, c := range held {
			_ = c.Close()
		}
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// slowDNS answers when it is told to end.
type slowDNS struct{}

func (slowDNS) Answer(ctx context.Context, _ []byte, _ bool) []byte {
	<-ctx.Done()
	return nil
}
