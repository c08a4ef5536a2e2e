package net

import (
	"bytes"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// settled gives a state in which everything differs from the first.
func settled(t testing.TB) []byte {
	t.Helper()
	dev := newDevice(t, newLAN(), 2)
	d := newDriver(t, dev, everything)
	for _, c := range [][][]byte{{{4, 0}, {2, 0}}, {{0, 0}, {1}}, {{0, 1}, {1}}, {{1, 1}, otherMAC[:]}, {{1, 0}, macTable(otherMAC, testMAC), macTable(groupA)}} {
		if ack := command(t, d, c[0][0], c[0][1], c[1:]...); ack != 0 {
			t.Fatalf("command %v: %d", c[0], ack)
		}
	}
	d.Pause()
	dev.SetLink(false)
	s, err := dev.State()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestState(t *testing.T) {
	if _, err := newDevice(t, newLAN(), 1).State(); err == nil {
		t.Error("state of a running device")
	}
	s := settled(t)
	n := newDevice(t, newLAN(), 2)
	if err := n.Restore(s); err != nil {
		t.Fatal(err)
	}
	if again, err := n.State(); err != nil || !bytes.Equal(again, s) {
		t.Errorf("state %s became %s (%v)", s, again, err)
	}
	if status(n) != 0 {
		t.Error("the link is up again")
	}
	for name, edit := range map[string][2]string{
		"version":           {`"version":1`, `"version":2`},
		"MTU":               {`"mtu":1500`, `"mtu":9000`},
		"pairs":             {`"queue_pairs":2`, `"queue_pairs":3`},
		"no active pair":    {`"active_pairs":2`, `"active_pairs":0`},
		"negative pairs":    {`"active_pairs":2`, `"active_pairs":-1`},
		"too many pairs":    {`"active_pairs":2`, `"active_pairs":3`},
		"multicast MAC":     {`"mac":"52`, `"mac":"53`},
		"multicast default": {`"permanent_mac":"52`, `"permanent_mac":"53`},
		"short MAC":         {`:03"`, `"`},
		"long MAC":          {`:03"`, `:03:04"`},
		"MAC without sense": {`:03"`, `:0g"`},
		"MAC of digits":     {`"mac":"52:54:00:09:09:09"`, `"mac":"52540009090900000"`},
		"upper case":        {`33:33:00`, `AA:33:00`},
		"all and some":      {`{"all":false`, `{"all":true`},
		"many":              {`"addresses":[`, `"addresses":[` + strings.Repeat(`"02:00:00:00:00:00",`, 64)},
		"huge":              {`"addresses":[`, `"addresses":[` + strings.Repeat(`"02:00:00:00:00:00",`, 1<<16)},
		"unknown field":     {`"version":1`, `"version":1,"x":2`},
		"no JSON":           {`{`, `[`},
		"cut off":           {`}}`, `}`},
		"a tail":            {`}}`, `}} x`},
	} {
		bad := strings.Replace(string(s), edit[0], edit[1], 1)
		if bad == string(s) {
			t.Fatalf("%s: nothing edited in %s", name, s)
		}
		if err := newDevice(t, newLAN(), 2).Restore([]byte(bad)); err == nil {
			t.Errorf("%s: %.400s was taken", name, bad)
		}
	}
	used := newDevice(t, newLAN(), 2)
	newDriver(t, used, everything)
	if used.Restore(s) == nil {
		t.Error("restored into a device in use")
	}
}

// TestRestoreNeedsQueues: more pairs in use than the driver has enabled is a state
// that no guest brings about.
func TestRestoreNeedsQueues(t *testing.T) {
	s := settled(t)
	for _, features := range []uint64{featureCtrlVQ, featureCtrlVQ | featureMQ} {
		dev := newDevice(t, newLAN(), 2)
		if err := dev.Restore(s); err != nil {
			t.Fatal(err)
		}
		if dev.Activate(devices.Activation{Queues: make([]*devices.Queue, 5), Features: features, Driver: &silent{}}) == nil {
			t.Errorf("features %#x: taken", features)
		}
	}
}

// TestLinkNewsMoves: a driver that was not told before it moved is told after.
func TestLinkNewsMoves(t *testing.T) {
	dev := newDevice(t, newLAN(), 1)
	d := newDriver(t, dev, everything)
	d.Pause()
	dev.SetLink(false)
	d.Resume()
	d.WaitConfig()
	d.Pause()
	dev.SetLink(true)
	dev2 := newDevice(t, newLAN(), 1)
	if err := d.MoveTo(dev2, nil); err != nil {
		t.Fatal(err)
	}
	d.WaitConfig()
	if status(dev2) != 1 {
		t.Error("the link is down")
	}
}

// FuzzRestore: any bytes are an error, or a state that the device gives again and
// that it can live with.
func FuzzRestore(f *testing.F) {
	f.Add(settled(f))
	fresh := newDevice(f, newLAN(), 2)
	fresh.Quiesce()
	s, err := fresh.State()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s)
	f.Add(bytes.Replace(s, []byte(`"all":false`), []byte(`"all":true`), 2))
	mem := virtqtest.NewMemory(f, 8<<20)
	f.Fuzz(func(t *testing.T, in []byte) {
		l := newLAN()
		dev := newDevice(t, l, 2)
		if dev.Restore(in) != nil {
			return
		}
		s, err := dev.State()
		if err != nil {
			t.Fatal(err)
		}
		dev2 := newDevice(t, newLAN(), 2)
		if err := dev2.Restore(s); err != nil {
			t.Fatalf("%s came of %q and is not taken: %v", s, in, err)
		}
		if again, err := dev2.State(); err != nil || !bytes.Equal(again, s) {
			t.Fatalf("%s became %s (%v)", s, again, err)
		}
		d := virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Mem: mem, PerQueue: 1 << 20, Sizes: []uint16{16, 16, 16, 16, 16}, Features: everything})
		post(t, d, 0, 1, 200)
		if err := dev.Resume(); err != nil {
			t.Fatal(err)
		}
		dev.SetLink(true)
		l.put(packet{frame: frameTo(allMAC, 60)})
		receive(t, d, 0)
		dev.Reset()
	})
}
