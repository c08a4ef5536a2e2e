package net

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/devices"
)

func TestConfigCheck(t *testing.T) {
	good := Config{Backend: newLAN(), MAC: testMAC}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		want string
		edit func(*Config)
	}{
		{"without a network", func(c *Config) { c.Backend = nil }},
		{"00:00:00:00:00:00", func(c *Config) { c.MAC = [6]byte{} }},
		{"01:02:03:04:05:06", func(c *Config) { c.MAC = [6]byte{1, 2, 3, 4, 5, 6} }},
		{"9 queue pairs", func(c *Config) { c.QueuePairs = 9 }},
		{"-1 queue pairs", func(c *Config) { c.QueuePairs = -1 }},
		{"MTU 67", func(c *Config) { c.Backend = &lan{mtu: 67} }},
		{"MTU 65536", func(c *Config) { c.Backend = &lan{mtu: 65536} }},
		{"burst", func(c *Config) { c.Limits.RX.Burst = -1 }},
	} {
		bad := good
		c.edit(&bad)
		if _, err := New(bad); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.want, err)
		}
	}
}

// TestFeatures: what is offered depends on the network, and never stands alone.
func TestFeatures(t *testing.T) {
	base := uint64(1<<3 | 1<<5 | 1<<15 | 1<<16 | 1<<17 | 1<<18 | 1<<23 | 1<<28 | 1<<29)
	for _, c := range []struct {
		offloads uint64
		pairs    int
		want     uint64
	}{
		{0, 1, base},
		{0, 0, base},
		{0, 2, base | 1<<22},
		{FeatureCSum, 1, base | 1<<0},
		{FeatureGuestCSum, 1, base | 1<<1},
		{FeatureHostTSO4 | FeatureGuestTSO6, 1, base},
		{everything, 1, base | 1<<0 | 1<<1 | 1<<7 | 1<<8 | 1<<11 | 1<<12},
	} {
		l := newLAN()
		l.offloads = c.offloads
		d := newDevice(t, l, c.pairs)
		if got := d.Features(); got != c.want {
			t.Errorf("%#x: offers %#x, want %#x", c.offloads, got, c.want)
		}
		if n := len(d.QueueSizes()); n != 2*max(1, c.pairs)+1 {
			t.Errorf("%d pairs: %d queues", c.pairs, n)
		}
	}
	if d := newDevice(t, newLAN(), 1); d.ID() != 1 {
		t.Errorf("ID %d", d.ID())
	}
}

func TestConfigSpace(t *testing.T) {
	l := newLAN()
	l.mtu = 9000
	d := newDevice(t, l, 3)
	want := append(testMAC[:len(testMAC):len(testMAC)], 1, 0, 3, 0, 9000&255, 9000>>8)
	c := bytes.Repeat([]byte{0xee}, cfgLen+8)
	d.ReadConfig(0, c)
	if !bytes.Equal(c[:cfgLen], want) || !bytes.Equal(c[cfgLen:], make([]byte, 8)) {
		t.Errorf("configuration space %x, want %x", c, want)
	}
	// A driver may read in any width, from anywhere, and writes nothing.
	for _, off := range []uint64{0, 5, 6, 11, 12, 1 << 40, ^uint64(0), ^uint64(0) - 3} {
		for n := 1; n <= 8; n *= 2 {
			d.WriteConfig(off, make([]byte, n))
			p := bytes.Repeat([]byte{0xee}, n)
			d.ReadConfig(off, p)
			for i := range p {
				want := byte(0)
				if at := off + uint64(i); at >= off && at < cfgLen {
					want = c[at]
				}
				if p[i] != want {
					t.Fatalf("byte %d of %d at %#x is %#x, want %#x", i, n, off, p[i], want)
				}
			}
		}
	}
}

