package network

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// open opens a network as the command does, and gives what it reported. It is
// closed at the test's end, whereupon nothing of it is left.
func open(t *testing.T, f Flags) (*Network, *[]string) {
	t.Helper()
	before := runtime.NumGoroutine()
	reported := new([]string)
	p, err := f.Plan()
	if err != nil {
		t.Fatal(err)
	}
	n, err := p.Open(Host{
		Log: slog.New(slog.DiscardHandler), Report: func(line string) { *reported = append(*reported, line) },
		ListenUnix: func(path string) (*net.UnixListener, error) {
			return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		},
		ResolvConf: "/no/such/file",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		for late := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
			if time.Now().After(late) {
				buf := make([]byte, 1<<20)
				t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
			}
		}
	})
	return n, reported
}

// guest is a guest on an interface, with the address that DHCP would give it.
func guest(t *testing.T, n *Network, number int) *netstacktest.Guest {
	t.Helper()
	i := n.plan.Interfaces[number]
	g, err := netstacktest.New(n.Nets()[number].Backend, netstacktest.Options{
		MAC: i.MAC, Address: netip.PrefixFrom(guestAddr(n, number), i.Subnet.Bits()), Gateway: i.gateway(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// guestAddr is the 15th address of an interface's network.
func guestAddr(n *Network, number int) netip.Addr {
	a := n.plan.Interfaces[number].Subnet.Addr().As4()
	a[3] += 15
	return netip.AddrFrom4(a)
}

// ask asks an interface's name server.
func ask(t *testing.T, g *netstacktest.Guest, server netip.Addr, name string) ([]netip.Addr, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r := &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return g.DialUDP(netip.AddrPortFrom(server, 53))
	}}
	return r.LookupNetIP(ctx, "ip4", name)
}

// TestNothing: without an interface nothing runs and nothing is open.
func TestNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	n, _ := open(t, Flags{Nets: []string{"none"}})
	if now := runtime.NumGoroutine(); now != before || n.stacks != nil || n.closers != nil {
		t.Errorf("%d goroutines, %d before; %d stacks, %d things to close", now, before, len(n.stacks), len(n.closers))
	}
	if err := n.Created(); err != nil {
		t.Error(err)
	}
	n.Ended("well", nil)
	if n.Nets() != nil || n.Sockets() != nil {
		t.Errorf("%+v", n)
	}
}

// TestNameServer: each interface's knows the host by that interface's gateway,
// and the names of the flags.
func TestNameServer(t *testing.T) {
	n, _ := open(t, Flags{Nets: []string{"user", "user,subnet=192.168.7.0/24"}, Names: []string{"db=10.9.8.7", "x.internal=10.9.8.6"}, Search: "example.com"})
	for number, gateway := range []string{"10.0.2.2", "192.168.7.2"} {
		g := guest(t, n, number)
		host := netip.MustParseAddr(gateway)
		for name, want := range map[string]string{
			"host.smolvmm.internal.": gateway, "db.": "10.9.8.7", "db.example.com.": "10.9.8.7", "x.internal.": "10.9.8.6",
		} {
			for _, server := range []netip.Addr{host, host.Next()} {
				if got, err := ask(t, g, server, name); err != nil || len(got) != 1 || got[0].String() != want {
					t.Errorf("%s asked at %v: %v, %v; want %s", name, server, got, err, want)
				}
			}
		}
	}
}

// TestPolicy: connections and queries that no rule allows are refused, and are in
// the audit log between the machine's beginning and end.
func TestPolicy(t *testing.T) {
	log := filepath.Join(t.TempDir(), "audit")
	rules := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(rules, []byte("deny all:25\ndeny-all\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("machine", func(t *testing.T) {
		n, _ := open(t, Flags{Name: "web-1", Egress: []string{"allow api.example.com:443"}, EgressFile: rules, Audit: log})
		if err := n.Created(); err != nil {
			t.Fatal(err)
		}
		g := guest(t, n, 0)
		if c, err := g.DialTCP(t.Context(), netip.MustParseAddrPort("192.0.2.1:25")); err == nil {
			c.Close()
			t.Error("a denied connection was made")
		}
		var refused *net.DNSError
		if _, err := ask(t, g, netip.MustParseAddr("10.0.2.3"), "leak.example.org."); !errors.As(err, &refused) {
			t.Errorf("a query for a name that no rule allows: %v", err)
		}
		n.Ended("its end", nil)
	})
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var kinds []string
	for d := json.NewDecoder(f); ; {
		var e struct {
			Event, Machine, Name, Address, Proto, Reason string
			Count                                        int // of those that came again: behind the end
		}
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if e.Count > 0 {
			continue
		}
		kinds = append(kinds, strings.TrimSpace(e.Event+" "+e.Proto+" "+e.Address+strings.TrimSuffix(e.Name, ".")))
		if e.Machine != "web-1" {
			t.Errorf("%+v is of another machine", e)
		}
		if e.Proto == "tcp" && !strings.Contains(e.Reason, rules+":1") {
			t.Errorf("%+v does not name its rule", e)
		}
	}
	want := []string{"machine-created", "egress-denied tcp 192.0.2.1", "egress-denied dns leak.example.org", "machine-ended"}
	if !slices.Equal(kinds, want) {
		t.Errorf("the audit log has\n%q, want\n%q", kinds, want)
	}
}

// TestPublish: who connects before the guest listens is served when it does. The
// port that was chosen is told, and others when asked for.
func TestPublish(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	for name, f := range map[string]Flags{
		"user": {Publish: []string{"80", "unix:" + socket + ":80"}},
		"link": {Nets: []string{"none"}, HostLink: true, Publish: []string{"80", "unix:" + socket + ":80"}},
	} {
		t.Run(name, func(t *testing.T) {
			n, reported := open(t, f)
			if err := n.Created(); err != nil {
				t.Fatal(err)
			}
			if len(*reported) != 1 || !strings.HasPrefix((*reported)[0], "published: tcp 127.0.0.1:") || !strings.HasSuffix((*reported)[0], " leads to the guest's port 80") {
				t.Fatalf("%q", *reported)
			}
			if s := n.Sockets(); len(s) != 1 || s[0] != socket {
				t.Errorf("the sockets are %q", s)
			}
			early, err := net.Dial("tcp", n.set.Addrs()[0].Addrs[0].String())
			if err != nil {
				t.Fatal(err)
			}
			defer early.Close()
			g := guest(t, n, 0)
			l, err := g.Listen(netip.AddrPortFrom(guestAddr(n, 0), 80))
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
					_, _ = io.WriteString(c, "from the guest\n")
					c.Close()
				}
			}()
			late, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer late.Close()
			for _, c := range []net.Conn{early, late} {
				if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "from the guest\n" {
					t.Errorf("%v: %q, %v", c.RemoteAddr(), line, err)
				}
			}
		})
		if _, err := os.Lstat(socket); err == nil {
			t.Errorf("%s: the socket is still there", name)
		}
	}
}

