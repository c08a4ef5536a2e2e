package examples

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/netstack"
	"github.com/smolvmm/smolvmm/netstack/netstacktest"
	"github.com/smolvmm/smolvmm/netstack/pcap"
	"github.com/smolvmm/smolvmm/netstack/publish"
)

var guestAddr = netip.MustParseAddr("10.0.2.15")

// machine is a network whose frames are captured, ports that lead into it, and
// after boot a guest.
type machine struct {
	t       *testing.T
	network *netstack.Stack
	tap     *pcap.Tap
	set     *publish.Set
	guest   *netstacktest.Guest
	options netstacktest.Options
}

// setups are what a guest may be like.
var setups = []struct {
	name   string
	config netstack.Config
	guest  netstacktest.Options
}{
	{"as NetBSD", netstack.Config{}, netstacktest.Options{}},
	{"with every offload", netstack.Config{MTU: 65520}, netstacktest.Options{Offloads: netstacktest.AllOffloads}},
}

// each runs f for every setup, and afterwards has tshark look at all frames.
func each(t *testing.T, f func(t *testing.T, m *machine)) {
	for _, s := range setups {
		t.Run(s.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "capture.pcapng")
			m := open(t, path, s.config, s.guest)
			f(t, m)
			m.close()
			judge(t, path)
		})
	}
}

