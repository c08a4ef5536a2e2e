package net

import (
	"encoding/binary"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// udp4 and tcp6 build the headers of a packet, as far as they name its flow.
func udp4(dst [6]byte, from, to byte, sport, dport uint16) []byte {
	f := frameTo(dst, 60)
	be := binary.BigEndian
	be.PutUint16(f[12:], 0x0800)
	clear(f[14:])
	f[14], f[23] = 0x45, 17
	f[29], f[33] = from, to
	be.PutUint16(f[34:], sport)
	be.PutUint16(f[36:], dport)
	return f
}

func tcp6(dst [6]byte, from, to byte, sport, dport uint16) []byte {
	f := frameTo(dst, 80)
	be := binary.BigEndian
	be.PutUint16(f[12:], 0x86dd)
	clear(f[14:])
	f[14], f[20] = 0x60, 6
	f[37], f[53] = from, to
	be.PutUint16(f[54:], sport)
	be.PutUint16(f[56:], dport)
	return f
}

// TestFlowHash: both directions of a flow meet, and different flows mostly do not.
func TestFlowHash(t *testing.T) {
	gw := [6]byte{2}
	tag := func(f []byte) []byte {
		return append(append(append([]byte{}, f[:12]...), 0x81, 0, 0, 5), f[12:]...)
	}
	for name, build := range map[string]func([6]byte, byte, byte, uint16, uint16) []byte{"udp4": udp4, "tcp6": tcp6} {
		if flowHash(build(gw, 1, 2, 3, 4)) != flowHash(build(testMAC, 2, 1, 4, 3)) {
			t.Errorf("%s: the way back is another flow", name)
		}
		if flowHash(build(gw, 1, 2, 3, 4)) != flowHash(tag(build(gw, 1, 2, 3, 4))) {
			t.Errorf("%s: a tag makes another flow", name)
		}
		seen := map[uint64]bool{}
		for i := range 256 {
			seen[flowHash(build(gw, 1, 2, uint16(1024+i), 80))%flows] = true
		}
		if len(seen) < 200 {
			t.Errorf("%s: 256 flows share %d entries", name, len(seen))
		}
	}
	// Fragments have no ports, in the first as in the others.
	a, b := udp4(gw, 1, 2, 3, 4), udp4(gw, 1, 2, 5, 6)
	a[20], b[21] = 0x20, 0x10
	if flowHash(a) != flowHash(b) {
		t.Error("fragments of a packet are different flows")
	}
	// Anything may be cut anywhere, and lie about its length.
	for _, f := range [][]byte{udp4(gw, 1, 2, 3, 4), tcp6(gw, 1, 2, 3, 4), tag(udp4(gw, 1, 2, 3, 4))} {
		for n := range f {
			flowHash(f[:n])
		}
		for v := range 256 {
			f[14] = byte(v)
			flowHash(f)
		}
	}
}

func pairsSet(t *testing.T, d *virtqtest.Driver, n byte) {
	t.Helper()
	if ack := command(t, d, 4, 0, []byte{n, 0}); ack != 0 {
		t.Fatalf("%d pairs: answer %d", n, ack)
	}
}

// TestSteering: frames come on the pair that their flow was last sent on, with
// several pairs in use; else on the first.
func TestSteering(t *testing.T) {
	gw := [6]byte{2}
	l := newLAN()
	dev := newDevice(t, l, 4)
	d := newDriver(t, dev, everything)
	for i := range 4 {
		post(t, d, 2*i, 16, 2000)
	}
	expect := func(step string, port uint16, pair int) {
		t.Helper()
		f := udp4(testMAC, 2, 1, 80, port)
		l.put(packet{frame: f})
		if p := receive(t, d, 2*pair); string(p.frame) != string(f) {
			t.Errorf("%s: another frame", step)
		}
	}
	send := func(port uint16, pair int) {
		t.Helper()
		transmit(t, d, 2*pair+1, Header{}, udp4(gw, 1, 2, port, 80))
		l.took(t, 1)
	}
	send(1000, 2)
	expect("one pair is the default", 1000, 0)
	pairsSet(t, d, 4)
	for port := range uint16(8) {
		send(port, int(port%4))
	}
	for port := range uint16(8) {
		expect("learned", port, int(port%4))
	}
	send(1, 3)
	expect("moved", 1, 3)
	l.put(packet{frame: frameTo(testMAC, 60)})
	if p := receive(t, d, 0); len(p.frame) != 60 {
		t.Error("what is no flow comes on the first pair")
	}
	pairsSet(t, d, 2)
	expect("a pair no longer used", 3, 0)
	expect("a pair still used", 5, 1)
	pairsSet(t, d, 1)
	expect("one pair", 5, 0)
	dev.Reset()
	d = newDriver(t, dev, everything)
	post(t, d, 0, 4, 2000)
	pairsSet(t, d, 4)
	expect("forgotten by a reset", 7, 0)
}

// TestPairsFreeWaiting: a frame that waits for buffers of a pair goes on when the
// driver stops to use that pair.
func TestPairsFreeWaiting(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 2)
	d := newDriver(t, dev, everything)
	post(t, d, 0, 4, 2000)
	pairsSet(t, d, 2)
	transmit(t, d, 3, Header{}, udp4([6]byte{2}, 1, 2, 1000, 80))
	l.put(packet{frame: udp4(testMAC, 2, 1, 80, 1000)})
	starve(dev, 1)
	pairsSet(t, d, 1)
	receive(t, d, 0)
}

// TestPairsNeedQueues: a pair that the driver has not enabled cannot be used, and
// without MQ the control queue is the third.
func TestPairsNeedQueues(t *testing.T) {
	dev := newDevice(t, newLAN(), 3)
	d := virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Features: everything, Sizes: []uint16{16, 16, 16, 16, 0, 0, 16}})
	if ack := command(t, d, 4, 0, []byte{3, 0}); ack != 1 {
		t.Error("a pair without queues was taken")
	}
	pairsSet(t, d, 2)
	dev.Reset()
	d = virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Features: everything &^ featureMQ, Sizes: []uint16{16, 16, 16, 0, 0, 0, 0}})
	if ack := command(t, d, 0, 0, []byte{1}); ack != 0 {
		t.Error("no control queue behind a single pair")
	}
}
