package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/demo"
)

// A jail is for the whole process and for good, so its test is this binary again,
// in a network namespace that it can do with as it likes.
const jailedEnv = "SMOLVMM_NETWORK_TEST_JAILED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(jailedEnv); dir != "" {
		if err := jailed(dir); err != nil {
			fmt.Println("FAIL:", err)
			os.Exit(1)
		}
		fmt.Println("ok")
		_, err := os.Open("/dev/null") // the jail was on: this ends it
		fmt.Println("FAIL: there was no jail:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestUnderJail: whatever a guest's packets make the stack do on the host, the
// jail of a machine with a network allows it: in trap mode the first call that
// it does not allow ends the process.
func TestUnderJail(t *testing.T) {
	if _, err := vmm.ProbeKVM("/dev/kvm"); err != nil {
		t.Skipf("NOT RUN: no machine can be made here: %v", err)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("NOT RUN: no ip to make a network namespace of")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), jailedEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Skipf("NOT RUN: no network namespace can be made here: %v", err)
	}
	// Status 2 is the Go runtime's for a SIGSYS.
	if exit == nil || exit.ExitCode() != 2 || !bytes.Contains(out, []byte("ok\nSIGSYS")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// The world outside of the guest: the loopback of a namespace with more addresses.
const world4, world6 = "203.0.113.1", "2001:db8::1"

func jailed(dir string) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"}, {"addr", "add", world4 + "/32", "dev", "lo"}, {"addr", "add", world6 + "/128", "dev", "lo", "nodad"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
		return err
	}
	conf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+world4+"\n"), 0o600); err != nil {
		return err
	}
	port4, port6, err := world()
	if err != nil {
		return err
	}

	plan, err := Flags{Nets: []string{"user", "user,pcap=" + filepath.Join(dir, "pcap")}, Audit: filepath.Join(dir, "audit"),
		Publish: []string{"80"}, Egress: []string{"deny tcp all:25"}}.Plan()
	if err != nil {
		return err
	}
	n, err := plan.Open(Host{Log: slog.New(slog.DiscardHandler), Report: func(string) {}, ResolvConf: conf})
	if err != nil {
		return err
	}
	// The machine has the first interface; the second is this test's, whose
	// guest has every protocol at hand.
	began := make(chan struct{}, 1)
	k := demo.Kernel()
	m, err := vmm.New(vmm.Config{
		Kernel: vmm.File{Name: "demo", Data: k, Size: k.Size()}, Cmdline: demo.Argument + "count", Memory: 64 << 20,
		ConsoleOut: writer(func() {
			select {
			case began <- struct{}{}:
			default:
			}
		}),
		Nets: n.Nets()[:1], Disks: []vmm.Disk{{Path: scratch(dir)}}, Confine: vmm.Confinement{Mode: vmm.ConfineTrap},
	})
	if err != nil {
		return err
	}
	var mac atomic.Pointer[[6]byte] // the gateway's
	echoed := make(chan []byte, 4)
	i := plan.Interfaces[1]
	g, err := netstacktest.New(n.Nets()[1].Backend, netstacktest.Options{
		MAC: i.MAC, Address: netip.PrefixFrom(guestAddr(n, 1), 24), Gateway: i.gateway(),
		Tap: func(_ [netstacktest.HeaderLen]byte, f []byte) bool {
			from := [6]byte(f[6:12])
			mac.Store(&from)
			if len(f) > 34 && f[12] == 8 && f[13] == 0 && f[23] == 1 && f[34] == 0 {
				select {
				case echoed <- f:
				default:
				}
			}
			return true
		},
	})
	if err != nil {
		return err
	}
	// Static, as there is nothing to wait for then.
	if err := g.AddAddress(netip.PrefixFrom(i.gateway6().Next().Next(), 64)); err != nil {
		return err
	}
	g.Route6(i.gateway6())
	if err := n.Created(); err != nil {
		return err
	}
	ran := make(chan error, 1)
	go func() {
		_, err := m.Run(context.Background())
		ran <- err
	}()
	select {
	case <-began:
	case err := <-ran:
		return fmt.Errorf("the machine ended: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	at4, at6 := netip.AddrPortFrom(netip.MustParseAddr(world4), port4), netip.AddrPortFrom(netip.MustParseAddr(world6), port6)
	err = errors.Join(outwardTCP(ctx, g, at4), outwardTCP(ctx, g, at6), outwardUDP(g, at4), outwardUDP(g, at6), refusals(ctx, g), lookup(ctx, g, i.gateway()))
	if err != nil {
		return fmt.Errorf("%w\n%+v", err, n.stacks[1].wait().Stats())
	}
	if err := outwardPing(g, *mac.Load(), guestAddr(n, 1), echoed); err != nil {
		return err
	}
	g.Close()
	m.Stop()
	if err := errors.Join(<-ran, m.Close()); err != nil {
		return err
	}
	n.Ended("by the test", nil)
	return n.Close()
}

type writer func()

func (w writer) Write(p []byte) (int, error) { w(); return len(p), nil }

func scratch(dir string) string {
	p := filepath.Join(dir, "disk")
	_ = os.WriteFile(p, make([]byte, 1<<20), 0o600) // a missing one is New's error
	return p
}

// world serves TCP and UDP echo at both addresses, and DNS.
func world() (port4, port6 uint16, err error) {
	ports := []uint16{}
	for _, a := range []string{world4, "[" + world6 + "]"} {
		l, err := net.Listen("tcp", a+":0")
		if err != nil {
			return 0, 0, err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(c, struct{ io.Reader }{c}) // no splice(2)
					c.Close()
				}()
			}
		}()
		// The kernel makes a new IPv6 address's route behind our back.
		for late := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			c, err := net.Dial("tcp", l.Addr().String())
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(late) {
				return 0, 0, err
			}
		}
		u, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			return 0, 0, err
		}
		go serve(u, func(q []byte) []byte { return q })
		ports = append(ports, uint16(l.Addr().(*net.TCPAddr).Port))
	}
	d, err := net.ListenPacket("udp", world4+":53")
	if err != nil {
		return 0, 0, err
	}
	go serve(d, func(q []byte) []byte {
		var m dnsmessage.Message
		if m.Unpack(q) != nil || len(m.Questions) == 0 {
			return nil
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		if m.Questions[0].Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 60},
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr(world4).As4()},
			}}
		}
		b, _ := m.Pack()
		return b
	})
	return ports[0], ports[1], nil
}

