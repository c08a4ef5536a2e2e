package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// TestNetwork: the guest finds its addresses, gateway and name server on each of
// several interfaces, and the process makes no call for it that its jail does
// not allow: trap would end it at the first.
func TestNetwork(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	dir := t.TempDir()
	capture, log := filepath.Join(dir, "capture"), filepath.Join(dir, "audit")
	r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-confine", "trap", "-name", "web", "-net", "user", "-net", "user,mtu=9000,queues=2,rate=100M,pps=10000",
		"-host-link", "-pcap", capture, "-audit", log, "-search", "example.com", "-v"))
	if r.Status != 0 {
		t.Fatalf("%+v", r)
	}
	clitest.MustContain(t, "the report", r.Out, "devices found=4", "fail=0",
		"ok net_dhcp dev=1 ip=10.0.2.15 gateway=10.0.2.2 dns=10.0.2.3 mtu=1500", "ok net_dns dev=1 name=host.smolvmm.internal ip=10.0.2.2",
		"ok net_dhcp dev=2 ip=10.0.3.15 gateway=10.0.3.2 dns=10.0.3.3 mtu=9000", "ok net_ping dev=2", "ok net_dns dev=2 name=host.smolvmm.internal ip=10.0.3.2",
		"ok net_dhcp dev=3 ip=10.0.255.15 gateway=0.0.0.0 dns=0.0.0.0", "ok net_ping dev=3")
	clitest.MustContain(t, "the log", r.Err, "msg=network number=2 counters=", "msg=interface number=2 counters=")

	events := auditLog(t, log)
	if len(events) != 2 || events[0]["event"] != "machine-created" || events[1]["event"] != "machine-ended" ||
		events[0]["machine"] != "web" || events[1]["reason"] != "the guest exited with status 0" {
		t.Errorf("the audit log: %v", events)
	}
	checkCapture(t, capture, "arp", "icmp", "dns")
	// The same machine is the same station.
	mac := func(out string) string { _, m, _ := strings.Cut(out, " mac="); return m[:17] }
	again := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-name", "web"))
	if mac(again.Out) != mac(r.Out) {
		t.Errorf("machine web was %s and is %s", mac(r.Out), mac(again.Out))
	}
}

// TestHostileNetwork: a guest that breaks every rule of virtio-net, before a real
// network, is told so each time; the monitor stays in its jail and small.
func TestHostileNetwork(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes in emulation, where vmm's TestHostile has the same cases")
	}
	t.Parallel()
	clitest.NeedKVM(t)
	disk := filepath.Join(t.TempDir(), "disk") // of which the other devices' cases make use
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	// Where ring 0 is emulated and others work, the cases take longer than a demo may:
	// only the end of the tests bounds this one. Floods at full length are netstack's tests.
	r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-confine", "trap", "-c", "2", "-disk", disk, "-net", "user,mtu=1500", "-timeout", "24h", "hostile=all,ms=250"))
	if r.Status != 0 || !strings.Contains(r.Out, " fail=0 skip=0") {
		t.Fatalf("%+v", r)
	}
	if n := strings.Count(r.Out, "demo: ok hostile name=net-"); n < 60 {
		t.Errorf("%d of the network's cases were run", n)
	}
}

// auditLog reads the lines of an audit log.
func auditLog(t *testing.T, path string) (events []map[string]any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var e map[string]any
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		events = append(events, e)
	}
	return events
}

// checkCapture: tshark, where it is, finds frames of each of the protocols, and
// none that is malformed or has a bad checksum.
func checkCapture(t *testing.T, path string, protocols ...string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(b, []byte{0x0a, 0x0d, 0x0d, 0x0a}) { // pcapng's section header
		t.Fatalf("% x, %v", b[:min(len(b), 16)], err)
	}
	tool, err := exec.LookPath("tshark")
	if err != nil {
		t.Log("NOT RUN: no tshark to look at the capture")
		return
	}
	look := func(filter string) string {
		out, err := exec.Command(tool, "-r", path, "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-Y", filter).Output()
		if err != nil {
			t.Fatalf("tshark: %v", err)
		}
		return string(out)
	}
	for _, p := range protocols {
		if look(p) == "" {
			t.Errorf("no %s in the capture", p)
		}
	}
	if bad := look(`_ws.malformed || ip.checksum.status == "Bad" || udp.checksum.status == "Bad" || tcp.checksum.status == "Bad" || icmp.checksum.status == "Bad"`); bad != "" {
		t.Errorf("bad frames in the capture:\n%s", bad)
	}
}