func open(t *testing.T, path string, c netstack.Config, o netstacktest.Options) *machine {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	m := &machine{t: t, options: o}
	m.options.Address = netip.PrefixFrom(guestAddr, 24)
	if m.network, err = netstack.New(c); err != nil {
		t.Fatal(err)
	}
	if m.tap, err = pcap.New(m.network, file); err != nil {
		t.Fatal(err)
	}
	if m.set, err = publish.Open([]publish.Spec{{Network: "tcp", GuestPort: 80}, {Network: "udp", GuestPort: 53}}, publish.Config{}); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- m.set.Serve(context.Background(), m.network) }()
	t.Cleanup(func() {
		m.close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return m
}

// boot starts the guest.
func (m *machine) boot() {
	m.t.Helper()
	g, err := netstacktest.New(m.tap, m.options)
	if err != nil {
		m.t.Fatal(err)
	}
	m.guest = g
}

// listen has the guest serve TCP port 80, each connection by f.
func (m *machine) listen(f func(c net.Conn)) (stop func()) {
	m.t.Helper()
	l, err := m.guest.Listen(netip.AddrPortFrom(guestAddr, 80))
	if err != nil {
		m.t.Fatal(err)
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
	return func() { l.Close() }
}

func (m *machine) close() {
	if m.set == nil {
		return
	}
	if err := m.set.Close(); err != nil {
		m.t.Errorf("the ports: %v", err)
	}
	if m.guest != nil {
		m.guest.Close()
	}
	if err := m.network.Close(); err != nil {
		m.t.Errorf("the network: %v", err)
	}
	var drop *pcap.DropError
	if err := m.tap.Close(); errors.As(err, &drop) {
		m.t.Log(err) // a busy host's file is slow
	} else if err != nil {
		m.t.Error(err)
	}
	m.set = nil
}

// judge fails the test for anything that tshark finds wrong, except that what is
// sent here is neither HTTP nor DNS.
func judge(t *testing.T, path string) {
	t.Helper()
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Logf("NOT RUN: no tshark to look at the capture: %v", err)
		return
	}
	if info, err := os.Stat(path); err != nil || info.Size() < 1000 {
		t.Errorf("the capture is empty: %v", err)
	}
	bad, err := exec.Command("tshark", "-r", path, "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE",
		"-o", "udp.check_checksum:TRUE", "-d", "tcp.port==80,data", "-d", "udp.port==53,data", "-Y",
		`_ws.malformed || ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0 ||
		icmp.checksum.status == 0 || icmpv6.checksum.status == 0`).Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	if len(bad) > 0 {
		t.Errorf("tshark objects to %d frames:\n%.2000s", bytes.Count(bad, []byte("\n")), bad)
	}
}

func (m *machine) dial(i int) net.Conn {
	m.t.Helper()
	a := m.set.Addrs()[i].Addrs[0]
	c, err := net.Dial(a.Network(), a.String())
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// TestEarlyConnection: made before the guest is there, it works when the guest
// is, and later when the service is.
func TestEarlyConnection(t *testing.T) {
	each(t, func(t *testing.T, m *machine) {
		c := m.dial(0)
		if _, err := io.WriteString(c, "early"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond) // a boot
		m.boot()
		time.Sleep(100 * time.Millisecond) // and the start of a service
		began := time.Now()
		m.listen(echo)
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "early" {
			t.Errorf("%q, %v", b, err)
		}
		t.Logf("answered %v after the service was there", time.Since(began))
	})
}

func TestRefusal(t *testing.T) {
	each(t, func(t *testing.T, m *machine) {
		m.boot()
		stop := m.listen(echo)
		c := m.dial(0)
		_, _ = c.Write([]byte{1})
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		stop()
		began := time.Now()
		a := m.set.Addrs()[0].Addrs[0]
		late, err := net.Dial(a.Network(), a.String())
		if err == nil {
			_, err = late.Read(make([]byte, 1))
			late.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v, want a reset", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a refusal after %v", took)
		}
		_, _ = c.Write([]byte{2}) // what is open stays so
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
}

func TestHalfClose(t *testing.T) {
	each(t, func(t *testing.T, m *machine) {
		m.boot()
		m.listen(func(c net.Conn) {
			b, err := io.ReadAll(c)
			if err != nil {
				t.Error(err)
			}
			_, _ = c.Write(bytes.ToUpper(b))
		})
		c := m.dial(0).(*net.TCPConn)
		_, _ = io.WriteString(c, "question")
		_ = c.CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "QUESTION" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

func TestResets(t *testing.T) {
	each(t, func(t *testing.T, m *machine) {
		m.boot()
		heard := make(chan error, 1)
		m.listen(func(c net.Conn) {
			b := make([]byte, 1)
			_, _ = io.ReadFull(c, b)
			_, _ = c.Write(b)
			_, err := c.Read(b)
			heard <- err
		})
		c := m.dial(0).(*net.TCPConn)
		_, _ = c.Write([]byte{1})
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetLinger(0)
		c.Close()
		if err := <-heard; err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the guest heard %v of the client's reset", err)
		}
	})
}

// TestBulk: 8 MB there and back at once, with their checksums.
func TestBulk(t *testing.T) {
	const size = 8 << 20
	each(t, func(t *testing.T, m *machine) {
		m.boot()
		down := rand.NewChaCha8([32]byte{1})
		guestSum := make(chan []byte, 1)
		m.listen(func(c net.Conn) {
			go func() {
				h := sha256.New()
				_, _ = io.Copy(h, c)
				guestSum <- h.Sum(nil)
			}()
			if _, err := io.CopyN(c, down, size); err != nil {
				t.Error(err)
			}
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
			guestSum <- <-guestSum // until the other direction has ended
		})
		c := m.dial(0).(*net.TCPConn)
		began := time.Now()
		hostSum := make(chan []byte, 1)
		go func() {
			h := sha256.New()
			_, _ = io.Copy(h, c)
			hostSum <- h.Sum(nil)
		}()
		if _, err := io.CopyN(c, rand.NewChaCha8([32]byte{2}), size); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		for i, sum := range []chan []byte{hostSum, guestSum} {
			want := sha256.New()
			_, _ = io.CopyN(want, rand.NewChaCha8([32]byte{byte(i + 1)}), size)
			if got := <-sum; !bytes.Equal(got, want.Sum(nil)) {
				t.Errorf("direction %d arrived as something else", i)
			}
		}
		t.Logf("%.0f Mbit/s each way", size*8/time.Since(began).Seconds()/1e6)
	})
}

func TestManyConnections(t *testing.T) {
	const n = 500
	each(t, func(t *testing.T, m *machine) {
		m.boot()
		m.listen(echo)
		a := m.set.Addrs()[0].Addrs[0]
		var all, open sync.WaitGroup
		open.Add(n)
		for i := range n {
			all.Go(func() {
				c, err := net.Dial(a.Network(), a.String())
				if err != nil {
					open.Done()
					t.Error(err)
					return
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				for round := range 3 {
					msg := []byte(fmt.Sprintf("connection %d, round %d", i, round))
					got := make([]byte, len(msg))
					_, err := c.Write(msg)
					if err == nil {
						_, err = io.ReadFull(c, got)
					}
					if round == 0 {
						open.Done()
						open.Wait() // all are open
					}
					if err != nil || !bytes.Equal(got, msg) {
						t.Errorf("connection %d: %q, %v", i, got, err)
						return
					}
				}
			})
		}
		all.Wait()
	})
}

func TestUDP(t *testing.T) {
	each(t, func(t *testing.T, m *machine) {
		m.boot()
		u, err := m.guest.ListenUDP(netip.AddrPortFrom(guestAddr, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		go func() {
			b := make([]byte, 65535)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(b[:n], from)
			}
		}()
		for i := range 5 {
			c := m.dial(1)
			for _, size := range []int{0, 1, 512, 1472, 1473, 9000, 60_000} {
				msg := bytes.Repeat([]byte{byte(i + 1)}, size)
				if _, err := c.Write(msg); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 65535)
				if n, err := c.Read(b); err != nil || !bytes.Equal(b[:n], msg) {
					t.Errorf("client %d: %d bytes, %v; want %d", i, n, err, size)
				}
			}
		}
	})
}
