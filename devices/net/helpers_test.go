package net

import (
	"encoding/binary"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

const (
	everything = ^uint64(0)
	noMrg      = everything &^ featureMrgRxBuf
)

var testMAC = [6]byte{0x52, 0x54, 0, 1, 2, 3}

// packet is a frame as one side gave it.
type packet struct {
	h     Header
	frame []byte
}

// lan is a network in memory: it records what the guest sends, and holds what a
// test has for the guest.
type lan struct {
	mtu      int
	offloads uint64
	cut      int // frames come in runs of this many bytes; 0: in one

	mu         sync.Mutex
	sent       []packet
	queue      []packet
	runs       [][]byte
	wake       func()
	none       bool // Next has said so since the last wake
	negotiated []uint64
	popped     int
	waking     int // calls of wake under way
	onSend     func()
	got        chan struct{} // a frame came from the guest
	asked      chan struct{} // Next was called
}

const allOffloads = offloadBits

func newLAN() *lan {
	return &lan{mtu: 1500, offloads: allOffloads, got: make(chan struct{}, 1), asked: make(chan struct{}, 1)}
}

func (l *lan) MTU() int         { return l.mtu }
func (l *lan) Offloads() uint64 { return l.offloads }
func (l *lan) Negotiated(f uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.negotiated = append(l.negotiated, f)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (l *lan) Send(h *Header, frame [][]byte) {
	l.mu.Lock()
	if l.onSend != nil {
		l.onSend()
	}
	p := packet{h: *h}
	for _, b := range frame {
		p.frame = append(p.frame, b...)
	}
	l.sent = append(l.sent, p)
	l.mu.Unlock()
	signal(l.got)
}

func (l *lan) Next() (*Header, [][]byte, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer signal(l.asked)
	if len(l.queue) == 0 {
		l.none = true
		return nil, nil, false
	}
	p := &l.queue[0]
	l.runs = l.runs[:0]
	for b, cut := p.frame, l.cut; len(b) > 0; {
		if cut == 0 || cut > len(b) {
			cut = len(b)
		}
		l.runs = append(l.runs, b[:cut], nil)
		b = b[cut:]
	}
	return &p.h, l.runs, true
}

func (l *lan) Pop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = l.queue[1:]
	l.popped++
}

func (l *lan) OnReady(wake func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake = wake
}

// put gives frames to the guest.
func (l *lan) put(ps ...packet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, ps...)
	if l.none && l.wake != nil {
		l.none = false
		l.wake()
	}
}

func (l *lan) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// took waits for n frames of the guest's.
func (l *lan) took(t testing.TB, n int) []packet {
	t.Helper()
	for {
		l.mu.Lock()
		if len(l.sent) >= n {
			s := l.sent
			l.sent = nil
			l.mu.Unlock()
			return s
		}
		l.mu.Unlock()
		await(t, l.got)
	}
}

// newDevice makes a device of pairs over l, which the test's end closes.
func newDevice(t testing.TB, l *lan, pairs int) *Device {
	t.Helper()
	return configured(t, Config{Backend: l, MAC: testMAC, QueuePairs: pairs})
}

func configured(t testing.TB, c Config) *Device {
	t.Helper()
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func newDriver(t testing.TB, dev *Device, features uint64) *virtqtest.Driver {
	t.Helper()
	return virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Features: features})
}

// frameTo makes an Ethernet frame of n bytes whose payload tells its place.
func frameTo(dst [6]byte, n int) []byte {
	b := make([]byte, n)
	copy(b, dst[:])
	copy(b[6:], []byte{2, 0, 0, 0, 0, 1})
	if n >= 14 {
		binary.BigEndian.PutUint16(b[12:], 0x88b6)
	}
	for i := 14; i < n; i++ {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

// header builds a virtio_net_hdr.
func header(flags, gso byte, gsoSize, start, off uint16) (h Header) {
	h[0], h[1] = flags, gso
	le := binary.LittleEndian
	le.PutUint16(h[4:], gsoSize)
	le.PutUint16(h[6:], start)
	le.PutUint16(h[8:], off)
	return h
}

// transmit sends one frame on queue i and waits for its buffer to come back.
func transmit(t testing.TB, d *virtqtest.Driver, i int, h Header, runs ...[]byte) {
	t.Helper()
	if _, err := d.Rings[i].Add(append([][]byte{h[:]}, runs...), nil); err != nil {
		t.Fatal(err)
	}
	d.Kick(i)
	if u := d.Wait(i, 1); u[0].Len != 0 {
		t.Errorf("used.len %d of a transmit buffer", u[0].Len)
	}
}

// post puts n receive buffers of these runs into ring i.
func post(t testing.TB, d *virtqtest.Driver, i, n int, runs ...uint32) {
	t.Helper()
	for range n {
		if _, err := d.Rings[i].Add(nil, runs); err != nil {
			t.Fatal(err)
		}
	}
	d.Kick(i)
}

// receive waits for one frame on ring i and joins its buffers.
func receive(t testing.TB, d *virtqtest.Driver, i int) packet {
	t.Helper()
	return join(t, d.Wait(i, 1), func() virtqtest.Used { return d.Wait(i, 1)[0] })[0]
}

// join makes frames of used buffers, asking for more where the last is unfinished.
func join(t testing.TB, us []virtqtest.Used, more func() virtqtest.Used) (ps []packet) {
	t.Helper()
	for len(us) > 0 {
		b := us[0].Joined()
		if len(b) < HeaderLen {
			t.Fatalf("used.len %d", us[0].Len)
		}
		p := packet{h: Header(b), frame: b[HeaderLen:]}
		for n := int(binary.LittleEndian.Uint16(b[hdrNumBuffers:])); n > 1; n-- {
			if us = us[1:]; len(us) == 0 {
				us = append(us, more())
			}
			p.frame = append(p.frame, us[0].Joined()...)
		}
		ps, us = append(ps, p), us[1:]
	}
	return ps
}

// command sends one to the control queue and gives its answer.
func command(t testing.TB, d *virtqtest.Driver, class, cmd byte, data ...[]byte) byte {
	t.Helper()
	i := 2
	if d.Features&featureMQ != 0 {
		i = len(d.Rings) - 1
	}
	b := d.Do(i, append([][]byte{{class, cmd}}, data...), 1)
	if len(b) != 1 {
		t.Fatalf("%d bytes of answer", len(b))
	}
	return b[0]
}

// macTable encodes one table of MAC_TABLE_SET.
func macTable(addrs ...[6]byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(addrs)))
	for _, a := range addrs {
		b = append(b, a[:]...)
	}
	return b
}

// workers counts goroutines inside a worker. They have left it before Reset,
// Quiesce or Close return.
func workers() int {
	buf := make([]byte, 1<<20)
	s := string(buf[:runtime.Stack(buf, true)])
	return strings.Count(s, "net.(*txWorker).run(") + strings.Count(s, "net.(*rxWorker).run(") + strings.Count(s, "net.(*ctrlWorker).run(")
}

// starve returns when the device has found no buffer for the n-th time.
func starve(dev *Device, n uint64) {
	for dev.Stats().Starved < n {
		runtime.Gosched()
	}
}

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// newQueue is the device's side of a ring, with a doorbell.
func newQueue(tb testing.TB, mem *guestmem.Memory, r *virtqtest.Ring) (*devices.Queue, error) {
	q, err := virtq.New(mem, r.Cfg)
	if err != nil {
		return nil, err
	}
	b, err := devices.NewDoorbell()
	if err != nil {
		return nil, err
	}
	tb.Cleanup(func() { b.Close() })
	return &devices.Queue{Queue: q, Kick: b}, nil
}
