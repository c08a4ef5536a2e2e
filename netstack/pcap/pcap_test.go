package pcap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// network is a Backend that keeps what it is sent and gives what it has.
type network struct {
	mu   sync.Mutex
	sent [][]byte
	give []frame
	wake func()
}

func (n *network) MTU() int            { return 1500 }
func (n *network) Offloads() uint64    { return 3 }
func (n *network) Negotiated(uint64)   {}
func (n *network) OnReady(wake func()) { n.wake = wake }
func (n *network) Send(_ *[headerLen]byte, f [][]byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent = append(n.sent, bytes.Join(f, nil))
}

func (n *network) Next() (*[headerLen]byte, [][]byte, bool) {
	if len(n.give) == 0 {
		return nil, nil, false
	}
	return &n.give[0].h, runs(n.give[0].bytes), true
}

func (n *network) Pop() { n.give = n.give[1:] }

// runs cuts a frame where memory might.
func runs(b []byte) [][]byte {
	if len(b) < 20 {
		return [][]byte{b}
	}
	return [][]byte{b[:14], b[14:14], b[14:17], b[17:]}
}

// packet is a block of a file, as read back.
type packet struct {
	at       time.Time
	original int
	dir      direction
	bytes    []byte
}

// read is a reader of pcapng that takes nothing from the writer: it checks what
// the draft demands and gives the packets and the statistics.
func read(t *testing.T, file []byte) (packets []packet, received, dropped uint64) {
	t.Helper()
	for i := 0; len(file) > 0; i++ {
		if len(file) < 12 {
			t.Fatalf("block %d: %d bytes are left", i, len(file))
		}
		kind, n := le.Uint32(file), int(le.Uint32(file[4:]))
		if n < 12 || n%4 != 0 || n > len(file) || int(le.Uint32(file[n-4:])) != n {
			t.Fatalf("block %d: length %d of %d, at its end %x", i, n, len(file), file[max(0, min(n, len(file))-4):])
		}
		body := file[8 : n-4]
		file = file[n:]
		want := []uint32{0x0a0d0d0a, 1}
		if i < len(want) && kind != want[i] {
			t.Fatalf("block %d is a %#x", i, kind)
		}
		switch kind {
		case 0x0a0d0d0a:
			if le.Uint32(body) != 0x1a2b3c4d || le.Uint16(body[4:]) != 1 {
				t.Fatalf("section %x", body)
			}
		case 1:
			if le.Uint16(body) != 1 || !bytes.Equal(body[8:13], []byte{9, 0, 1, 0, 9}) {
				t.Fatalf("interface %x", body)
			}
		case 6:
			kept := int(le.Uint32(body[12:]))
			options := body[20+(kept+3)/4*4:]
			if len(options) != 12 || le.Uint32(options) != 2|4<<16 {
				t.Fatalf("block %d: options %x", i, options)
			}
			if pad := body[20+kept : 20+(kept+3)/4*4]; !bytes.Equal(pad, make([]byte, len(pad))) {
				t.Fatalf("block %d: padding %x", i, pad)
			}
			packets = append(packets, packet{
				at:       time.Unix(0, int64(le.Uint32(body[4:]))<<32|int64(le.Uint32(body[8:]))),
				original: int(le.Uint32(body[16:])), dir: direction(le.Uint32(options[4:])), bytes: body[20 : 20+kept],
			})
		case 5:
			for o := body[12:]; le.Uint16(o) != 0; o = o[4+(le.Uint16(o[2:])+3)/4*4:] {
				switch le.Uint16(o) {
				case 4:
					received = le.Uint64(o[4:])
				case 5:
					dropped = le.Uint64(o[4:])
				}
			}
		default:
			t.Fatalf("block %d is a %#x", i, kind)
		}
	}
	return packets, received, dropped
}

// captureAll takes every frame through a tap, both ways, and gives the file.
func captureAll(t *testing.T, all []frame) []byte {
	t.Helper()
	n := &network{give: slices.Clone(all)}
	var file bytes.Buffer
	tap, err := New(n, &file)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		before := slices.Clone(f.bytes)
		tap.Send(&f.h, runs(f.bytes))
		h, b, ok := tap.Next()
		if again, _, _ := tap.Next(); !ok || again != h || !bytes.Equal(bytes.Join(b, nil), f.bytes) || *h != f.h {
			t.Fatalf("%s: Next gives another frame", f.name)
		}
		tap.Pop()
		if !bytes.Equal(f.bytes, before) {
			t.Fatalf("%s: the frame itself was changed", f.name)
		}
	}
	if _, _, ok := tap.Next(); ok {
		t.Error("a frame too many")
	}
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
	for i, f := range all {
		if !bytes.Equal(n.sent[i], f.bytes) {
			t.Errorf("%s: the network got another frame", f.name)
		}
	}
	return file.Bytes()
}