// TestPublished: a port of the host leads into the guest, for whoever connects
// before its service is there as well; a Unix socket does, and is gone at the end.
func TestPublished(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "echo")
	p := clitest.Start(t, "demo", "-confine", "trap", "-p", "5001", "-p", "0:7/udp", "-p", "unix:"+socket+":5001", "nettcp=serve")
	tcp := p.Errs.Wait(t, `published: tcp (127\.0\.0\.1:\d+) .*leads to the guest's port 5001\n`)
	udp := p.Errs.Wait(t, `published: udp (127\.0\.0\.1:\d+) .*leads to the guest's port 7\n`)
	for _, c := range []struct{ network, address string }{{"tcp", tcp}, {"unix", socket}} {
		conn, err := net.Dial(c.network, c.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		deadline(t, conn)
		if _, err := io.WriteString(conn, "echo\nthere and back\n"); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || line != "there and back\n" {
			t.Errorf("%s: %q, %v", c.network, line, err)
		}
	}
	if st, err := os.Stat(socket); err != nil || st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket: %v, %v", st, err)
	}
	conn, err := net.Dial("udp", udp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "quit"); err != nil {
		t.Fatal(err)
	}
	p.Ended(0)
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func deadline(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
}

// TestHostLink: without a network there is still the way in that was asked for.
func TestHostLink(t *testing.T) {
	t.Parallel()
	p := clitest.Start(t, "demo", "-confine", "trap", "-net", "none", "-host-link", "-p", "0:7/udp", "-p", "5001", "nettcp=serve")
	udp := p.Errs.Wait(t, `published: udp (127\.0\.0\.1:\d+)`)
	tcp := p.Errs.Wait(t, `published: tcp (127\.0\.0\.1:\d+)`)
	conn, err := net.Dial("tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline(t, conn)
	if _, err := io.WriteString(conn, "source 1000\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || len(b) != 1000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	quit, err := net.Dial("udp", udp)
	if err != nil {
		t.Fatal(err)
	}
	defer quit.Close()
	if _, err := io.WriteString(quit, "quit"); err != nil {
		t.Fatal(err)
	}
	p.Ended(0)
}

// TestTakenPort: a port that somebody has is an error before anything starts.
func TestTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	socket := filepath.Join(t.TempDir(), "s")
	r := invoke(t, nil, "demo", "-p", "unix:"+socket+":1", "-p", port+":80")
	if r.Status != 2 || r.Out != "" || strings.Count(r.Err, "\n") != 1 {
		t.Errorf("%+v", r)
	}
	clitest.MustContain(t, "the error", r.Err, "port "+port+" of the host is taken", "choose another")
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a socket was left: %v", err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-p", "unix:/no/such/folder/s:1"}, "/no/such/folder/s"},
		{[]string{"-p", "80:x"}, `-p: publish "80:x": `},
		{[]string{"-audit", "/no/such/folder/a"}, "-audit /no/such/folder/a: no such file"},
		{[]string{"-pcap", "/no/such/folder/p"}, "-pcap /no/such/folder/p: no such file"},
		{[]string{"-egress", "allow"}, "-egress: "},
		{[]string{"-egress-file", "/no/such/file"}, "-egress-file /no/such/file: no such file"},
		{[]string{"-egress", "deny-all", "-egress", "allow-all"}, "contradicts"},
		{[]string{"-host-service", "ssh"}, `-host-service "ssh": must be a port`},
		{[]string{"-dns", "x"}, `-dns "x": must be NAME=ADDRESS`},
		{[]string{"-search", "a..b"}, `-search "a..b"`},
		{[]string{"-name", "Web"}, `-name "Web"`},
	} {
		if r := invoke(t, nil, append([]string{"demo"}, c.args...)...); r.Status != 2 || !strings.Contains(r.Err, c.want) || strings.Count(r.Err, "\n") != 1 {
			t.Errorf("%q: %+v, want %q", c.args, r, c.want)
		}
	}
}

