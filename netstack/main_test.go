package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// The world of the tests: a network namespace of their own, whose loopback has
// these addresses, so that nothing is 127.0.0.1 and nothing leaves the machine.
const (
	world4   = "203.0.113.1"  // TEST-NET-3, ours
	noHost4  = "198.51.100.1" // "unreachable" in the routing table
	noAdmin4 = "198.51.100.2" // "prohibit"
	silent4  = "198.51.100.3" // a neighbour that never answers
	world6   = "2001:db8::1"
	noHost6  = "2001:db8:dead::1"

	inWorld = "SMOLVMM_NETSTACK_TEST_WORLD"
)

// TestMain runs the tests in a network namespace.
func TestMain(m *testing.M) {
	if os.Getenv(inWorld) != "" {
		if err := makeWorld(); err != nil {
			fmt.Fprintln(os.Stderr, "the tests' network:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inWorld+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // Pdeathsig is the thread's
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintln(os.Stderr, "NOT RUN: the tests need a network namespace of their own:", err)
	os.Exit(1)
}

func makeWorld() error {
	if lo, err := net.InterfaceByName("lo"); err == nil && lo.Flags&net.FlagUp != 0 {
		return nil // a fuzzing worker is in its coordinator's world
	}
	for _, line := range strings.Split(strings.TrimSpace(`
link set lo up
addr add `+world4+`/32 dev lo
addr add 203.0.113.2/32 dev lo
addr add 192.168.77.1/32 dev lo
-6 addr add `+world6+`/128 dev lo nodad
route add unreachable `+noHost4+`/32
route add prohibit `+noAdmin4+`/32
-6 route add unreachable `+noHost6+`/128
link add smol0 type veth peer name smol1
link set smol0 up mtu 1400
link set smol1 up
addr add 198.51.100.9/32 dev smol0
route add `+silent4+`/32 dev smol0`), "\n") {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			if strings.Contains(line, "smol0") { // not every kernel has virtual Ethernet
				continue
			}
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 65535"), 0)
}

// setup makes a stack and a guest on it with the usual static address.
func setup(t testing.TB, cfg Config, o netstacktest.Options) (*Stack, *netstacktest.Guest) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if !o.Address.IsValid() {
		o.Address = netip.PrefixFrom(s.cfg.Guest, s.cfg.Subnet.Bits())
		o.Gateway = s.cfg.Gateway
	}
	g, err := netstacktest.New(s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return s, g
}

// setup6 is setup with IPv6, and waits for the guest's address.
func setup6(t testing.TB, cfg Config, o netstacktest.Options) (*Stack, *netstacktest.Guest) {
	t.Helper()
	o.IPv6 = true
	s, g := setup(t, cfg, o)
	eventually(t, "the guest has made itself an address", func() bool {
		for _, a := range g.Addresses() {
			if s.cfg.Subnet6.Contains(a) {
				return true
			}
		}
		return false
	})
	g.Route6(s.linkLocal)
	return s, g
}

// eventually polls for what has no event to wait for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("it never came true that %s", what)
}

func timeout(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// serve listens in the world and handles each connection in a goroutine.
func serve(t testing.TB, addr string, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go handle(c.(*net.TCPConn))
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func echoServer(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
	_ = c.Close()
}
