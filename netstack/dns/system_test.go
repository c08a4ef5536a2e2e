package dns

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer is a DNS server on the loopback, on one port over UDP and TCP. What
// it answers is handle's, nil for nothing.
type nameServer struct {
	addr     string
	udp, tcp atomic.Int32 // queries
}

func serve(t testing.TB, handle func(query []byte, tcp bool) [][]byte) *nameServer {
	t.Helper()
	s := &nameServer{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	pc, err := net.ListenPacket("udp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); pc.Close(); wg.Wait() })
	wg.Go(func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			s.udp.Add(1)
			for _, b := range handle(bytes.Clone(buf[:n]), false) {
				pc.WriteTo(b, from)
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.tcp.Add(1)
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(10 * time.Second))
				if query, err := readTCP(c); err == nil {
					for _, b := range handle(query, true) {
						c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
					}
				}
			})
		}
	})
	return s
}

func readTCP(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// hosts is the network where resolv.conf's addresses are servers of the test; a
// nil one refuses.
type hosts map[string]*nameServer

func (h hosts) dial(ctx context.Context, network, address string) (net.Conn, error) {
	s, ok := h[address]
	if !ok {
		return nil, fmt.Errorf("%s is not in resolv.conf", address)
	}
	if s == nil {
		return nil, errors.New("refused")
	}
	return new(net.Dialer).DialContext(ctx, network, s.addr)
}

func system(t testing.TB, conf string, h hosts) Exchange {
	t.Helper()
	e, err := System(strings.NewReader(conf), h.dial)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func one(b []byte) [][]byte { return [][]byte{b} }

// says answers every query with this address.
func says(t testing.TB, addr string) func([]byte, bool) [][]byte {
	return func(q []byte, _ bool) [][]byte {
		return one(reply(t, q, nil, rr(read2(t, q).Questions[0].Name.String(), 60, a(addr))))
	}
}

func failing(t testing.TB, rcode dnsmessage.RCode) func([]byte, bool) [][]byte {
	return func(q []byte, _ bool) [][]byte {
		return one(reply(t, q, func(m *dnsmessage.Message) { m.RCode = rcode }))
	}
}

// TestSystem: resolv.conf's servers are asked in turn until one has something to say.
func TestSystem(t *testing.T) {
	good, better := serve(t, says(t, "192.0.2.1")), serve(t, says(t, "192.0.2.2"))
	servfail, refused := serve(t, failing(t, dnsmessage.RCodeServerFailure)), serve(t, failing(t, dnsmessage.RCodeRefused))
	none := serve(t, failing(t, dnsmessage.RCodeNameError))
	for _, c := range []struct {
		what, conf string
		hosts      hosts
		want       string
		rcode      dnsmessage.RCode
	}{
		{"the first", "search a.test\n# nameserver 192.0.2.9\nnameserver 192.0.2.53 # x\nnameserver 192.0.2.54\n", hosts{"192.0.2.53:53": good, "192.0.2.54:53": better}, "192.0.2.1", 0},
		{"IPv6 with a zone", "nameserver fe80::1%lo\n", hosts{"[fe80::1%lo]:53": good}, "192.0.2.1", 0},
		{"none: the loopback", "options ndots:1\n", hosts{"127.0.0.1:53": good}, "192.0.2.1", 0},
		{"none: the loopback's IPv6", "", hosts{"127.0.0.1:53": nil, "[::1]:53": good}, "192.0.2.1", 0},
		{"one that refuses to connect", "nameserver 192.0.2.53\nnameserver 192.0.2.54", hosts{"192.0.2.53:53": nil, "192.0.2.54:53": better}, "192.0.2.2", 0},
		{"one that fails", "nameserver 192.0.2.53\nnameserver 192.0.2.54", hosts{"192.0.2.53:53": servfail, "192.0.2.54:53": better}, "192.0.2.2", 0},
		{"both without an answer", "nameserver 192.0.2.53\nnameserver 192.0.2.54", hosts{"192.0.2.53:53": servfail, "192.0.2.54:53": refused}, "", dnsmessage.RCodeRefused},
		{"a name that is not there", "nameserver 192.0.2.53\nnameserver 192.0.2.54", hosts{"192.0.2.53:53": none, "192.0.2.54:53": better}, "", dnsmessage.RCodeNameError},
		{"TCP by option", "nameserver 192.0.2.53\noptions use-vc", hosts{"192.0.2.53:53": good}, "192.0.2.1", 0},
		{"no address", "nameserver localhost\nnameserver\nnameserver 192.0.2.53", hosts{"192.0.2.53:53": good}, "192.0.2.1", 0},
		{"all refuse", "nameserver 192.0.2.53", hosts{"192.0.2.53:53": nil}, "", dnsmessage.RCodeServerFailure},
		{"a fourth is not asked", "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4", hosts{"192.0.2.1:53": nil, "192.0.2.2:53": nil, "192.0.2.3:53": nil, "192.0.2.4:53": good}, "", dnsmessage.RCodeServerFailure},
	} {
		s := newServer(t, Config{Exchange: system(t, c.conf, c.hosts)})
		m := answer(t, s, ask(t, "a.test.", dnsmessage.TypeA))
		if got := strings.Join(bodies(m), " "); got != c.want || m.RCode != c.rcode {
			t.Errorf("%s: %q %v", c.what, got, m.RCode)
		}
	}
	if good.tcp.Load() != 1 || none.udp.Load() != 1 {
		t.Errorf("%d over TCP, %d asked for what is not there", good.tcp.Load(), none.udp.Load())
	}
	if n := refused.udp.Load(); n != 1 {
		t.Errorf("who has nothing to say was asked %d times", n)
	}
	// A server that answered is asked first from then on.
	h := hosts{"192.0.2.53:53": servfail, "192.0.2.54:53": better}
	s := newServer(t, Config{Exchange: system(t, "nameserver 192.0.2.53\nnameserver 192.0.2.54", h)})
	before := servfail.udp.Load()
	for range 5 {
		answer(t, s, ask(t, "a.test.", dnsmessage.TypeA))
	}
	if n := servfail.udp.Load() - before; n != 1 {
		t.Errorf("the failing server was asked %d times", n)
	}
	broken := errors.New("disk gone")
	if _, err := System(iotest.ErrReader(broken), nil); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// TestStrangers: datagrams that are no answer are passed over until the answer comes.
func TestStrangers(t *testing.T) {
	srv := serve(t, func(q []byte, _ bool) [][]byte {
		right := reply(t, q, nil, rr("a.test.", 60, a("192.0.2.1")))
		id, name := bytes.Clone(right), bytes.Clone(right)
		id[1]++
		name[13]++
		return [][]byte{nil, {1, 2, 3}, id, name, q, right}
	})
	s := newServer(t, Config{Exchange: system(t, "nameserver 192.0.2.53", hosts{"192.0.2.53:53": srv})})
	if m := answer(t, s, ask(t, "a.test.", dnsmessage.TypeA)); len(m.Answers) != 1 || srv.udp.Load() != 1 {
		t.Errorf("%v, asked %d times", m.GoString(), srv.udp.Load())
	}
}

// TestLargeAnswers: what does not fit a datagram comes over TCP.
func TestLargeAnswers(t *testing.T) {
	var many []dnsmessage.Resource
	for i := range 4000 {
		many = append(many, rr("a.test.", 60, a(fmt.Sprintf("192.0.%d.%d", i/256, i%256))))
	}
	srv := serve(t, func(q []byte, tcp bool) [][]byte {
		if tcp {
			return one(reply(t, q, nil, many...))
		}
		return one(reply(t, q, nil, many[:600]...)) // more than maxDatagram, and not marked
	})
	s := newServer(t, Config{Exchange: system(t, "nameserver 192.0.2.53", hosts{"192.0.2.53:53": srv})})
	query := ask(t, "a.test.", dnsmessage.TypeA, 65000)
	if m := read(t, query, s.Answer(context.Background(), query, true)); len(m.Answers) != 4000 {
		t.Errorf("%d answers", len(m.Answers))
	}
	if m := answer(t, s, query); !m.Truncated {
		t.Errorf("%d answers over UDP", len(m.Answers))
	}
}

// TestSilence: servers that take a query and say nothing cost their time, over UDP
// and TCP, and no more.
func TestSilence(t *testing.T) {
	srv := serve(t, func([]byte, bool) [][]byte { return nil })
	for _, conf := range []string{"nameserver 192.0.2.53", "nameserver 192.0.2.53\noptions use-vc"} {
		s := newServer(t, Config{Exchange: system(t, conf, hosts{"192.0.2.53:53": srv}), Timeout: 200 * time.Millisecond})
		begun := time.Now()
		if m := answer(t, s, ask(t, "a.test.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeServerFailure {
			t.Errorf("%v", m.GoString())
		}
		if d := time.Since(begun); d > 2*time.Second {
			t.Errorf("%q: took %v", conf, d)
		}
	}
}

// listen serves a Server on the loopback as the stack does, for real clients.
func listen(t *testing.T, s *Server) string {
	t.Helper()
	return serve(t, func(q []byte, tcp bool) [][]byte {
		if b := s.Answer(t.Context(), q, tcp); b != nil {
			return one(b)
		}
		return nil
	}).addr
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("NOT RUN: %s is not installed: %v", name, err)
	}
	return path
}

// dnsmasq starts one with these options and gives where it listens.
func dnsmasq(t *testing.T, options ...string) string {
	t.Helper()
	path := tool(t, "dnsmasq")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	cmd := exec.Command(path, append([]string{
		"--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--pid-file=", "--user=", "--no-resolv", "--no-hosts",
		"--bind-interfaces", "--listen-address=127.0.0.1", "--port=" + strconv.Itoa(port),
	}, options...)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		log.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "started") {
			break
		}
	}
	drained := make(chan struct{})
	go func() { defer close(drained); io.Copy(io.Discard, stderr) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-drained; cmd.Wait() })
	if !strings.Contains(log.String(), "started") {
		t.Fatalf("dnsmasq did not start:\n%s", &log)
	}
	return "127.0.0.1:" + strconv.Itoa(port)
}

// TestDnsmasqAndDig: a real server before it, a real client behind it.
func TestDnsmasqAndDig(t *testing.T) {
	dig := tool(t, "dig")
	args := []string{"--address=/a.test/192.0.2.1", "--host-record=v6.test,2001:db8::1", "--txt-record=t.test,some words", "--cname=c.test,v6.test",
		"--mx-host=m.test,mail.test,5", "--local=/test/", "--max-ttl=77"}
	for i := range 80 {
		args = append(args, fmt.Sprintf("--host-record=big.test,192.0.3.%d", i))
	}
	server := dnsmasq(t, args...)
	var mu sync.Mutex
	pins := map[string]string{}
	conf := "nameserver 192.0.2.53"
	exchange, err := System(strings.NewReader(conf), func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	})
	if err != nil {
		t.Fatal(err)
	}
	addr := listen(t, newServer(t, Config{
		Exchange: exchange, Host: addrs("10.0.2.2"), Names: map[string][]netip.Addr{"db": addrs("10.9.9.9")}, Search: "corp.test",
		AllowQuery: func(n string) bool { return n != "closed.test" },
		Pin: func(name string, a []netip.Addr, _ time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			pins[name] = fmt.Sprint(len(a), " ", a[0])
		},
	}))
	host, port, _ := net.SplitHostPort(addr)
	for _, c := range []struct{ args, want string }{
		{"+short a.test A", "192.0.2.1"},
		{"+short A.tEsT A +tcp", "192.0.2.1"},
		{"+short v6.test AAAA", "2001:db8::1"},
		{"+short c.test AAAA", "v6.test.\n2001:db8::1"},
		{"+short t.test TXT", `"some words"`},
		{"+short m.test MX", "5 mail.test."},
		{"+short host.smolvmm.internal", "10.0.2.2"},
		{"+short -x 10.0.2.2", "host.smolvmm.internal."},
		{"+short +search +domain=corp.test db", "10.9.9.9"},
		{"nothing.test", "status: NXDOMAIN"},
		{"other.smolvmm.internal +noedns", "status: NXDOMAIN"},
		{"closed.test", "EDE: 15 (Blocked): (blocked by the machine's egress policy)"},
		{"closed.test +noedns", "status: REFUSED"},
		{"a.test TYPE65280", "IN\tTYPE65280"},
		{"a.test AXFR", "Transfer failed"},
		{"big.test +bufsize=512 +ignore", "flags: qr tc rd ra;"},
		{"big.test +bufsize=512", "ANSWER: 80"}, // dig asks again over TCP
		{"big.test +bufsize=4096 +ignore", "ANSWER: 80"},
	} {
		out, err := exec.Command(dig, append([]string{"@" + host, "-p", port, "+tries=1", "+time=5"}, strings.Fields(c.args)...)...).CombinedOutput()
		if !strings.Contains(string(out), c.want) || strings.Contains(string(out), ";; Warning") || strings.Contains(string(out), "malformed") {
			t.Errorf("dig %s: %v, want %q:\n%s", c.args, err, c.want, out)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for name, want := range map[string]string{"a.test": "1 192.0.2.1", "c.test": "1 2001:db8::1", "db.corp.test": "1 10.9.9.9"} {
		if pins[name] != want {
			t.Errorf("%s is pinned as %q, want %q", name, pins[name], want)
		}
	}
	if !strings.HasPrefix(pins["big.test"], "80 ") {
		t.Errorf("big.test is pinned as %q", pins["big.test"])
	}
}