// hostService is a service on the host's loopback that takes what comes.
func hostService(t *testing.T) (port string, took <-chan int64) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	n := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		got, _ := io.Copy(io.Discard, c)
		n <- got
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port, n
}

// TestHostService: a service of the host's loopback is reached if it was opened,
// and refused otherwise.
func TestHostService(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	port, took := hostService(t)
	mode := "nettcp=up,bytes=1000000,port=" + port
	if r := clitest.Finish(t, clitest.Smolvmm(t, "demo", mode)); r.Status != 1 || !strings.Contains(r.Out, "FAIL") {
		t.Errorf("reached without -host-service: %+v", r)
	}
	select {
	case n := <-took:
		t.Fatalf("the host's service got %d bytes", n)
	default:
	}
	capture := filepath.Join(t.TempDir(), "capture")
	r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-confine", "trap", "-host-service", port, "-pcap", capture, mode))
	if r.Status != 0 || !strings.Contains(r.Out, "ok nettcp dir=up bytes=1000000") {
		t.Fatalf("%+v", r)
	}
	if n := <-took; n != 1_000_000 {
		t.Errorf("the host's service got %d bytes", n)
	}
	checkCapture(t, capture, "tcp.flags.syn == 1", "tcp.flags.fin == 1")
}

// TestEgress: what the policy denies is refused and written down; what it allows
// goes out, past the same jail.
func TestEgress(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	dir := t.TempDir()
	log, rules := filepath.Join(dir, "audit"), filepath.Join(dir, "rules")
	if err := os.WriteFile(rules, []byte("deny-all # but what flags allow\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-confine", "trap", "-egress-file", rules, "-egress", "allow 192.0.2.7:443", "-audit", log,
		"nettcp=conn,count=1,host=192.0.2.1,port=80"))
	if r.Status != 1 {
		t.Errorf("a denied connection was made: %+v", r)
	}
	denied := 0
	for _, e := range auditLog(t, log) {
		if e["event"] == "egress-denied" && e["address"] == "192.0.2.1" && e["port"] == 80.0 && e["proto"] == "tcp" {
			denied++
			if reason, _ := e["reason"].(string); !strings.Contains(reason, "deny-all") {
				t.Errorf("the reason is %q", reason)
			}
		}
	}
	if denied == 0 {
		t.Errorf("the audit log has no denial: %v", auditLog(t, log))
	}
}

// TestOutside: a guest's connection to an address of the host's that is not its
// loopback leaves by an ordinary socket.
func TestOutside(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	addr := outside(t)
	l, err := net.Listen("tcp4", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Skipf("NOT RUN: nothing can listen at %s: %v", addr, err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-confine", "trap", "nettcp=conn,count=3,host="+addr+",port="+port))
	if r.Status != 0 {
		t.Errorf("%+v", r)
	}
	l.Close()
	if r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-confine", "trap", "nettcp=conn,count=1,host="+addr+",port="+port)); r.Status != 1 {
		t.Errorf("a port that nobody listens on: %+v", r)
	}
}

// outside is an IPv4 address of this host that is not its loopback.
func outside(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("NOT RUN: this host has no address but its loopback")
	return ""
}

// TestGatewaysMAC: what only the network itself refuses is bad input as well.
func TestGatewaysMAC(t *testing.T) {
	clitest.NeedKVM(t)
	if r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-mac", "02:73:6d:6f:6c:02")); r.Status != 2 || !strings.Contains(r.Err, "must differ") {
		t.Errorf("%+v", r)
	}
}

// TestNetNone: the guest has no interface.
func TestNetNone(t *testing.T) {
	clitest.NeedKVM(t)
	r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-confine", "trap", "-net", "none"))
	if r.Status != 0 || strings.Contains(r.Out, "ok net") {
		t.Errorf("%+v", r)
	}
	clitest.MustContain(t, "the report", r.Out, "devices found=1")
}
