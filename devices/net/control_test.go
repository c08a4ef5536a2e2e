package net

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

var (
	otherMAC = [6]byte{0x52, 0x54, 0, 9, 9, 9}
	groupA   = [6]byte{0x33, 0x33, 0, 0, 0, 1}
	groupB   = [6]byte{1, 0, 0x5e, 0, 0, 251}
	allMAC   = [6]byte{255, 255, 255, 255, 255, 255}
)

// passes says which of these addresses the guest hears.
func passes(t *testing.T, l *lan, d *virtqtest.Driver, dsts ...[6]byte) (out []bool) {
	t.Helper()
	post(t, d, 0, len(dsts)+1, 100)
	for i, dst := range dsts {
		l.put(packet{frame: frameTo(dst, 20+i)})
	}
	l.put(packet{frame: frameTo(allMAC, 80)})
	out = make([]bool, len(dsts))
	n := 0
	for {
		for _, p := range join(t, d.Wait(0, 1), nil) {
			n++
			if len(p.frame) == 80 {
				// The unused buffers serve the next round.
				return out
			}
			out[len(p.frame)-20] = true
		}
	}
}

// TestReceiveFilter: which frames reach the guest after which commands.
func TestReceiveFilter(t *testing.T) {
	type cmd struct {
		class, cmd byte
		data       [][]byte
	}
	on, off := []byte{1}, []byte{0}
	many := make([][6]byte, maxAddrs+1)
	for i := range many {
		many[i] = [6]byte{2, 2, 2, 2, 2, byte(i)}
	}
	full := append(append([][6]byte{}, many[:maxAddrs-1]...), otherMAC)
	for _, c := range []struct {
		name string
		cmds []cmd
		// mine, another's unicast, group A, group B, broadcast
		want [5]bool
	}{
		{"at first", nil, [5]bool{true, false, false, false, true}},
		{"promiscuous", []cmd{{0, 0, [][]byte{on}}}, [5]bool{true, true, true, true, true}},
		{"promiscuous and not", []cmd{{0, 0, [][]byte{on}}, {0, 0, [][]byte{off}}}, [5]bool{true, false, false, false, true}},
		{"all multicast", []cmd{{0, 1, [][]byte{on}}}, [5]bool{true, false, true, true, true}},
		{"all multicast and not", []cmd{{0, 1, [][]byte{on}}, {0, 1, [][]byte{off}}}, [5]bool{true, false, false, false, true}},
		{"a group", []cmd{{1, 0, [][]byte{macTable(), macTable(groupA)}}}, [5]bool{true, false, true, false, true}},
		{"a group, replaced", []cmd{{1, 0, [][]byte{macTable(), macTable(groupA)}}, {1, 0, [][]byte{macTable(), macTable(groupB)}}}, [5]bool{true, false, false, true, true}},
		{"a unicast", []cmd{{1, 0, [][]byte{macTable(otherMAC), macTable()}}}, [5]bool{true, true, false, false, true}},
		{"filed under the other kind", []cmd{{1, 0, [][]byte{macTable(groupB), macTable(otherMAC)}}}, [5]bool{true, true, false, true, true}},
		{"full table", []cmd{{1, 0, [][]byte{macTable(full...), macTable()}}}, [5]bool{true, true, false, false, true}},
		{"too many unicast", []cmd{{1, 0, [][]byte{macTable(many...), macTable(groupA)}}}, [5]bool{true, true, true, false, true}},
		{"too many multicast", []cmd{{1, 0, [][]byte{macTable(), macTable(many...)}}}, [5]bool{true, false, true, true, true}},
		{"too many, then few", []cmd{{1, 0, [][]byte{macTable(many...), macTable(many...)}}, {1, 0, [][]byte{macTable(), macTable()}}}, [5]bool{true, false, false, false, true}},
		{"a new address", []cmd{{1, 1, [][]byte{otherMAC[:]}}}, [5]bool{false, true, false, false, true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLAN()
			dev := newDevice(t, l, 1)
			d := newDriver(t, dev, everything)
			for _, x := range c.cmds {
				if ack := command(t, d, x.class, x.cmd, x.data...); ack != 0 {
					t.Fatalf("answer %d", ack)
				}
			}
			got := [5]bool(passes(t, l, d, testMAC, otherMAC, groupA, groupB, allMAC))
			if got != c.want {
				t.Errorf("heard %v, want %v", got, c.want)
			}
			dropped := uint64(0)
			for _, w := range c.want {
				if !w {
					dropped++
				}
			}
			// A reset forgets all of it.
			dev.Reset()
			if s := dev.Stats(); s.Filtered != dropped || s.Commands != uint64(len(c.cmds)) || s.Refused != 0 {
				t.Errorf("%+v", s)
			}
			d = newDriver(t, dev, everything)
			if got := passes(t, l, d, testMAC, otherMAC, groupA, groupB, allMAC); [5]bool(got) != [5]bool{true, false, false, false, true} {
				t.Errorf("after a reset: %v", got)
			}
		})
	}
}

// TestUnfiltered: a driver without the commands gets everything.
func TestUnfiltered(t *testing.T) {
	l := newLAN()
	d := newDriver(t, newDevice(t, l, 1), everything&^featureCtrlRX)
	for i, ok := range passes(t, l, d, testMAC, otherMAC, groupA, groupB) {
		if !ok {
			t.Errorf("address %d is not heard", i)
		}
	}
}

