package net

import (
	"bytes"
	"context"
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// await waits for an event, and fails a test that would hang.
func await(t testing.TB, c <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), virtqtest.Patience)
	defer cancel()
	select {
	case <-c:
	case <-ctx.Done():
		t.Fatal("nothing happened")
	}
}

// TestTransmit: a frame comes out as it went in, however it is cut, and whatever
// ring features there are.
func TestTransmit(t *testing.T) {
	for _, features := range []uint64{everything, 0, everything &^ (1 << 28), everything &^ (1 << 29)} {
		l := newLAN()
		d := newDriver(t, newDevice(t, l, 1), features)
		for _, n := range []int{14, 15, 60, 1514} {
			f := frameTo([6]byte{2}, n)
			for _, cut := range [][][]byte{{f}, {f[:1], f[1:]}, {f[:13], f[13:14], f[14:]}} {
				h := Header{}
				runs := [][]byte{}
				for _, r := range cut {
					if len(r) > 0 {
						runs = append(runs, r)
					}
				}
				transmit(t, d, 1, h, runs...)
				if p := l.took(t, 1)[0]; !bytes.Equal(p.frame, f) || p.h != h {
					t.Fatalf("features %#x, %d bytes: %x came out", features, n, p.frame)
				}
			}
		}
		// Header and frame in one buffer, and the header cut.
		f := frameTo([6]byte{2}, 100)
		all := append(make([]byte, HeaderLen), f...)
		for _, cut := range []int{0, 5, 12, 20} {
			runs := [][]byte{all}
			if cut > 0 {
				runs = [][]byte{all[:cut], all[cut:]}
			}
			if _, err := d.Rings[1].Add(runs, nil); err != nil {
				t.Fatal(err)
			}
			d.Kick(1)
			d.Wait(1, 1)
			if p := l.took(t, 1)[0]; !bytes.Equal(p.frame, f) {
				t.Fatalf("cut at %d: %x", cut, p.frame)
			}
		}
	}
}