// TestOpenFails: what cannot be opened is one line, and what was opened before it
// is closed again.
func TestOpenFails(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	for want, f := range map[string]Flags{
		"-audit /no/such/folder/x: no such file or directory": {Audit: "/no/such/folder/x", Publish: []string{port + ":80"}},
		"-pcap /no/such/folder/x: no such file or directory":  {Capture: "/no/such/folder/x", Publish: []string{port + ":80"}},
		"-p: publish unix:/no/such/folder/x:80: ":             {Publish: []string{port + ":80", "unix:/no/such/folder/x:80"}},
	} {
		p, err := f.Plan()
		if err != nil {
			t.Fatal(err)
		}
		n, err := p.Open(Host{Log: slog.New(slog.DiscardHandler), Report: func(string) {}, ListenUnix: func(path string) (*net.UnixListener, error) {
			return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		}})
		if n != nil || err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %q", err, want)
		}
		again, err := net.Listen("tcp4", "127.0.0.1:"+port)
		if err != nil {
			t.Fatalf("%s: the port was kept: %v", want, err)
		}
		again.Close()
	}
}

// TestStackIsABackend: netstack and the device agree on what a network is without
// knowing each other.
func TestStackIsABackend(t *testing.T) {
	n, _ := open(t, Flags{MTU: "9000"})
	v := n.Nets()[0]
	if err := v.Check(); err != nil {
		t.Error(err)
	}
	s := n.stacks[0].wait()
	if v.Backend.MTU() != s.MTU() || v.Backend.Offloads() != s.Offloads() || s.MTU() != 9000 {
		t.Errorf("MTU %d and %d, offloads %#x and %#x", v.Backend.MTU(), s.MTU(), v.Backend.Offloads(), s.Offloads())
	}
	v.Backend = s
	if err := v.Check(); err != nil {
		t.Error(err)
	}
	n, _ = open(t, Flags{})
	if s := n.stacks[0]; s.MTU() != s.wait().MTU() {
		t.Errorf("MTU %d, and the stack's is %d", s.MTU(), s.wait().MTU())
	}
}

// TestStackFails: what only the stack refuses is an error before the guest runs.
func TestStackFails(t *testing.T) {
	n, _ := open(t, Flags{MAC: "02:73:6d:6f:6c:02"}) // the gateway's
	b := n.Nets()[0].Backend
	b.Negotiated(b.Offloads())
	b.OnReady(func() {})
	b.Send(new([12]byte), [][]byte{make([]byte, 60)})
	if _, _, ok := b.Next(); ok {
		t.Error("a frame of no network")
	}
	b.Pop()
	if err := n.Created(); err == nil || !strings.Contains(err.Error(), "must differ") {
		t.Errorf("a guest with the gateway's address: %v", err)
	}
}