func TestCapture(t *testing.T) {
	all := frames()
	began := time.Now()
	packets, received, dropped := read(t, captureAll(t, all))
	if len(packets) != 2*len(all) || received != uint64(len(packets)) || dropped != 0 {
		t.Fatalf("%d packets of %d, the statistics say %d and %d dropped", len(packets), 2*len(all), received, dropped)
	}
	last := began
	for i, p := range packets {
		f := all[i/2]
		if want := []direction{fromGuest, toGuest}[i%2]; p.dir != want {
			t.Errorf("%s: direction %d, want %d", f.name, p.dir, want)
		}
		if p.original != len(f.bytes) || len(p.bytes) != len(f.bytes) {
			t.Errorf("%s: %d bytes of %d, want %d", f.name, len(p.bytes), p.original, len(f.bytes))
		}
		if p.at.Before(last) || p.at.After(time.Now()) {
			t.Errorf("%s: at %v, after one at %v", f.name, p.at, last)
		}
		last = p.at
		if got := right(p.bytes); got != f.good {
			t.Errorf("%s of %d bytes: checksums good: %v", f.name, len(p.bytes), got)
		}
		if f.h == ([headerLen]byte{}) && !bytes.Equal(p.bytes, f.bytes) {
			t.Errorf("%s: a frame that is complete was changed", f.name)
		}
	}
}

// right checks the lengths and checksums of a frame of build's.
func right(b []byte) bool {
	kind, ip := be.Uint16(b[12:]), b[14:]
	if kind == typeVLAN {
		kind, ip = be.Uint16(b[16:]), b[18:]
	}
	addrs, proto, seg := []byte(nil), byte(0), []byte(nil)
	if kind == typeIPv4 {
		if int(be.Uint16(ip[2:])) != len(ip) || sumByHand(ip[:20]) != 0xffff {
			return false
		}
		addrs, proto, seg = ip[12:20], ip[9], ip[20:]
	} else {
		if int(be.Uint16(ip[4:])) != len(ip)-40 {
			return false
		}
		addrs, proto, seg = ip[8:40], ip[6], ip[40:]
	}
	if c := be.Uint16(seg[checksumAt(proto):]); c == 0 && proto == protoUDP || c == 0xffff && proto == protoTCP {
		return false // none, and one that is written as 0
	}
	return pseudo(addrs, proto, seg) == 0xffff
}

// TestTshark: the file opens without options, nothing in it is malformed, what is
// good is good and what is bad is bad.
func TestTshark(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Skipf("NOT RUN: no tshark to hold the capture against: %v", err)
	}
	all := frames()
	path := filepath.Join(t.TempDir(), "capture.pcapng")
	if err := os.WriteFile(path, captureAll(t, all), 0o600); err != nil {
		t.Fatal(err)
	}
	tshark := func(args ...string) []string {
		t.Helper()
		cmd := exec.Command("tshark", append([]string{
			"-r", path, "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
		}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, &stderr)
		}
		return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	}
	if out := tshark("-Y", "_ws.malformed"); out[0] != "" {
		t.Errorf("malformed: %q", out)
	}
	// 1 is good, 0 is bad.
	rows := tshark("-T", "fields", "-E", "separator=|", "-e", "ip.checksum.status", "-e", "tcp.checksum.status", "-e", "udp.checksum.status",
		"-e", "frame.len", "-e", "frame.packet_flags_direction", "-e", "ip.len", "-e", "ipv6.plen")
	if len(rows) != 2*len(all) {
		t.Fatalf("%d rows, want %d", len(rows), 2*len(all))
	}
	for i, row := range rows {
		f := all[i/2]
		v := strings.Split(row, "|")
		sum := v[1]
		if f.proto == "udp" {
			sum = v[2]
		}
		if good := sum == "1"; good != f.good || !f.good && sum != "0" {
			t.Errorf("%s of %d bytes: tshark says %q", f.name, len(f.bytes), row)
		}
		if strings.HasPrefix(f.name, "IPv4") && v[0] != "1" || v[3] != fmt.Sprint(len(f.bytes)) {
			t.Errorf("%s of %d bytes: tshark says %q", f.name, len(f.bytes), row)
		}
		if want := []string{"2", "1"}[i%2]; !strings.HasSuffix(v[4], want) {
			t.Errorf("%s: direction %q, want %s", f.name, v[4], want)
		}
	}
}

