package net

import (
	"bytes"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// TestFaults: a driver that breaks the rules of any ring is told, all work ends,
// and a reset brings the device back.
func TestFaults(t *testing.T) {
	breakages := map[string]func(*virtqtest.Ring){
		"loop":       func(r *virtqtest.Ring) { r.SetDesc(0, 0, 64, virtqtest.Next, 0); r.PushHead(0) },
		"beyond RAM": func(r *virtqtest.Ring) { r.SetDesc(0, 1<<40, 64, virtqtest.Write, 0); r.PushHead(0) },
		"head":       func(r *virtqtest.Ring) { r.PushHead(9999) },
		"avail.idx":  func(r *virtqtest.Ring) { r.SetAvailIdx(300) },
		"indirect": func(r *virtqtest.Ring) {
			r.SetDesc(0, r.Cfg.Desc, 16*virtq.MaxSize, virtqtest.Indirect, 0)
			r.PushHead(0)
		},
	}
	for i := range 5 {
		for name, do := range breakages {
			l := newLAN()
			dev := newDevice(t, l, 2)
			d := newDriver(t, dev, everything)
			if i == 2 {
				// The second pair's receive queue is looked at for its flows.
				pairsSet(t, d, 2)
				transmit(t, d, 3, Header{}, udp4([6]byte{2}, 1, 2, 1000, 80))
			}
			r := d.Rings[i]
			do(r)
			r.Kick()
			d.Notify(i)
			if i%2 == 0 && i < 4 {
				l.put(packet{frame: udp4(testMAC, 2, 1, 80, 1000)})
			}
			if err := d.WaitFault(); err == nil {
				t.Errorf("queue %d, %s: no fault", i, name)
			}
			dev.run.workers.Wait() // all end, each when it next looks
			// Pausing and resuming a broken device changes nothing.
			if err := dev.Quiesce(); err != nil {
				t.Error(err)
			}
			if err := dev.Resume(); err != nil {
				t.Error(err)
			}
			if err := d.WaitFault(); err == nil {
				t.Error("no fault after resuming")
			}
			dev.Reset()
			l.popAll()
			d = newDriver(t, dev, everything)
			transmit(t, d, 1, Header{}, frameTo([6]byte{2}, 99))
			post(t, d, 0, 1, 2000)
			l.put(packet{frame: frameTo(testMAC, 88)})
			if p := receive(t, d, 0); len(p.frame) != 88 {
				t.Errorf("%d bytes after a reset", len(p.frame))
			}
			dev.Reset()
		}
	}
}

func (l *lan) popAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = nil
}

// TestBadBuffers: receive buffers that hold no header, or are not to be written, go back, counted, and harm
// no frame.
func TestBadBuffers(t *testing.T) {
	for _, features := range []uint64{everything, noMrg} {
		l := newLAN()
		dev := newDevice(t, l, 1)
		d := newDriver(t, dev, features)
		post(t, d, 0, 3, HeaderLen-1)
		if _, err := d.Rings[0].Add([][]byte{{1, 2, 3}}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Rings[0].Add([][]byte{{1, 2, 3}}, []uint32{2000}); err != nil {
			t.Fatal(err)
		}
		post(t, d, 0, 1, 2000)
		f := frameTo(testMAC, 1000)
		l.put(packet{frame: f})
		us := d.Wait(0, 6)
		for _, u := range us[:5] {
			if u.Len != 0 {
				t.Errorf("used.len %d", u.Len)
			}
		}
		if p := join(t, us[5:], nil); !bytes.Equal(p[0].frame, f) {
			t.Errorf("%d bytes", len(p[0].frame))
		}
		dev.Reset() // counts are written when a burst has ended
		if s := dev.Stats(); s.BadBuffers != 5 || s.RX.Frames != 1 {
			t.Errorf("%+v", s)
		}
	}
}

// TestTinyBuffers: with MRG_RXBUF a header's worth is enough of a buffer.
func TestTinyBuffers(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything)
	f := frameTo(testMAC, 1514)
	post(t, d, 0, 128, HeaderLen)
	l.put(packet{frame: f})
	p := join(t, d.Wait(0, 128), nil)
	if len(p) != 1 || !bytes.Equal(p[0].frame, f) || p[0].h[hdrNumBuffers] != 128 {
		t.Errorf("%d frames, header %x", len(p), p[0].h)
	}
}

// TestBackendRunts: what a network must not give is dropped and counted.
func TestBackendRunts(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything)
	post(t, d, 0, 200, 2000)
	l.put(packet{}, packet{frame: make([]byte, 13)}, packet{frame: frameTo(testMAC, longestToGuest+1)}, packet{frame: frameTo(testMAC, 50)})
	if p := receive(t, d, 0); len(p.frame) != 50 {
		t.Errorf("%d bytes", len(p.frame))
	}
	dev.Reset()
	if s := dev.Stats().RX; s.Malformed != 2 || s.Oversized != 1 || s.Frames != 1 {
		t.Errorf("%+v", s)
	}
}

// TestScatteredBuffersKeepNothing: a chain of many runs leaves no table behind.
func TestScatteredBuffersKeepNothing(t *testing.T) {
	q := rxRing{held: make([]virtq.Chain, 1), n: 1}
	l := newLAN()
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything)
	runs := make([]uint32, 500)
	for i := range runs {
		runs[i] = 10
	}
	if _, err := d.Rings[0].AddIndirect(nil, runs); err != nil {
		t.Fatal(err)
	}
	d.Pause()
	for _, r := range d.Queues {
		if err := r.Attach(d.Mem); err != nil {
			t.Fatal(err)
		}
	}
	d.Rings[0].Kick()
	if ok, err := d.Queues[0].PopInto(&q.held[0]); !ok || err != nil {
		t.Fatal(ok, err)
	}
	q.release(1)
	if n := cap(q.held[0].Writable()); n != 0 {
		t.Errorf("room for %d runs is kept", n)
	}
}

// TestComplains: the log says once what a guest cannot receive.
func TestComplains(t *testing.T) {
	var log bytes.Buffer
	l := newLAN()
	dev := configured(t, Config{Backend: l, MAC: testMAC, Log: textLog(&log)})
	d := newDriver(t, dev, noMrg)
	post(t, d, 0, 1, 100)
	for range 5 {
		l.put(packet{frame: frameTo(testMAC, 1000)})
	}
	l.put(packet{frame: frameTo(testMAC, 50)})
	receive(t, d, 0)
	dev.Reset()
	if s := log.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "frame_bytes=1000 buffer_bytes=100") {
		t.Errorf("log %q", s)
	}
}
