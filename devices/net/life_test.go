package net

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"sync"
	"testing"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// TestGoroutines: as many as the package says, and none after the end, with no way
// left for the network to call.
func TestGoroutines(t *testing.T) {
	for name, end := range map[string]func(*Device){
		"reset":   (*Device).Reset,
		"quiesce": func(d *Device) { d.Quiesce() },
		"close":   func(d *Device) { d.Close() },
	} {
		l := newLAN()
		dev := newDevice(t, l, 2)
		d := newDriver(t, dev, everything)
		// A worker that has not run yet is not counted: make each do something.
		transmit(t, d, 1, Header{}, frameTo([6]byte{2}, 60))
		transmit(t, d, 3, Header{}, frameTo([6]byte{2}, 60))
		command(t, d, 0, 0, []byte{1})
		await(t, l.asked)
		if n := workers(); n != 4 {
			t.Errorf("%d workers of 2 pairs, want 4", n)
		}
		end(dev)
		if n := workers(); n != 0 {
			t.Errorf("%s: %d workers left", name, n)
		}
		if l.wake != nil {
			t.Errorf("%s: the network still has somebody to wake", name)
		}
		for i, q := range d.Queues {
			if _, err := q.Pop(); err == nil {
				t.Errorf("%s: queue %d still has guest memory", name, i)
			}
		}
	}
}

// inFlight makes a device with n frames in its transmit ring, the first of them
// stuck in the network.
func inFlight(t *testing.T, n int) (l *lan, dev *Device, d *virtqtest.Driver, gate chan struct{}) {
	t.Helper()
	l = newLAN()
	entered, gate := make(chan struct{}, n), make(chan struct{})
	l.onSend = func() { entered <- struct{}{}; <-gate }
	dev = newDevice(t, l, 1)
	d = newDriver(t, dev, everything)
	for i := range n {
		h := Header{}
		if _, err := d.Rings[1].Add([][]byte{h[:], frameTo([6]byte{2}, 60+i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	d.Kick(1)
	await(t, entered)
	return l, dev, d, gate
}

// TestResetInFlight: a reset waits for the frame at hand and drops the others.
func TestResetInFlight(t *testing.T) {
	l, dev, d, gate := inFlight(t, 5)
	done := make(chan struct{})
	r := dev.run
	go func() { dev.Reset(); close(done) }()
	for !r.stop.Load() {
		runtime.Gosched()
	}
	select {
	case <-done:
		t.Fatal("returned with a frame in flight")
	default:
	}
	gate <- struct{}{}
	await(t, done)
	if n := workers(); n != 0 {
		t.Errorf("%d workers left", n)
	}
	if s := dev.Stats().TX; s.Frames != 1 || len(l.took(t, 1)) != 1 {
		t.Errorf("%+v", s)
	}
	if u, err := d.Rings[1].Collect(); err != nil || len(u) != 1 {
		t.Errorf("%d came back, %v", len(u), err)
	}
	d.Notify(1) // the doorbell of a device at rest moves nothing
}

// TestQuiesceInFlight: a pause finishes the frame at hand, keeps the others, and
// they go out after Resume without a notification.
func TestQuiesceInFlight(t *testing.T) {
	l, dev, d, gate := inFlight(t, 5)
	done := make(chan struct{})
	r := dev.run
	go func() { d.Pause(); close(done) }()
	for !r.stop.Load() {
		runtime.Gosched()
	}
	gate <- struct{}{}
	await(t, done)
	if u := d.Rings[1].UsedIdx(); u != 1 {
		t.Errorf("used.idx %d", u)
	}
	if err := dev.Quiesce(); err != nil {
		t.Errorf("second quiesce: %v", err)
	}
	l.onSend = nil
	d.Resume()
	if err := dev.Resume(); err != nil {
		t.Errorf("second resume: %v", err)
	}
	d.Wait(1, 5)
	for i, p := range l.took(t, 5) {
		if len(p.frame) != 60+i {
			t.Errorf("frame %d has %d bytes", i, len(p.frame))
		}
	}
}

// TestStarvedWaits: with no buffers the device takes nothing from the network, and
// goes on with the kick that announces some.
func TestStarvedWaits(t *testing.T) {
	for _, features := range []uint64{everything, noMrg, everything &^ (1 << 29)} {
		l := newLAN()
		dev := newDevice(t, l, 1)
		d := newDriver(t, dev, features)
		for i := range 5 {
			l.put(packet{frame: frameTo(testMAC, 60+i)})
		}
		starve(dev, 1)
		if n := l.waiting(); n != 5 {
			t.Errorf("%d of 5 frames wait in the network", n)
		}
		kicks := d.Kicks.Load()
		post(t, d, 0, 2, 2000)
		if got := join(t, d.Wait(0, 2), nil); len(got[0].frame) != 60 || len(got[1].frame) != 61 {
			t.Error("other frames")
		}
		if d.Kicks.Load() == kicks {
			t.Error("nobody asked to be kicked")
		}
		starve(dev, 2)
		post(t, d, 0, 10, 2000)
		if got := join(t, d.Wait(0, 3), nil); len(got) != 3 || len(got[2].frame) != 64 {
			t.Error("other frames")
		}
		// With buffers there, more of them are no news.
		kicks = d.Kicks.Load()
		post(t, d, 0, 3, 2000)
		if d.Kicks.Load() != kicks {
			t.Errorf("features %#x: a kick that nobody waits for", features)
		}
	}
}

// TestTooLongForBuffers: without MRG_RXBUF a frame that does not fit a buffer is
// dropped and counted, and the buffer serves the next; with it, only a frame that
// does not fit the whole queue.
func TestTooLongForBuffers(t *testing.T) {
	l := newLAN()
	l.mtu = 65520
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, noMrg)
	post(t, d, 0, 2, 1526)
	l.put(packet{frame: frameTo(testMAC, 1515)}, packet{frame: frameTo(testMAC, 1514)}, packet{frame: frameTo(testMAC, 1600)}, packet{frame: frameTo(testMAC, 20)})
	if p := join(t, d.Wait(0, 2), nil); len(p[0].frame) != 1514 || len(p[1].frame) != 20 {
		t.Errorf("%d and %d bytes", len(p[0].frame), len(p[1].frame))
	}
	dev.Reset()
	if s := dev.Stats(); s.RX.Oversized != 2 || s.RX.Frames != 2 || s.Padding != 0 {
		t.Errorf("%+v", s)
	}

	dev = newDevice(t, l, 1)
	d = virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Features: everything, Sizes: []uint16{8, 8, 8}})
	post(t, d, 0, 8, 1000)
	l.put(packet{frame: frameTo(testMAC, 8000-HeaderLen+1)}, packet{frame: frameTo(testMAC, 8000-HeaderLen)})
	if p := join(t, d.Wait(0, 8), nil); len(p) != 1 || len(p[0].frame) != 8000-HeaderLen {
		t.Errorf("%d frames", len(p))
	}
	dev.Reset()
	if s := dev.Stats(); s.RX.Oversized != 1 || s.RX.Frames != 1 {
		t.Errorf("%+v", s)
	}

	// The buffers of a frame that was dropped serve the next ones, in order.
	d = virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Features: everything, Sizes: []uint16{8, 8, 8}})
	for i := range uint32(8) {
		post(t, d, 0, 1, 1000+i)
	}
	l.put(packet{frame: frameTo(testMAC, 9000)})
	lengths := []int{900, 1500, 30, 2900}
	for _, n := range lengths {
		l.put(packet{frame: frameTo(testMAC, n)})
	}
	us := d.Wait(0, 7)
	for i, want := range []uint32{912, 1001, 511, 42, 1004, 1005, 903} {
		if us[i].Len != want {
			t.Errorf("used.len %d of buffer %d, want %d", us[i].Len, i, want)
		}
	}
	for i, p := range join(t, us, nil) {
		if !bytes.Equal(p.frame, frameTo(testMAC, lengths[i])) {
			t.Errorf("frame %d differs: %d bytes", i, len(p.frame))
		}
	}
}