// slow is a writer that lets one Write after the other pass when told.
type slow struct {
	pass chan struct{}
	bytes.Buffer
}

func (s *slow) Write(b []byte) (int, error) {
	<-s.pass
	return s.Buffer.Write(b)
}

// TestSlowFileDropsNoTraffic: the network gets every frame at once, what the
// file's buffers have no room for is missing there, and counted.
func TestSlowFileDropsNoTraffic(t *testing.T) {
	n := &network{}
	w := &slow{pass: make(chan struct{}, 1)}
	w.pass <- struct{}{} // the header
	const size, count = 10_000, 100
	tap, err := newTap(n, w, size)
	if err != nil {
		t.Fatal(err)
	}
	f := build(false, protoUDP, 1000, false)
	for range count {
		tap.Send(&[headerLen]byte{}, runs(f))
	}
	if len(n.sent) != count {
		t.Errorf("%d frames passed, want %d", len(n.sent), count)
	}
	st := tap.Stats()
	if room := int64(size / blockSize(len(f))); st.Captured < room || st.Captured > 2*room || st.Captured+st.Dropped != count {
		t.Errorf("%+v, with room for %d in each buffer", st, room)
	}
	close(w.pass)
	var drop *DropError
	if err := tap.Close(); !errors.As(err, &drop) || drop.Stats != st || !strings.Contains(err.Error(), fmt.Sprint(st.Dropped)) {
		t.Errorf("Close: %v, want %+v", err, st)
	}
	packets, received, dropped := read(t, w.Bytes())
	if len(packets) != int(st.Captured) || received != count || dropped != uint64(st.Dropped) {
		t.Errorf("%d packets, %d received, %d dropped; want %+v", len(packets), received, dropped, st)
	}
}

// fails is a full disk after n writes.
type fails struct{ n int }

var errFull = errors.New("no space left on device")