// TestTransmitHeaders: what may be asked for depends on what was negotiated.
func TestTransmitHeaders(t *testing.T) {
	csum := FeatureCSum
	tso := FeatureCSum | FeatureHostTSO4
	tso6 := FeatureCSum | FeatureHostTSO6
	for _, c := range []struct {
		name     string
		features uint64
		h        Header
		n        int
		ok       bool
		want     Header
	}{
		{"plain", 0, Header{}, 60, true, Header{}},
		{"num_buffers is ignored", 0, Header{10: 9, 11: 9}, 60, true, Header{}},
		{"unknown flags are ignored", 0, header(0xfe, 0, 0, 0, 0), 60, true, Header{}},
		{"leftovers are ignored", 0, header(0, 0, 7, 8, 9), 60, true, Header{}},
		{"csum not negotiated", 0, header(1, 0, 0, 14, 6), 60, false, Header{}},
		{"csum", csum, header(1, 0, 0, 34, 16), 60, true, header(1, 0, 0, 34, 16)},
		{"csum at the end", csum, header(1, 0, 0, 42, 16), 60, true, header(1, 0, 0, 42, 16)},
		{"csum behind the end", csum, header(1, 0, 0, 43, 16), 60, false, Header{}},
		{"csum overflow", csum, header(1, 0, 0, 0xffff, 0xffff), 60, false, Header{}},
		{"data valid is no driver's", csum, header(2, 0, 0, 0, 0), 60, true, Header{}},
		{"tso4 not negotiated", csum, header(1, 1, 1448, 34, 16), 60, false, Header{}},
		{"tso4", tso, header(1, 1, 1448, 34, 16), 60, true, header(1, 1, 1448, 34, 16)},
		{"tso4 without csum", tso, header(0, 1, 1448, 34, 16), 60, false, Header{}},
		{"tso4 without size", tso, header(1, 1, 0, 34, 16), 60, false, Header{}},
		{"tso6 for tso4", tso, header(1, 4, 1428, 54, 16), 80, false, Header{}},
		{"tso6", tso6, header(1, 4, 1428, 54, 16), 80, true, header(1, 4, 1428, 54, 16)},
		{"ecn", tso, header(1, 0x81, 1448, 34, 16), 60, false, Header{}},
		{"ufo", everything, header(1, 3, 1448, 34, 16), 60, false, Header{}},
		{"unknown segmentation", everything, header(1, 77, 1448, 34, 16), 60, false, Header{}},
	} {
		l := newLAN()
		dev := newDevice(t, l, 1)
		d := newDriver(t, dev, c.features)
		transmit(t, d, 1, c.h, frameTo([6]byte{2}, c.n))
		transmit(t, d, 1, Header{}, frameTo([6]byte{4}, 77))
		got := l.took(t, 1)
		if passed := len(got[0].frame) == c.n; passed != c.ok {
			t.Errorf("%s: passed %t", c.name, passed)
		} else if c.ok && got[0].h != c.want {
			t.Errorf("%s: header %x, want %x", c.name, got[0].h, c.want)
		}
		dev.Reset()
		if s := dev.Stats().TX; (s.Malformed == 1) == c.ok || s.Frames+s.Malformed != 2 {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

// TestTransmitLengths: the bounds of a frame, and what lies behind them is counted.
func TestTransmitLengths(t *testing.T) {
	gso := header(1, 1, 1448, 34, 16)
	for _, c := range []struct {
		name  string
		mtu   int
		h     Header
		n     int
		vlan  bool
		ok    bool
		count func(Flow) uint64
	}{
		{"runt", 1500, Header{}, 13, false, false, func(f Flow) uint64 { return f.Malformed }},
		{"least", 1500, Header{}, 14, false, true, nil},
		{"longest", 1500, Header{}, 1514, false, true, nil},
		{"too long", 1500, Header{}, 1515, false, false, func(f Flow) uint64 { return f.Oversized }},
		{"longest tagged", 1500, Header{}, 1518, true, true, nil},
		{"too long tagged", 1500, Header{}, 1519, true, false, func(f Flow) uint64 { return f.Oversized }},
		{"longest jumbo", 65520, Header{}, 65534, false, true, nil},
		{"too long jumbo", 65520, Header{}, 65535, false, false, func(f Flow) uint64 { return f.Oversized }},
		{"longest tso", 1500, gso, 65550, false, true, nil},
		{"too long tso", 1500, gso, 65551, false, false, func(f Flow) uint64 { return f.Oversized }},
	} {
		l := newLAN()
		l.mtu = c.mtu
		dev := newDevice(t, l, 1)
		d := newDriver(t, dev, everything)
		f := frameTo([6]byte{2}, c.n)
		if c.vlan {
			binary.BigEndian.PutUint16(f[12:], 0x8100)
		}
		transmit(t, d, 1, c.h, f)
		dev.Reset()
		s := dev.Stats().TX
		if c.ok && (s.Frames != 1 || s.Bytes != uint64(c.n) || !bytes.Equal(l.took(t, 1)[0].frame, f)) || !c.ok && (s.Frames != 0 || c.count(s) != 1) {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

// TestTransmitMalformed: chains that hold no frame come back and are counted.
func TestTransmitMalformed(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything)
	n := uint64(0)
	for _, c := range []struct {
		readable [][]byte
		writable []uint32
	}{
		{[][]byte{make([]byte, 1)}, nil},
		{[][]byte{make([]byte, HeaderLen)}, nil},
		{[][]byte{make([]byte, HeaderLen), make([]byte, 13)}, nil},
		{nil, []uint32{2000}},
		{[][]byte{make([]byte, HeaderLen+60)}, []uint32{1}},
	} {
		if _, err := d.Rings[1].Add(c.readable, c.writable); err != nil {
			t.Fatal(err)
		}
		d.Kick(1)
		d.Wait(1, 1)
		n++
	}
	transmit(t, d, 1, Header{}, frameTo([6]byte{2}, 60))
	l.took(t, 1)
	dev.Reset()
	if s := dev.Stats().TX; s.Malformed != n || s.Frames != 1 {
		t.Errorf("%+v", s)
	}
}

// TestTransmitBatch: what is in the ring goes out as a batch, in order, with one
// interrupt.
func TestTransmitBatch(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything&^(1<<29)) // each publishing would interrupt
	if err := dev.Quiesce(); err != nil {
		t.Fatal(err)
	}
	const n = 50
	for i := range n {
		h := Header{}
		if _, err := d.Rings[1].Add([][]byte{h[:], frameTo([6]byte{2}, 60+i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	d.Rings[1].Kick()
	if err := dev.Resume(); err != nil {
		t.Fatal(err)
	}
	d.Wait(1, n)
	for i, p := range l.took(t, n) {
		if len(p.frame) != 60+i {
			t.Fatalf("frame %d has %d bytes", i, len(p.frame))
		}
	}
	if got := d.Interrupts.Load(); got != 1 {
		t.Errorf("%d interrupts for a batch", got)
	}
}

// TestNotificationsSuppressed: while the device is at work, the driver need not say
// that there is more.
func TestNotificationsSuppressed(t *testing.T) {
	for _, features := range []uint64{everything, everything &^ (1 << 29)} {
		l := newLAN()
		entered, gate := make(chan struct{}), make(chan struct{})
		l.onSend = func() { entered <- struct{}{}; <-gate }
		dev := newDevice(t, l, 1)
		d := newDriver(t, dev, features)
		const n = 20
		for i := range n {
			h := Header{}
			if _, err := d.Rings[1].Add([][]byte{h[:], frameTo([6]byte{2}, 60)}, nil); err != nil {
				t.Fatal(err)
			}
			d.Kick(1)
			if i == 0 {
				await(t, entered)
			}
		}
		for range n - 1 {
			gate <- struct{}{}
			<-entered
		}
		gate <- struct{}{}
		d.Wait(1, n)
		if k := d.Kicks.Load(); k > 1 {
			t.Errorf("features %#x: %d kicks for %d frames", features, k, n)
		}
	}
}

// TestRateLimits: frames beyond the rate wait in the ring and are not dropped.
func TestRateLimits(t *testing.T) {
	for _, limit := range []Limit{
		{PacketsPerSecond: 200, Burst: 50 * time.Millisecond},
		{BytesPerSecond: 200_000, Burst: 50 * time.Millisecond},
	} {
		// A burst of 10 frames of 1,000 bytes, and one that may go into debt;
		// the others come 5 ms apart.
		const n = 31
		least := (n - 11) * 5 * time.Millisecond
		l := newLAN()
		dev := configured(t, Config{Backend: l, MAC: testMAC, Limits: Limits{TX: limit, RX: limit}})
		d := newDriver(t, dev, everything)
		start := time.Now()
		for range n {
			h := Header{}
			if _, err := d.Rings[1].Add([][]byte{h[:], frameTo([6]byte{2}, 1000)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		d.Kick(1)
		d.Wait(1, n)
		if took := time.Since(start); took < least {
			t.Errorf("%+v: %d frames from the guest in %v, want at least %v", limit, n, took, least)
		}
		if got := l.took(t, n); len(got) != n {
			t.Errorf("%d frames", len(got))
		}
		post(t, d, 0, n, 2000)
		start = time.Now()
		for range n {
			l.put(packet{frame: frameTo(testMAC, 1000)})
		}
		d.Wait(0, n)
		if took := time.Since(start); took < least {
			t.Errorf("%+v: %d frames to the guest in %v, want at least %v", limit, n, took, least)
		}
		dev.Reset()
		if s := dev.Stats(); s.TX.Throttled == 0 || s.RX.Throttled == 0 || s.TX.Frames != n || s.RX.Frames != n {
			t.Errorf("%+v", s)
		}
	}
}

// TestBucket: the arithmetic, by a clock of the test's own.
func TestBucket(t *testing.T) {
	b := bucket{rate: 1000, due: -time.Second}
	burst := time.Second
	for i, c := range []struct {
		now  time.Duration
		n    uint64
		free bool
	}{
		{0, 999, true},     // all but one of the burst
		{0, 1 << 30, true}, // one is left: any frame passes, into debt
		{(1<<30 - 2) * time.Millisecond, 0, false}, // which is paid off
		{(1<<30 - 1) * time.Millisecond, 1, true},
		{(1<<30 - 1) * time.Millisecond, 0, false},
		{1 << 60, 1000, true}, // long idle: a burst, and no more
		{1 << 60, 1, true},
		{1 << 60, 0, false},
	} {
		if free := b.due <= c.now; free != c.free {
			t.Errorf("step %d: free %t, due in %v", i, free, b.due-c.now)
		}
		if c.n > 0 {
			b.take(c.n, c.now, burst)
		}
	}
	var none bucket
	none.take(1<<32, 5, 5)
	if none.due != 0 {
		t.Error("a bucket without a rate is charged")
	}
}

// TestStopWhileThrottled: a reset and a pause do not wait for a rate limit, and a
// reset is no way around it.
func TestStopWhileThrottled(t *testing.T) {
	limit := Limit{PacketsPerSecond: 1, Burst: time.Second}
	l := newLAN()
	dev := configured(t, Config{Backend: l, MAC: testMAC, Limits: Limits{TX: limit, RX: limit}})
	for round := range 2 {
		d := newDriver(t, dev, everything)
		for range 4 {
			h := Header{}
			if _, err := d.Rings[1].Add([][]byte{h[:], frameTo([6]byte{2}, 60)}, nil); err != nil {
				t.Fatal(err)
			}
			l.put(packet{frame: frameTo(testMAC, 60)})
		}
		d.Kick(1)
		post(t, d, 0, 8, 100)
		for s := dev.Stats(); s.TX.Throttled <= uint64(2*round) || s.RX.Throttled <= uint64(2*round); s = dev.Stats() {
			runtime.Gosched()
		}
		d.Pause()
		d.Resume()
		start := time.Now()
		dev.Reset()
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("a reset took %v", took)
		}
	}
	// One of the burst, one into debt; a slow machine may see a second pass.
	if s := dev.Stats(); s.TX.Frames > 4 || s.RX.Frames > 4 {
		t.Errorf("%+v: resets bring new bursts", s)
	}
}

// TestBurst: a limiter begins with its burst, and with no more.
func TestBurst(t *testing.T) {
	m := newLimiter(Limit{PacketsPerSecond: 2, Burst: 5 * time.Hour})
	n := 0
	for ; m.wait() == 0; n++ {
		m.take(1500)
	}
	// One goes into debt, and one comes for each half second that this takes.
	if n < 36001 || n > 36003 {
		t.Errorf("%d frames of a burst of 36000", n)
	}
	if newLimiter(Limit{Burst: time.Hour}) != nil {
		t.Error("a limiter without a rate")
	}
}