// TestPauseGivesBuffersBack: a frame that waits for the rest of its buffers arrives
// whole after a pause, and the ones it had come back as frames for nobody.
func TestPauseGivesBuffersBack(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything)
	post(t, d, 0, 2, 500)
	post(t, d, 0, 1, 20) // too short for a frame: comes back empty
	f := frameTo(testMAC, 1514)
	l.put(packet{frame: f})
	starve(dev, 1)
	d.Pause() // which fails a test with requests in flight
	us, err := d.Rings[0].Collect()
	if err != nil || len(us) != 3 || us[2].Len != 0 {
		t.Fatalf("%v, %v", us, err)
	}
	for _, p := range join(t, us[:2], nil) {
		if len(p.frame) != 60 || [6]byte(p.frame) != testMAC || binary.BigEndian.Uint16(p.frame[12:]) != paddingType {
			t.Errorf("%x", p.frame)
		}
	}
	d.Resume()
	post(t, d, 0, 4, 500)
	if p := receive(t, d, 0); !bytes.Equal(p.frame, f) {
		t.Errorf("%d bytes", len(p.frame))
	}
	dev.Reset() // counts are written when a burst has ended
	if s := dev.Stats(); s.Padding != 2 {
		t.Errorf("%+v", s)
	}
}

// TestLifeCycleRace: accesses of vCPUs, pauses, the link, resets of the network's
// side and frames both ways at once. Every frame arrives, in order.
func TestLifeCycleRace(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything)
	var wg sync.WaitGroup
	done := make(chan struct{})
	turn := make(chan struct{}, 1) // a pause for each round, else there is nothing but pauses
	for _, f := range []func(){
		func() {
			select {
			case <-turn:
			case <-done:
				return
			}
			if err := dev.Quiesce(); err != nil {
				t.Error(err)
			}
			if _, err := dev.State(); err != nil {
				t.Error(err)
			}
			if err := dev.Resume(); err != nil {
				t.Error(err)
			}
		},
		func() {
			var b [12]byte
			dev.ReadConfig(0, b[:])
			dev.Stats()
			dev.SetLink(true)
		},
		func() { d.Queues[0].Kick.Ring() },
		func() { d.Queues[1].Kick.Ring() },
	} {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					f()
				}
			}
		})
	}
	for i := range 100 {
		turn <- struct{}{}
		n := 60 + i%1000
		transmit(t, d, 1, Header{}, frameTo([6]byte{2}, n))
		if p := l.took(t, 1); len(p) != 1 || len(p[0].frame) != n {
			t.Fatalf("frame %d from the guest: %d", i, len(p))
		}
		l.put(packet{frame: frameTo(testMAC, n)})
		if i%2 == 0 {
			starve(dev, 1)
		}
		post(t, d, 0, 1, 2000)
		if p := receive(t, d, 0); len(p.frame) != n {
			t.Fatalf("frame %d to the guest: %d bytes", i, len(p.frame))
		}
		if i%10 == 0 {
			command(t, d, 0, 0, []byte{byte(i) & 1})
		}
	}
	close(done)
	wg.Wait()
}

