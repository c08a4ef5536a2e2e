package publish

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTakenPort: the error names the port, and what was opened before it is
// closed again.
func TestTakenPort(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		port := addrPort(l.Addr()).Port()
		sock := filepath.Join(t.TempDir(), "s")
		before := NewSet(Config{})
		if err := before.open(Spec{Network: "tcp", GuestPort: 1}); err != nil {
			t.Fatal(err)
		}
		free := before.Addrs()[0].Spec.HostPort
		before.Close()
		s, err := Open(specs(t, strconv.Itoa(int(free))+":1", "unix:"+sock+":2", strconv.Itoa(int(port))+":80"), Config{})
		if err == nil {
			s.Close()
			t.Fatalf("%v is taken, and nobody says so", l.Addr())
		}
		msg := err.Error()
		if strings.Contains(msg, "\n") || !strings.Contains(msg, "port "+strconv.Itoa(int(port))) || !strings.Contains(msg, "taken") {
			t.Errorf("%q", msg)
		}
		if _, err := os.Lstat(sock); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the Unix socket is left: %v", err)
		}
		again, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(int(free)))
		if err != nil {
			t.Fatalf("the first port is left open: %v", err)
		}
		again.Close()
	}
}

func TestTakenByAnotherPublication(t *testing.T) {
	s, err := Open(specs(t, "80"), Config{})
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(int(s.Addrs()[0].Spec.HostPort))
	s.Close()
	for _, twice := range []string{"127.0.0.1:", "0.0.0.0:", "[::]:", ""} {
		s, err = Open(specs(t, port+":80", port+":80/udp", twice+port+":81"), Config{})
		if err == nil {
			s.Close()
			t.Fatal("one port twice is taken")
		}
		if !strings.Contains(err.Error(), "another publication, tcp::"+port+"-:80") {
			t.Errorf("%q", err)
		}
	}
	// In the other family it is free.
	s, err = Open(specs(t, "127.0.0.1:"+port+":80", "[::1]:"+port+":81"), Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// TestPortZeroIsFreeInBoth: with so many ports taken in one family alone, some of
// what the kernel proposes is no use.
func TestPortZeroIsFreeInBoth(t *testing.T) {
	for range 1500 {
		l, err := net.Listen("tcp6", "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	for range 100 {
		s, err := Open(specs(t, "80"), Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		p := s.Addrs()[0]
		if len(p.Addrs) != 2 || addrPort(p.Addrs[0]).Port() != addrPort(p.Addrs[1]).Port() {
			t.Fatalf("%v", p.Addrs)
		}
	}
}

// TestHostWithoutIPv6: the default is what there is of the loopback.
func TestHostWithoutIPv6(t *testing.T) {
	v4, missing := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("2001:db8::1") // RFC 3849: nobody's
	p := newPort(Spec{Network: "tcp", GuestPort: 80}, Config{}.withDefaults())
	if err := p.openAll([]netip.Addr{v4, missing}, missing); err != nil || len(p.streams) != 1 || p.spec.HostPort == 0 {
		t.Errorf("%v, %v", p.addrs(), err)
	}
	p.close()
	p = newPort(Spec{Network: "tcp", GuestPort: 80}, Config{}.withDefaults())
	if err := p.openAll([]netip.Addr{v4, missing}, netip.Addr{}); err == nil {
		t.Error("an address that was asked for is left out")
	}
	p.close()
}

func TestPrivilegedPort(t *testing.T) {
	err := explain("tcp", addrPort(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80}), os.NewSyscallError("bind", unix.EACCES))
	if !strings.Contains(err.Error(), "port 80") || !strings.Contains(err.Error(), "privilege") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%q", err)
	}
}

func TestForeignAddress(t *testing.T) {
	// TEST-NET-1 of RFC 5737, which no host has.
	s, err := Open(specs(t, "192.0.2.1:0:80"), Config{})
	if err == nil {
		s.Close()
		t.Skip("NOT RUN: this host binds any address")
	}
	if !strings.Contains(err.Error(), "192.0.2.1 is no address of this host") {
		t.Errorf("%q", err)
	}
}

func TestBadSpec(t *testing.T) {
	for _, s := range []Spec{{}, {Network: "tcp"}, {Network: "unix", GuestPort: 1}, {Network: "ip", GuestPort: 1}} {
		if set, err := Open([]Spec{s}, Config{}); err == nil {
			set.Close()
			t.Errorf("%+v is taken", s)
		}
	}
}

func TestUnixSocketIsItsOwners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := Open(specs(t, "unix:"+path+":22"), Config{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v; want a socket of mode 0600", info.Mode(), err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

// TestUnixSocketReplacesTheDead: and nothing else.
func TestUnixSocketReplacesTheDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	open := func() error {
		s, err := Open(specs(t, "unix:"+path+":22"), Config{})
		if err == nil {
			err = s.Close()
		}
		return err
	}
	living, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	living.SetUnlinkOnClose(false)
	if err := open(); err == nil || !strings.Contains(err.Error(), "running program") {
		t.Errorf("over a living socket: %v", err)
	}
	living.Close() // as a process that dies: the file stays
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil {
		t.Errorf("over a dead one: %v", err)
	}

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("over a file: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
	// A link is not followed, and stays.
	link := path + "2"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(specs(t, "unix:"+link+":22"), Config{}); err == nil {
		s.Close()
		t.Error("a link is replaced")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(specs(t, "unix:"+filepath.Join(path, "none", "s")+":22"), Config{}); err == nil || !strings.Contains(err.Error(), "no such folder") {
		t.Errorf("without its folder: %v", err)
	}
}

// TestUnixSocketOfAnother: Close leaves what has taken the path since.
func TestUnixSocketOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := Open(specs(t, "unix:"+path+":22"), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the other's socket is gone: %v", err)
	}
}