func TestActivateRefuses(t *testing.T) {
	l := newLAN()
	l.offloads = FeatureCSum
	d := newDevice(t, l, 1)
	for name, a := range map[string]devices.Activation{
		"no queue":        {},
		"two queues":      {Queues: make([]*devices.Queue, 2)},
		"not offered":     {Queues: make([]*devices.Queue, 3), Features: FeatureGuestCSum},
		"RX without VQ":   {Queues: make([]*devices.Queue, 3), Features: featureCtrlRX},
		"MAC without VQ":  {Queues: make([]*devices.Queue, 3), Features: featureCtrlMACAddr},
		"TSO not offered": {Queues: make([]*devices.Queue, 3), Features: FeatureCSum | FeatureHostTSO4},
	} {
		if d.Activate(a) == nil {
			t.Errorf("%s: taken", name)
		}
	}
	a := devices.Activation{Queues: make([]*devices.Queue, 3)}
	if err := d.Activate(a); err != nil {
		t.Errorf("a driver that enables no queue: %v", err)
	}
	if d.Activate(a) == nil {
		t.Error("activated twice")
	}
	if err := d.Quiesce(); err != nil {
		t.Error(err)
	}
	if err := d.Resume(); err != nil {
		t.Error(err)
	}
	d.Reset()
	d.Close()
	if d.Activate(a) == nil {
		t.Error("activated after Close")
	}
}

// TestNegotiated: the network hears what the driver took, and that it is gone.
func TestNegotiated(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	newDriver(t, dev, FeatureCSum|FeatureHostTSO6|featureMAC)
	dev.Reset()
	dev.Reset()
	if len(l.negotiated) != 2 || l.negotiated[0] != FeatureCSum|FeatureHostTSO6 || l.negotiated[1] != 0 {
		t.Errorf("%#x", l.negotiated)
	}
}

func status(d *Device) uint16 {
	var b [2]byte
	d.ReadConfig(cfgStatus, b[:])
	return binary.LittleEndian.Uint16(b[:])
}

// TestLink: frames are dropped while the cable is out, and the driver hears of it.
func TestLink(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything)
	dev.SetLink(true) // as it is
	dev.SetLink(false)
	d.WaitConfig()
	if status(dev) != 0 {
		t.Error("the link is up")
	}
	transmit(t, d, 1, Header{}, frameTo([6]byte{2}, 60))
	post(t, d, 0, 4, 2000)
	l.put(packet{frame: frameTo(testMAC, 60)}, packet{frame: frameTo(testMAC, 61)})
	for l.waiting() > 0 {
		await(t, l.asked)
	}
	dev.SetLink(true)
	d.WaitConfig()
	if status(dev) != 1 {
		t.Error("the link is down")
	}
	l.put(packet{frame: frameTo(testMAC, 62)})
	if p := receive(t, d, 0); len(p.frame) != 62 {
		t.Errorf("%d bytes: from before the link was up", len(p.frame))
	}
	transmit(t, d, 1, Header{}, frameTo([6]byte{2}, 63))
	if p := l.took(t, 1); len(p[0].frame) != 63 {
		t.Errorf("%d bytes: from before the link was up", len(p[0].frame))
	}
	dev.Reset()
	if s := dev.Stats(); s.TX.LinkDown != 1 || s.RX.LinkDown != 2 || s.TX.Frames != 1 || s.RX.Frames != 1 {
		t.Errorf("%+v", s)
	}
}

// TestLinkFreesWaiting: a frame that waits for buffers goes when the link does.
func TestLinkFreesWaiting(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	newDriver(t, dev, everything)
	l.put(packet{frame: frameTo(testMAC, 60)})
	starve(dev, 1)
	dev.SetLink(false)
	for l.waiting() > 0 {
		await(t, l.asked)
	}
}

// TestLinkInPause: a driver hears of it after Resume, and one that did not take
// STATUS never does.
func TestLinkInPause(t *testing.T) {
	for _, c := range []struct {
		features     uint64
		paused, then int
	}{{featureStatus, 0, 1}, {0, 0, 0}} {
		e := &silent{}
		dev := newDevice(t, newLAN(), 1)
		if err := dev.Activate(devices.Activation{Queues: make([]*devices.Queue, 3), Features: c.features, Driver: e}); err != nil {
			t.Fatal(err)
		}
		dev.Quiesce()
		dev.SetLink(false)
		if e.config != c.paused {
			t.Errorf("features %#x: %d configuration interrupts in a pause", c.features, e.config)
		}
		for range 2 {
			dev.Resume()
			if e.config != c.then {
				t.Errorf("features %#x: %d configuration interrupts after it, want %d", c.features, e.config, c.then)
			}
		}
	}
}

// silent is a driver's end that counts.
type silent struct {
	used, config int
	fault        error
}

func (s *silent) Used()           { s.used++ }
func (s *silent) ConfigChanged()  { s.config++ }
func (s *silent) Fault(err error) { s.fault = err }
