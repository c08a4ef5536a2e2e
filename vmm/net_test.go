package vmm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
)

// wire is a Backend in memory: a test is the only other station on it, which
// answers ARP by itself.
type wire struct {
	mu    sync.Mutex
	queue [][]byte // for the guest
	wake  func()
	heard chan []byte // of the guest's; what nobody takes is lost
}

func newWire() *wire { return &wire{heard: make(chan []byte, 64)} }

func (w *wire) MTU() int          { return 1500 }
func (w *wire) Offloads() uint64  { return 0 }
func (w *wire) Negotiated(uint64) {}

func (w *wire) Send(_ *[12]byte, frame [][]byte) {
	f := bytes.Join(frame, nil)
	if len(f) >= 42 && f[12] == 8 && f[13] == 6 && f[21] == 1 {
		w.say(arp(2))
		return
	}
	select {
	case w.heard <- f:
	default:
	}
}

func (w *wire) Next() (*[12]byte, [][]byte, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return nil, nil, false
	}
	return new([12]byte), w.queue[:1:1], true
}

func (w *wire) Pop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = w.queue[1:]
}

func (w *wire) OnReady(wake func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake = wake
}

// say sends a frame to the guest.
func (w *wire) say(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, frame)
	if w.wake != nil {
		w.wake()
	}
}

// The two stations.
var (
	guestMAC  = [6]byte{2, 0, 0, 0, 0, 15}
	hostMAC   = [6]byte{2, 0, 0, 0, 0, 2}
	guestAddr = [4]byte{10, 0, 2, 15}
	hostAddr  = [4]byte{10, 0, 2, 2}
)

// arp is a frame of RFC 826 from the host: op is 1 to ask, 2 to answer.
func arp(op byte) []byte {
	f := append(append([]byte{}, guestMAC[:]...), hostMAC[:]...)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4, 0, op)
	f = append(append(f, hostMAC[:]...), hostAddr[:]...)
	return append(append(f, guestMAC[:]...), guestAddr[:]...)
}

// datagram is a frame with a UDP datagram from the host's port 4000 to the
// guest's port 7.
func datagram(text string) []byte {
	f := append(append([]byte{}, guestMAC[:]...), hostMAC[:]...)
	f = append(f, 8, 0)
	ip := []byte{0x45, 0, 0, byte(28 + len(text)), 0, 1, 0x40, 0, 64, 17, 0, 0}
	ip = append(append(ip, hostAddr[:]...), guestAddr[:]...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum&0xffff))
	udp := []byte{0x0f, 0xa0, 0, 7, 0, byte(8 + len(text)), 0, 0} // no checksum: RFC 768
	return append(append(append(f, ip...), udp...), text...)
}

// echo sends a datagram until the guest has sent it back, and checks whose
// address it has.
func (w *wire) echo(t *testing.T, text string) {
	t.Helper()
	w.say(datagram(text))
	late := time.After(30 * time.Second)
	for {
		select {
		case f := <-w.heard:
			if len(f) >= 42+len(text) && f[12] == 8 && f[13] == 0 && f[23] == 17 && string(f[42:42+len(text)]) == text {
				if [6]byte(f[6:12]) != guestMAC || [4]byte(f[26:30]) != guestAddr || [6]byte(f[:6]) != hostMAC {
					t.Errorf("the echo is % x", f[:42])
				}
				return
			}
		case <-late:
			t.Fatalf("%q did not come back", text)
		}
	}
}

// TestNet: frames go both ways, and a machine with an interface can be moved;
// the network behind it is not part of its state.
func TestNet(t *testing.T) {
	cfg, out := demoConfig(t, "netecho,static")
	w := newWire()
	cfg.Nets = []vmm.Net{{Backend: w, MAC: guestMAC}}
	before := openFiles(t)
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := launch(t, m, out)
	out.wait(t, "demo: ok netecho [^\n]*\n", 0)
	w.echo(t, "before")

	if n := m.NetStats(); len(n) != 1 || n[0].TX.Frames == 0 || n[0].RX.Frames == 0 || n[0].TX.Malformed+n[0].RX.Malformed != 0 {
		t.Errorf("the counters are %+v", n)
	}
	if err := m.SetLink(0, false); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.SetLink(0, true), m.SetLink(0, true)); err != nil {
		t.Fatal(err)
	}
	if m.SetLink(1, true) == nil || m.SetLink(-1, true) == nil {
		t.Error("a link of no interface was set")
	}
	w.echo(t, "again")

	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	<-g.exit
	if w.wake != nil {
		t.Error("a closed machine still listens to its network")
	}
	var ce *vmm.ConfigError
	bad := cfg
	bad.Nets = nil
	if _, err := vmm.Restore(bad, s); !errors.As(err, &ce) {
		t.Fatalf("restored without its interface: %v", err)
	}
	w = newWire()
	cfg.Nets = []vmm.Net{{Backend: w, MAC: guestMAC}}
	if m, err = vmm.Restore(cfg, s); err != nil {
		t.Fatal(err)
	}
	g = launch(t, m, out)
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	w.echo(t, "after")
	w.say(datagram("quit"))
	if e := <-g.exit; e.End != vmm.EndExit || e.Status != 0 {
		t.Errorf("%v\n%s", e, out)
	}
	if err := errors.Join(m.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if n := openFiles(t); n != before {
		t.Errorf("%d open files, %d before", n, before)
	}
}

// TestNetErrors: what cannot be an interface is an error before anything runs.
func TestNetErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		nets []vmm.Net
		want string
	}{
		{"no backend", []vmm.Net{{MAC: guestMAC}}, "interface 0: "},
		{"two with one address", []vmm.Net{{Backend: newWire(), MAC: guestMAC}, {Backend: newWire(), MAC: guestMAC}}, "interfaces 0 and 1 have the address 02000000000f"},
		{"a group's address", []vmm.Net{{Backend: newWire(), MAC: [6]byte{1}}}, "interface 0: "},
		{"too many", make([]vmm.Net, 18), "at most 17"},
	} {
		cfg, _ := demoConfig(t, "hello")
		cfg.Nets = c.nets
		m, err := vmm.New(cfg)
		if err == nil {
			m.Close()
		}
		var ce *vmm.ConfigError
		if !errors.As(err, &ce) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a ConfigError with %q", c.name, err, c.want)
		}
	}
}