// TestCommandsRefused: what is malformed, unknown or was not negotiated gets an
// error and changes nothing.
func TestCommandsRefused(t *testing.T) {
	le16 := func(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }
	huge := binary.LittleEndian.AppendUint32(nil, ^uint32(0))
	for _, c := range []struct {
		name       string
		features   uint64
		class, cmd byte
		data       [][]byte
	}{
		{"promiscuous without data", everything, 0, 0, nil},
		{"promiscuous, too much", everything, 0, 0, [][]byte{{1, 1}}},
		{"promiscuous, not negotiated", everything &^ featureCtrlRX, 0, 0, [][]byte{{1}}},
		{"all multicast, not negotiated", everything &^ featureCtrlRX, 0, 1, [][]byte{{1}}},
		{"no multicast (CTRL_RX_EXTRA)", everything, 0, 3, [][]byte{{1}}},
		{"table not negotiated", everything &^ featureCtrlRX, 1, 0, [][]byte{macTable(), macTable()}},
		{"no table", everything, 1, 0, nil},
		{"one table", everything, 1, 0, [][]byte{macTable(otherMAC)}},
		{"table cut off", everything, 1, 0, [][]byte{macTable(otherMAC), macTable(groupA)[:9]}},
		{"table with a tail", everything, 1, 0, [][]byte{macTable(otherMAC), macTable(groupA), {0}}},
		{"table of 2^32", everything, 1, 0, [][]byte{huge, macTable(otherMAC), macTable(groupA)}},
		{"second table of 2^32", everything, 1, 0, [][]byte{macTable(otherMAC), huge, macTable(groupA)}},
		{"address not negotiated", everything &^ featureCtrlMACAddr, 1, 1, [][]byte{otherMAC[:]}},
		{"short address", everything, 1, 1, [][]byte{otherMAC[:5]}},
		{"long address", everything, 1, 1, [][]byte{otherMAC[:], {0}}},
		{"multicast address", everything, 1, 1, [][]byte{groupA[:]}},
		{"no address", everything, 1, 1, [][]byte{make([]byte, 6)}},
		{"VLAN", everything, 2, 0, [][]byte{{1, 0}}},
		{"announce", everything, 3, 0, nil},
		{"pairs not negotiated", everything &^ featureMQ, 4, 0, [][]byte{le16(2)}},
		{"no pairs", everything, 4, 0, [][]byte{le16(0)}},
		{"too many pairs", everything, 4, 0, [][]byte{le16(3)}},
		{"pairs cut off", everything, 4, 0, [][]byte{{2}}},
		{"pairs with a tail", everything, 4, 0, [][]byte{{2, 0, 0}}},
		{"RSS", everything, 4, 1, [][]byte{make([]byte, 32)}},
		{"offloads", everything, 5, 0, [][]byte{make([]byte, 8)}},
		{"unknown", everything, 255, 255, [][]byte{{1}}},
	} {
		l := newLAN()
		dev := newDevice(t, l, 2)
		d := newDriver(t, dev, c.features)
		before := snapshot(t, dev)
		if err := dev.Resume(); err != nil {
			t.Fatal(err)
		}
		if ack := command(t, d, c.class, c.cmd, c.data...); ack != 1 {
			t.Errorf("%s: answer %d", c.name, ack)
		}
		if after := snapshot(t, dev); !bytes.Equal(before, after) {
			t.Errorf("%s: %s became %s", c.name, before, after)
		}
		dev.Reset() // counts are written when a burst has ended
		if s := dev.Stats(); s.Refused != 1 || s.Commands != 0 {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

// snapshot quiesces a device and gives its state.
func snapshot(t *testing.T, dev *Device) []byte {
	t.Helper()
	if err := dev.Quiesce(); err != nil {
		t.Fatal(err)
	}
	s, err := dev.State()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestCommandWithoutAnswer: one without room for an answer is not obeyed, and
// neither is one without a header.
func TestCommandWithoutAnswer(t *testing.T) {
	l := newLAN()
	dev := newDevice(t, l, 1)
	d := newDriver(t, dev, everything)
	if _, err := d.Rings[2].Add([][]byte{{0, 0, 1}}, nil); err != nil {
		t.Fatal(err)
	}
	d.Kick(2)
	if u := d.Wait(2, 1); u[0].Len != 0 {
		t.Errorf("used.len %d", u[0].Len)
	}
	if b := d.Do(2, [][]byte{{0}}, 1); !bytes.Equal(b, []byte{1}) {
		t.Errorf("a command of one byte: %v", b)
	}
	if b := d.Do(2, nil, 1); !bytes.Equal(b, []byte{1}) {
		t.Errorf("a command of no byte: %v", b)
	}
	if got := passes(t, l, d, otherMAC); got[0] {
		t.Error("it was obeyed")
	}
	dev.Reset() // counts are written when a burst has ended
	if s := dev.Stats(); s.Refused != 3 {
		t.Errorf("%+v", s)
	}
}

// TestAddressInConfig: a new address is read back, and gone with a reset.
func TestAddressInConfig(t *testing.T) {
	dev := newDevice(t, newLAN(), 1)
	d := newDriver(t, dev, everything)
	command(t, d, 1, 1, otherMAC[:])
	var b [6]byte
	if dev.ReadConfig(0, b[:]); b != otherMAC {
		t.Errorf("address %x", b)
	}
	dev.Reset()
	if dev.ReadConfig(0, b[:]); b != testMAC {
		t.Errorf("address %x after a reset", b)
	}
}