func (f *fails) Write(b []byte) (int, error) {
	if f.n--; f.n < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestFileFails(t *testing.T) {
	if _, err := New(&network{}, &fails{}); !errors.Is(err, errFull) {
		t.Errorf("New: %v", err)
	}
	n := &network{}
	tap, err := New(n, &fails{n: 1})
	if err != nil {
		t.Fatal(err)
	}
	for len(n.sent) < 10 || tap.Stats().Captured > 0 {
		tap.Send(&[headerLen]byte{}, runs(build(true, protoTCP, 10, false)))
		runtime.Gosched()
	}
	st := tap.Stats()
	if st.Dropped != int64(len(n.sent)) {
		t.Errorf("%+v of %d frames", st, len(n.sent))
	}
	if err := tap.Close(); !errors.Is(err, errFull) {
		t.Errorf("Close: %v", err)
	}
	tap.Send(&[headerLen]byte{}, nil) // goes on passing
	if tap.Stats() != st {
		t.Errorf("after Close: %+v, was %+v", tap.Stats(), st)
	}
	if tap.Close() == nil {
		t.Error("the second Close is no error")
	}
}

// TestConcurrent: many queues send while one receives and the buffers are small:
// the file is whole, and what is in it and what is not add up.
func TestConcurrent(t *testing.T) {
	n := &network{}
	for range 2000 {
		h, b := partial(build(true, protoTCP, 3000, false), true, protoTCP)
		h[1] = 4
		n.give = append(n.give, frame{h: h, bytes: b})
	}
	var file bytes.Buffer
	tap, err := newTap(n, &file, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	var queues sync.WaitGroup
	for q := range 4 {
		queues.Go(func() {
			h, f := partial(build(false, protoUDP, 100*q+1, false), false, protoUDP)
			for range 2000 {
				tap.Send(&h, runs(f))
			}
		})
	}
	queues.Go(func() {
		for {
			if _, _, ok := tap.Next(); !ok {
				return
			}
			tap.Pop()
		}
	})
	queues.Wait()
	err = tap.Close()
	var drop *DropError
	if err != nil && !errors.As(err, &drop) {
		t.Fatal(err)
	}
	packets, received, dropped := read(t, file.Bytes())
	st := tap.Stats()
	if received != 10_000 || int64(len(packets)) != st.Captured || int64(dropped) != st.Dropped {
		t.Errorf("%d packets, %d received, %d dropped; %+v", len(packets), received, dropped, st)
	}
	last := time.Time{}
	for i, p := range packets {
		if !right(p.bytes) || p.at.Before(last) {
			t.Fatalf("packet %d of %d bytes at %v (before it %v): right: %v", i, len(p.bytes), p.at, last, right(p.bytes))
		}
		last = p.at
	}
	t.Logf("%+v", st)
}

// TestHugeFrame: more than any network has is cut in the file, and its length told.
func TestHugeFrame(t *testing.T) {
	packets, _, _ := read(t, captureAll(t, []frame{{name: "huge", bytes: make([]byte, 200_000)}}))
	if len(packets) != 2 || packets[0].original != 200_000 || len(packets[0].bytes) != maxFrame {
		t.Errorf("%d packets, %d bytes of %d", len(packets), len(packets[0].bytes), packets[0].original)
	}
}

// TestPassesThrough: the rest of the Backend is the network's own.
func TestPassesThrough(t *testing.T) {
	n := &network{}
	tap, err := New(n, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	woken := false
	tap.OnReady(func() { woken = true })
	n.wake()
	if tap.MTU() != 1500 || tap.Offloads() != 3 || !woken {
		t.Error("the tap answers for the network")
	}
}

// FuzzComplete: any frame with any header is completed within its bounds, and a
// frame that needs nothing is left alone.
func FuzzComplete(f *testing.F) {
	for _, fr := range frames() {
		if len(fr.bytes) < 3000 {
			f.Add(fr.h[:], fr.bytes)
		}
	}
	f.Add([]byte{1, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, []byte{})
	f.Fuzz(func(t *testing.T, h, b []byte) {
		var header [headerLen]byte
		copy(header[:], h)
		before := slices.Clone(b)
		guarded := append(slices.Clone(b), 0xa5, 0xa5)
		complete(&header, guarded[:len(b):len(b)])
		if header[0]&flagNeedsCsum == 0 && header[1]&^gsoECN == gsoNone && !bytes.Equal(guarded[:len(b)], before) {
			t.Fatal("a frame that is complete was changed")
		}
		if s, want := fold(sum(b, 0)), ^sumByHand(b); s != want && s^want != 0xffff {
			t.Fatalf("the sum's complement is %#x, want %#x", s, want)
		}
	})
}

// BenchmarkSend is what a tap costs the packet path: bursts that find room, with
// the writer at work beside.
func BenchmarkSend(b *testing.B) {
	for _, payload := range []int{1460, 65535 - 40} {
		h, whole := partial(build(false, protoTCP, payload, false), false, protoTCP)
		f := runs(whole)
		burst := bufferSize / 2 / blockSize(len(whole))
		b.Run(fmt.Sprint(payload), func(b *testing.B) {
			tap, err := New(nothing{}, io.Discard)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(payload))
			b.ReportAllocs()
			for i := 1; b.Loop(); i++ {
				tap.Send(&h, f)
				if i%burst == 0 {
					b.StopTimer()
					for empty := false; !empty; runtime.Gosched() {
						tap.mu.Lock()
						empty = len(tap.cur.b) == 0
						tap.mu.Unlock()
					}
					b.StartTimer()
				}
			}
			if st := tap.Stats(); st.Dropped > 0 {
				b.Errorf("%+v: dropping is no work", st)
			}
			_ = tap.Close()
		})
	}
}

// nothing is a network that does nothing.
type nothing struct{}

func (nothing) Send(*[headerLen]byte, [][]byte)          {}
func (nothing) Next() (*[headerLen]byte, [][]byte, bool) { return nil, nil, false }
func (nothing) Pop()                                     {}
func (nothing) OnReady(func())                           {}
func (nothing) MTU() int                                 { return 0 }
func (nothing) Offloads() uint64                         { return 0 }
func (nothing) Negotiated(uint64)                        {}
