package netstack

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/smolvmm/smolvmm/netstack/audit"
	"github.com/smolvmm/smolvmm/netstack/netstacktest"
	"github.com/smolvmm/smolvmm/netstack/policy"
)

// answerer answers a query with itself, and says over what.
type answerer struct{}

func (answerer) Answer(_ context.Context, q []byte, tcp bool) []byte {
	if tcp {
		return append([]byte("tcp:"), q...)
	}
	return append([]byte("udp:"), q...)
}

// TestDNS: queries to the gateway and the DNS address are answered, over UDP and
// TCP, several in one connection.
func TestDNS(t *testing.T) {
	s, g := setup6(t, Config{NameServer: answerer{}}, netstacktest.Options{})
	for _, at := range []string{"10.0.2.3:53", "10.0.2.2:53", "[fd73:6d6f:6c76::3]:53"} {
		to := netip.MustParseAddrPort(at)
		u, err := g.DialUDP(to)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = u.Write([]byte("query"))
		_ = u.SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 100)
		if n, err := u.Read(b); err != nil || string(b[:n]) != "udp:query" {
			t.Errorf("%s: %q, %v", at, b[:n], err)
		}
		_ = u.Close()
		c, err := g.DialTCP(timeout(t, 5*time.Second), to)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write([]byte("\x00\x03one\x00\x03two"))
		if _, err := io.ReadFull(c, b[:18]); err != nil || string(b[:18]) != "\x00\x07tcp:one\x00\x07tcp:two" {
			t.Errorf("%s: %q, %v", at, b[:18], err)
		}
		_ = c.Close()
	}
	if n := s.Stats().DNSQueries; n != 9 {
		t.Errorf("%d queries are counted", n)
	}
}

func mustPolicy(t *testing.T, rules string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse(strings.NewReader(rules), "test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type auditLog struct {
	mu     sync.Mutex
	events []audit.Event
}

func (l *auditLog) emit(e audit.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

func (l *auditLog) take() []audit.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.events
	l.events = nil
	return e
}

// TestPolicyDenies: what is denied is refused at once, is in the audit log, and is
// never dialled; the gateway's own services stay.
func TestPolicyDenies(t *testing.T) {
	var log auditLog
	admin := make(chan struct{}, 1)
	open := serve(t, world4, echoServer)
	cfg := Config{
		Policy: mustPolicy(t, "allow tcp "+open.String()+"\ndeny-all"),
		Audit:  log.emit, NameServer: answerer{},
	}
	cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != open.String() {
			t.Errorf("%s %s was dialled", network, address)
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	s, g := setup(t, cfg, netstacktest.Options{Tap: func(_ [netstacktest.HeaderLen]byte, f []byte) bool {
		if m := icmpOf(f); len(m) > 8 && m[0] == byte(header.ICMPv4DstUnreachable) && m[1] == byte(header.ICMPv4AdminProhibited) {
			signal(admin)
		}
		return true
	}})
	ctx := timeout(t, 10*time.Second)
	shut := serve(t, "203.0.113.2", echoServer)
	if _, err := g.DialTCP(ctx, shut); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a denied connection: %v", err)
	}
	g.SendFrame(udpDatagram(g.MAC(), netip.MustParseAddrPort("10.0.2.15:9"), netip.MustParseAddrPort("9.9.9.9:53"), []byte("leak")))
	<-admin
	g.SendFrame(echoRequest(g.MAC(), s.cfg.Guest, netip.MustParseAddr(world4), 1, 1, nil))
	<-admin
	events := log.take()
	if len(events) != 3 || s.Stats().Denied != 3 {
		t.Fatalf("%+v", events)
	}
	for i, want := range []audit.Event{
		{Address: "203.0.113.2", Port: shut.Port(), Proto: "tcp"}, {Address: "9.9.9.9", Port: 53, Proto: "udp"}, {Address: world4, Proto: "icmp"},
	} {
		e := events[i]
		if e.Event != audit.EgressDenied || e.Address != want.Address || e.Port != want.Port || e.Proto != want.Proto || e.Reason == "" {
			t.Errorf("%+v", e)
		}
	}
	c, err := g.DialTCP(ctx, open)
	if err != nil {
		t.Fatal(err)
	}
	ping(t, c)
	_ = c.Close()
	d, err := g.DialTCP(ctx, netip.MustParseAddrPort("10.0.2.3:53"))
	if err != nil {
		t.Fatalf("the gateway's name server: %v", err)
	}
	_ = d.Close()
}

// TestPolicyChecksTLS: an address that a name opened is open to that name only.
func TestPolicyChecksTLS(t *testing.T) {
	var log auditLog
	sawBytes := make(chan int, 8)
	to := serve(t, world4, func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		sawBytes <- int(n)
		_ = c.Close()
	})
	greeter := serve(t, world4, func(c *net.TCPConn) { // speaks first
		_, _ = c.Write([]byte("hello"))
		echoServer(c)
	})
	p := mustPolicy(t, "allow api.example.com:"+strconv.Itoa(int(to.Port()))+","+strconv.Itoa(int(greeter.Port()))+"\ndeny-all")
	_, g := setup(t, Config{Policy: p, Audit: log.emit}, netstacktest.Options{})
	ctx := timeout(t, 10*time.Second)
	if _, err := g.DialTCP(ctx, to); err == nil {
		t.Error("open before DNS gave the address")
	}
	log.take()
	p.Pin("api.example.com", []netip.Addr{netip.MustParseAddr(world4)}, time.Minute)
	for _, c := range []struct {
		name string
		ok   bool
	}{{"api.example.com", true}, {"evil.example.com", false}} {
		conn, err := g.DialTCP(ctx, to)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
		_ = tls.Client(conn, &tls.Config{ServerName: c.name, MinVersion: tls.VersionTLS12}).Handshake() // the server is none
		_ = conn.Close()
		if n := <-sawBytes; (n > 0) != c.ok {
			t.Errorf("%s: the server got %d bytes", c.name, n)
		}
		if e := log.take(); (len(e) == 0) != c.ok {
			t.Errorf("%s: %+v", c.name, e)
		}
	}
	conn, err := g.DialTCP(ctx, greeter)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 5)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
		t.Errorf("a server that speaks first: %q, %v", b, err)
	}
	ping(t, conn)
}