func serve(c net.PacketConn, answer func([]byte) []byte) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(answer(buf[:n]), from)
	}
}

func outwardTCP(ctx context.Context, g *netstacktest.Guest, to netip.AddrPort) error {
	c, err := g.DialTCP(ctx, to)
	if err != nil {
		return fmt.Errorf("TCP to %v: %w", to, err)
	}
	defer c.Close()
	want := bytes.Repeat([]byte("there and back "), 20_000)
	go func() {
		_, _ = c.Write(want)
		_ = c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("TCP to %v: %d bytes of %d, %w", to, len(got), len(want), err)
	}
	// A reset is passed on as one.
	if c, err = g.DialTCP(ctx, to); err == nil {
		c.Reset()
	}
	return err
}

func outwardUDP(g *netstacktest.Guest, to netip.AddrPort) error {
	c, err := g.DialUDP(to)
	if err != nil {
		return fmt.Errorf("UDP to %v: %w", to, err)
	}
	defer c.Close()
	buf := make([]byte, 2000)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	for _, size := range []int{4, 1400} {
		if _, err := c.Write(buf[:size]); err != nil {
			return fmt.Errorf("UDP to %v: %w", to, err)
		}
		if n, err := c.Read(buf); err != nil || n != size {
			return fmt.Errorf("UDP to %v: %d bytes of %d, %w", to, n, size, err)
		}
	}
	return nil
}

// refusals: a port that nobody has, a destination without a route, and what the
// policy denies.
func refusals(ctx context.Context, g *netstacktest.Guest) error {
	for _, to := range []string{world4 + ":1", "192.0.2.1:80", world4 + ":25"} {
		if c, err := g.DialTCP(ctx, netip.MustParseAddrPort(to)); err == nil {
			c.Close()
			return fmt.Errorf("connected to %s", to)
		}
	}
	c, err := g.DialUDP(netip.MustParseAddrPort(world4 + ":1"))
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("nobody"))
	return errors.Join(err, c.Close())
}

func lookup(ctx context.Context, g *netstacktest.Guest, server netip.Addr) error {
	c, err := g.DialUDP(netip.AddrPortFrom(server, 53))
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 4711, RecursionDesired: true}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName("outside.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := q.Pack()
	if err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(buf[:n]); err != nil || len(m.Answers) != 1 || m.ID != 4711 {
		return fmt.Errorf("DNS: %+v, %w", m, err)
	}
	return ctx.Err()
}

// outwardPing sends an echo request (RFC 792) and waits for its answer.
func outwardPing(g *netstacktest.Guest, gateway [6]byte, from netip.Addr, echoed <-chan []byte) error {
	own, src, dst := g.MAC(), from.As4(), netip.MustParseAddr(world4).As4()
	ip := append([]byte{0x45, 0, 0, 32, 0, 1, 0, 0, 64, 1, 0, 0}, append(src[:], dst[:]...)...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	icmp := []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1, 'p', 'i', 'n', 'g'}
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	frame := append(append(append([]byte{}, gateway[:]...), own[:]...), 8, 0)
	g.SendFrame(append(append(frame, ip...), icmp...))
	select {
	case f := <-echoed:
		if len(f) < 46 || !bytes.Equal(f[38:46], icmp[4:]) || !bytes.Equal(f[26:30], dst[:]) {
			return fmt.Errorf("the answer to a ping is % x", f)
		}
		return nil
	case <-time.After(20 * time.Second):
		return errors.New("a ping was not answered")
	}
}

// checksum is the Internet's (RFC 1071).
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return ^uint16(sum>>16 + sum&0xffff)
}