// TestResetRace: resets and new drivers while both ends are busy.
func TestResetRace(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 2)
	mem := virtqtest.NewMemory(t, 64<<20)
	for range 100 {
		d := virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Mem: mem, Features: everything})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range 8 {
				l.put(packet{frame: frameTo(testMAC, 60+i)})
			}
		})
		wg.Go(func() {
			for range 8 {
				h := Header{}
				if _, err := d.Rings[1].Add([][]byte{h[:], frameTo([6]byte{2}, 60)}, nil); err != nil {
					t.Error(err)
				}
				d.Kick(1)
			}
		})
		wg.Go(func() {
			d.Rings[0].Add(nil, []uint32{40})
			d.Kick(0)
		})
		wg.Go(dev.Reset)
		wg.Wait()
		dev.Reset()
		if n := workers(); n != 0 {
			t.Fatalf("%d workers left", n)
		}
	}
}

// TestMove: a machine goes on elsewhere, with what its guest had set.
func TestMove(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 2)
	d := newDriver(t, dev, everything)
	post(t, d, 0, 3, 2000)
	pairsSet(t, d, 2)
	command(t, d, 1, 1, otherMAC[:])
	command(t, d, 1, 0, macTable(), macTable(groupA))
	l.put(packet{frame: frameTo(otherMAC, 60)})
	receive(t, d, 0)

	mem, err := guestmem.FromFile(d.Mem.File(), d.Mem.Size())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	l2 := newLAN()
	dev2 := configured(t, Config{Backend: l2, MAC: [6]byte{2, 2, 2, 2, 2, 2}, QueuePairs: 2})
	if err := d.MoveTo(dev2, mem); err != nil {
		t.Fatal(err)
	}
	if len(l2.negotiated) != 1 || l2.negotiated[0] != offloadBits {
		t.Errorf("the new network heard %#x", l2.negotiated)
	}
	l2.put(packet{frame: frameTo(testMAC, 60)}, packet{frame: frameTo(groupA, 61)}, packet{frame: frameTo(otherMAC, 62)})
	if p := join(t, d.Wait(0, 2), nil); len(p[0].frame) != 61 || len(p[1].frame) != 62 {
		t.Errorf("%d and %d bytes", len(p[0].frame), len(p[1].frame))
	}
	transmit(t, d, 3, Header{}, frameTo([6]byte{2}, 60))
	l2.took(t, 1)
	if n := dev2.active.Load(); n != 2 {
		t.Errorf("%d pairs in use", n)
	}
	var b [6]byte
	dev2.Reset()
	if dev2.ReadConfig(0, b[:]); b != testMAC {
		t.Errorf("after a reset the guest finds the address %x", b)
	}
}

var _ devices.DriverEnd = (*silent)(nil)

// TestResetDropsWaiting: a frame that waited for a driver's buffers does not come to
// the next driver, whether or not there was a pause in between.
func TestResetDropsWaiting(t *testing.T) {
	for _, pause := range []bool{false, true} {
		l := newLAN()
		dev := newDevice(t, l, 1)
		d := newDriver(t, dev, everything)
		post(t, d, 0, 1, 100)
		l.put(packet{frame: frameTo(testMAC, 500)})
		starve(dev, 1)
		if pause {
			d.Pause()
		}
		dev.Reset()
		dev.Reset()
		if n := l.waiting(); n != 0 {
			t.Errorf("%d frames wait", n)
		}
		if err := dev.Resume(); err != nil {
			t.Fatal(err)
		}
		d = newDriver(t, dev, everything)
		post(t, d, 0, 1, 1000)
		l.put(packet{frame: frameTo(testMAC, 400)})
		if p := receive(t, d, 0); len(p.frame) != 400 {
			t.Errorf("%d bytes: a frame for the old driver", len(p.frame))
		}
		if s := dev.Stats().RX; s.LinkDown != 1 {
			t.Errorf("%+v", s)
		}
	}
}
