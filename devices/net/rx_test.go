package net

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// TestReceive: a frame comes out as it went in, however buffers and frame are cut.
func TestReceive(t *testing.T) {
	for _, features := range []uint64{everything, noMrg, 0} {
		for _, cut := range []int{0, 1, 13, 1000} {
			l := newLAN()
			l.cut = cut
			dev := newDevice(t, l, 1)
			d := newDriver(t, dev, features)
			for _, n := range []int{14, 60, 1514, 1518} {
				for _, runs := range [][]uint32{{2000}, {HeaderLen, 2000}, {1, 11, 1, 700, 900}} {
					f := frameTo(testMAC, n)
					if n == 1518 {
						f[12], f[13] = 0x81, 0
					}
					post(t, d, 0, 1, runs...)
					l.put(packet{frame: f})
					p := receive(t, d, 0)
					if !bytes.Equal(p.frame, f) || p.h != (Header{10: 1}) {
						t.Fatalf("features %#x, runs %v, %d bytes in %d: header %x, %d bytes", features, runs, n, cut, p.h, len(p.frame))
					}
				}
			}
		}
	}
}

// TestReceiveHeaders: what the driver did not take is not passed on.
func TestReceiveHeaders(t *testing.T) {
	for _, c := range []struct {
		name     string
		features uint64
		h, want  Header
		ok       bool
	}{
		{"plain", 0, Header{}, Header{10: 1}, true},
		{"partial", FeatureGuestCSum, header(1, 0, 0, 34, 16), header(1, 0, 0, 34, 16), true},
		{"valid", FeatureGuestCSum, header(2, 0, 0, 0, 0), header(2, 0, 0, 0, 0), true},
		{"tso4", FeatureGuestCSum | FeatureGuestTSO4, header(1, 1, 1448, 34, 16), header(1, 1, 1448, 34, 16), true},
		{"tso6", FeatureGuestCSum | FeatureGuestTSO6, header(1, 4, 1448, 54, 16), header(1, 4, 1448, 54, 16), true},
		{"partial not negotiated", 0, header(1, 0, 0, 34, 16), Header{}, false},
		{"valid not negotiated", 0, header(2, 0, 0, 0, 0), Header{}, false},
		{"tso4 not negotiated", FeatureGuestCSum, header(1, 1, 1448, 34, 16), Header{}, false},
	} {
		l := newLAN()
		dev := newDevice(t, l, 1)
		d := newDriver(t, dev, c.features)
		post(t, d, 0, 2, 2000)
		l.put(packet{c.h, frameTo(testMAC, 100)}, packet{frame: frameTo(testMAC, 77)})
		p := receive(t, d, 0)
		if passed := len(p.frame) == 100; passed != c.ok {
			t.Errorf("%s: passed %t", c.name, passed)
		}
		if c.want[10] = 1; c.ok && p.h != c.want {
			t.Errorf("%s: header %x, want %x", c.name, p.h, c.want)
		}
	}
}

// TestMergeableModel: frames of any length into buffers of any length, against
// what the specification says of num_buffers and used.len.
func TestMergeableModel(t *testing.T) {
	l := newLAN()
	l.mtu, l.cut = 65520, 999
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything)
	rnd := uint32(1)
	next := func(n int) int {
		rnd = rnd*1664525 + 1013904223
		return int(rnd>>8) % n
	}
	var back []virtqtest.Used
	var posted []uint64 // room of each buffer in the ring, in order
	sizes := []int{14, 60, 1514, 4000, 16000, 30000, 65520}
	for round := range 300 {
		var frames []packet
		for range 1 + next(4) {
			frames = append(frames, packet{frame: frameTo(testMAC, sizes[next(len(sizes))]+next(14))})
		}
		l.put(frames...)
		for len(frames) > 0 {
			f := frames[0]
			need := uint64(HeaderLen + len(f.frame))
			// Buffers are posted one by one: most frames wait for some.
			sum := uint64(0)
			for _, n := range posted {
				sum += n
			}
			for sum < need {
				runs := []uint32{uint32(HeaderLen + next(3000))}
				if next(3) == 0 {
					runs = append(runs, uint32(1+next(4000)))
				}
				post(t, d, 0, 1, runs...)
				room := uint64(0)
				for _, n := range runs {
					room += uint64(n)
				}
				posted, sum = append(posted, room), sum+room
			}
			k := 0
			for got := uint64(0); got < need; k++ {
				got += posted[k]
			}
			for len(back) < k {
				back = append(back, d.Wait(0, k-len(back))...)
			}
			us := back[:k]
			back = back[k:]
			var got []byte
			for i, u := range us {
				want := min(need, posted[i])
				if uint64(u.Len) != want {
					t.Fatalf("round %d: used.len %d of buffer %d, want %d", round, u.Len, i, want)
				}
				need -= want
				got = append(got, u.Joined()...)
			}
			if n := binary.LittleEndian.Uint16(got[hdrNumBuffers:]); int(n) != k {
				t.Fatalf("round %d: num_buffers %d, want %d", round, n, k)
			}
			if !bytes.Equal(got[HeaderLen:], f.frame) {
				t.Fatalf("round %d: a frame of %d bytes differs", round, len(f.frame))
			}
			posted, frames = posted[k:], frames[1:]
		}
	}
	dev.Reset()
	if s := dev.Stats(); s.RX.Oversized != 0 || s.RX.Malformed != 0 || s.Starved == 0 {
		t.Errorf("%+v", s)
	}
}

// TestReceiveLengths: nothing comes that is longer than the driver was told.
func TestReceiveLengths(t *testing.T) {
	gso := header(1, 1, 1448, 34, 16)
	for _, c := range []struct {
		name string
		h    Header
		n    int
		vlan bool
		ok   bool
	}{
		{"longest", Header{}, 1514, false, true},
		{"too long", Header{}, 1515, false, false},
		{"longest tagged", Header{}, 1518, true, true},
		{"too long tagged", Header{}, 1519, true, false},
		{"longest to be segmented", gso, 65550, false, true},
		{"too long to be segmented", gso, 65551, false, false},
		{"longest tagged to be segmented", gso, 65554, true, true},
	} {
		l := newLAN()
		dev := newDevice(t, l, 1)
		d := newDriver(t, dev, everything)
		post(t, d, 0, 2, 66000)
		f := frameTo(testMAC, c.n)
		if c.vlan {
			f[12], f[13] = 0x88, 0xa8
		}
		l.put(packet{c.h, f}, packet{frame: frameTo(testMAC, 77)})
		if p := receive(t, d, 0); (len(p.frame) == c.n) != c.ok {
			t.Errorf("%s: %d bytes came", c.name, len(p.frame))
		}
		dev.Reset()
		if s := dev.Stats().RX; (s.Oversized == 0) != c.ok {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

// TestReceiveBatch: what waits in the network comes as a batch, in order, with one
// interrupt.
func TestReceiveBatch(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything&^(1<<29)) // each publishing would interrupt
	const n = 50
	post(t, d, 0, n, 2000)
	d.Pause()
	for i := range n {
		l.put(packet{frame: frameTo(testMAC, 60+i)})
	}
	before := d.Interrupts.Load()
	d.Resume()
	for i, p := range join(t, d.Wait(0, n), nil) {
		if len(p.frame) != 60+i {
			t.Fatalf("frame %d has %d bytes", i, len(p.frame))
		}
	}
	if got := d.Interrupts.Load() - before; got != 1 {
		t.Errorf("%d interrupts for a batch", got)
	}
}
