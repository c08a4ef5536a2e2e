package ports

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// machine is ports on a bus that remembers the events.
type machine struct {
	*Ports
	bus    map[uint16]Region
	events []Event
}

func newMachine() *machine {
	m := &machine{}
	m.Ports = New(Config{Event: func(e Event) { m.events = append(m.events, e) }})
	m.bus = map[uint16]Region{}
	for _, r := range m.Regions() {
		m.bus[r.Base] = r
	}
	return m
}

func (m *machine) in(addr uint16) byte {
	b := []byte{0xFF}
	m.bus[addr].Read(0, b)
	return b[0]
}

func (m *machine) out(addr uint16, v byte) { m.bus[addr].Write(0, []byte{v}) }

type access struct {
	read bool
	addr uint16
	v    byte
}

func rd(addr uint16, want byte) access { return access{true, addr, want} }
func wr(addr uint16, v byte) access    { return access{false, addr, v} }

func TestPorts(t *testing.T) {
	for _, c := range []struct {
		name   string
		do     []access
		events []Event
	}{
		{"exit with each status", []access{wr(Exit, 0), wr(Exit, 1), wr(Exit, 255)}, []Event{{ExitPort, 0}, {ExitPort, 1}, {ExitPort, 255}}},
		{"exit is write-only", []access{rd(Exit, 0xFF)}, nil},
		{"mark", []access{wr(Mark, 7), rd(Mark, 0xFF)}, []Event{{Milestone, 7}}},
		{"POST and delay ports are quiet", []access{wr(POST, 0x55), rd(POST, 0xFF), wr(Delay, 0x55), rd(Delay, 0xFF)}, nil},

		{"keyboard: NetBSD's reset", []access{wr(KBCCommand, 0xFE), wr(KBCCommand, 0xFE)}, []Event{{Kind: KeyboardReset}, {Kind: KeyboardReset}}},
		{"keyboard: pulses with bit 0", []access{wr(KBCCommand, 0xF0), wr(KBCCommand, 0xF2), wr(KBCCommand, 0xFC)},
			[]Event{{Kind: KeyboardReset}, {Kind: KeyboardReset}, {Kind: KeyboardReset}}},
		{"keyboard: pulses without bit 0", []access{wr(KBCCommand, 0xFF), wr(KBCCommand, 0xF1), wr(KBCCommand, 0xFD)}, nil},
		{"keyboard: other commands", []access{wr(KBCCommand, 0xAA), wr(KBCCommand, 0x60), wr(KBCData, 0xFE), wr(KBCCommand, 0xEE)}, nil},
		{"keyboard: output port holds reset", []access{wr(KBCCommand, 0xD1), wr(KBCData, 0xDE)}, []Event{{Kind: KeyboardReset}}},
		{"keyboard: output port opens A20", []access{wr(KBCCommand, 0xD1), wr(KBCData, 0xDF), wr(KBCData, 0xDE)}, nil},
		{"keyboard: a command ends the wait for data", []access{wr(KBCCommand, 0xD1), wr(KBCCommand, 0xAA), wr(KBCData, 0)}, nil},
		{"keyboard: input buffer never full, data is nonsense", []access{rd(KBCCommand, 0x01), rd(KBCData, 0xFF), rd(KBCCommand, 0x01)}, nil},

		{"0xCF9: NetBSD's reset", []access{rd(ResetControl, 0), wr(ResetControl, 0x02), rd(ResetControl, 0x02), wr(ResetControl, 0x06), rd(ResetControl, 0x06)},
			[]Event{{Kind: ControlReset}}},
		{"0xCF9: Linux's cold reset", []access{wr(ResetControl, 0x02), wr(ResetControl, 0x0E)}, []Event{{Kind: ControlReset}}},
		{"0xCF9: only a rising bit 2", []access{wr(ResetControl, 0x0A), wr(ResetControl, 0x04), wr(ResetControl, 0x06), wr(ResetControl, 0), wr(ResetControl, 0x04)},
			[]Event{{Kind: ControlReset}, {Kind: ControlReset}}},
		{"0xCF9: reserved bits read 0", []access{wr(ResetControl, 0xFB), rd(ResetControl, 0x0A)}, nil},

		{"0x92: A20 reads set, whatever is written", []access{rd(Fast, 0x02), wr(Fast, 0), rd(Fast, 0x02), wr(Fast, 0xFE), rd(Fast, 0x02)}, nil},
		{"0x92: NetBSD's reset", []access{rd(Fast, 0x02), wr(Fast, 0x03), rd(Fast, 0x03)}, []Event{{Kind: FastReset}}},
		{"0x92: only a rising bit 0", []access{wr(Fast, 1), wr(Fast, 3), wr(Fast, 2), wr(Fast, 1)}, []Event{{Kind: FastReset}, {Kind: FastReset}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine()
			for i, a := range c.do {
				if !a.read {
					m.out(a.addr, a.v)
				} else if got := m.in(a.addr); got != a.v {
					t.Errorf("access %d: port %#x reads %#02x, want %#02x", i, a.addr, got, a.v)
				}
			}
			if !slices.Equal(m.events, c.events) {
				t.Errorf("events %v, want %v", m.events, c.events)
			}
		})
	}
}

// TestNoKeyboard runs what drivers do to find a controller: they must find none,
// and soon.
func TestNoKeyboard(t *testing.T) {
	m := newMachine()
	// NetBSD's pckbc: flush one byte, self-test, want 0x55.
	if m.in(KBCCommand)&1 != 0 {
		m.in(KBCData)
	}
	if m.in(KBCCommand)&2 != 0 {
		t.Error("the input buffer is full")
	}
	m.out(KBCCommand, 0xAA)
	if m.in(KBCCommand)&1 == 0 || m.in(KBCData) == 0x55 {
		t.Error("NetBSD waits, or finds a controller")
	}
	// Linux's i8042_flush: more than 16 bytes mean that there is none.
	n := 0
	for m.in(KBCCommand)&1 != 0 && n <= 16 {
		m.in(KBCData)
		n++
	}
	if n <= 16 {
		t.Errorf("Linux finds an empty controller after %d bytes, and waits for its self-test", n)
	}
	// A loop without a bound.
	for n = 0; m.in(KBCCommand)&1 != 0; n++ {
		if n > 1000 {
			t.Fatal("never empty")
		}
		m.in(KBCData)
	}
	if m.in(KBCData); m.in(KBCCommand) != 0 {
		t.Error("not empty any more")
	}
	if len(m.events) != 0 {
		t.Errorf("events %v", m.events)
	}
}

func TestMarks(t *testing.T) {
	tick := time.Now()
	p := New(Config{Now: func() time.Time { tick = tick.Add(time.Millisecond); return tick }})
	var mark Region
	for _, r := range p.Regions() {
		if r.Base == Mark {
			mark = r
		}
	}
	start := tick
	for i := range 3 * MaxMarks {
		mark.Write(0, []byte{byte(i)})
	}
	got := p.Marks()
	if len(got) != MaxMarks {
		t.Fatalf("%d marks", len(got))
	}
	for i, s := range got {
		if s.Value != byte(i) || s.At.Sub(start) != time.Duration(i+1)*time.Millisecond {
			t.Errorf("mark %d: %+v", i, s)
		}
	}
	got[0].Value = 99
	if p.Marks()[0].Value == 99 {
		t.Error("Marks gives its own slice away")
	}
}

// TestMarkClock: the default clock is monotonic.
func TestMarkClock(t *testing.T) {
	m := newMachine()
	m.out(Mark, 1)
	if s := m.Marks(); len(s) != 1 || !strings.Contains(s[0].At.String(), "m=") {
		t.Errorf("%v", s)
	}
}

func TestRegions(t *testing.T) {
	m := newMachine()
	var last uint16
	for _, r := range m.Regions() {
		if r.Len != 1 || r.Name == "" || r.Base <= last && last != 0 {
			t.Errorf("region %+v", r)
		}
		last = r.Base
		if r.Base == 0x61 {
			t.Error("port 0x61 is the timer's")
		}
		// Wide, empty and outside accesses.
		b := []byte{0xFF, 0xFF, 0xFF, 0xFF}
		r.Read(0, b)
		if b[1] != 0xFF || b[2] != 0xFF || b[3] != 0xFF {
			t.Errorf("port %#x is wider than a byte: % x", r.Base, b)
		}
		r.Read(1, b[:1])
		r.Read(0, nil)
		r.Write(1, []byte{0xFE})
		r.Write(0, nil)
	}
	if len(m.events) != 0 {
		t.Errorf("events %v", m.events)
	}
	m.bus[Exit].Write(0, []byte{5, 6})
	if !slices.Equal(m.events, []Event{{ExitPort, 5}}) {
		t.Errorf("a wide exit: %v", m.events)
	}
}

// TestManyCPUs: all CPUs at once, for the race detector; the callback may use
// the ports.
func TestManyCPUs(t *testing.T) {
	var p *Ports
	p = New(Config{Event: func(Event) { p.Marks() }})
	regions := p.Regions()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			b := []byte{0}
			for i := range 2000 {
				r := regions[i%len(regions)]
				b[0] = byte(i)
				r.Write(0, b)
				r.Read(0, b)
			}
		})
	}
	wg.Wait()
	if n := len(p.Marks()); n != MaxMarks {
		t.Errorf("%d marks", n)
	}
}

func TestKindNames(t *testing.T) {
	seen := map[string]bool{}
	for k := ExitPort; k <= Milestone; k++ {
		if s := k.String(); s == "unknown" || s == "" || seen[s] {
			t.Errorf("kind %d is %q", k, s)
		} else {
			seen[s] = true
		}
	}
	for _, k := range []Kind{0, -1, Milestone + 1} {
		if k.String() != "unknown" {
			t.Errorf("kind %d is %q", k, k)
		}
	}
}

func TestState(t *testing.T) {
	m := newMachine()
	m.out(ResetControl, 0x0A)
	m.out(Fast, 1)
	m.out(KBCCommand, 0xD1)
	m.events = nil
	state, err := m.State()
	if err != nil {
		t.Fatal(err)
	}
	n := newMachine()
	if err := n.Restore(state); err != nil {
		t.Fatal(err)
	}
	if again, _ := n.State(); !bytes.Equal(state, again) {
		t.Errorf("%s comes back as %s", state, again)
	}
	if got := [2]byte{n.in(ResetControl), n.in(Fast)}; got != [2]byte{0x0A, 0x03} {
		t.Errorf("registers % x", got)
	}
	n.out(Fast, 1) // no edge
	n.out(KBCData, 0)
	if !slices.Equal(n.events, []Event{{Kind: KeyboardReset}}) {
		t.Errorf("events %v", n.events)
	}
	for _, bad := range []string{"", "[]", "{}x", `{"Control":1}`, `{"Control":256}`, `{"Fast":2}`, `{"Else":1}`} {
		if err := n.Restore([]byte(bad)); err == nil || !strings.HasPrefix(err.Error(), "ports: bad state: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if n.Quiesce() != nil || n.Resume() != nil {
		t.Error("cannot pause")
	}
	for f := range reflect.TypeFor[Ports]().Fields() {
		if !strings.Contains(" event now mu s ghosts marks ", " "+f.Name+" ") {
			t.Errorf("field %s is neither state nor wiring", f.Name)
		}
	}
}

// FuzzPorts does accesses of two bytes: which port, with bit 7 to write it and
// bit 6 to go through the state first, and a value. A model says when a machine
// must end.
func FuzzPorts(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x81\xAA\x01\x00\x00\x00\x81\xFE\x87\x02\x87\x06\x03\x00\x83\x03"))
	f.Add([]byte("\x86\x01\x86\x02\x85\x2A\x82\x55\x84\x00"))
	f.Add([]byte("\x81\xD1\xC0\xDE\x87\x0A\x47\x00\x87\x0E\x83\x01\xC3\x01"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		m := newMachine()
		want := 0
		var control, fast, last byte
		for ; len(ops) >= 2; ops = ops[2:] {
			e, v := table[ops[0]%uint8(len(table))], ops[1]
			if ops[0]&0x40 != 0 {
				state, err := m.State()
				if err != nil {
					t.Fatal(err)
				}
				old := m
				m = newMachine()
				m.events, m.marks = old.events, old.marks
				if err := m.Restore(state); err != nil {
					t.Fatalf("%s: %v", state, err)
				}
			}
			if ops[0]&0x80 == 0 {
				got := m.in(e.addr)
				switch e.addr {
				case KBCCommand:
					if got&^1 != 0 {
						t.Fatalf("status %#x", got)
					}
				case ResetControl:
					if got != control&0x0E {
						t.Fatalf("0xCF9 reads %#x after %#x", got, control)
					}
				case Fast:
					if got != fast&1|2 {
						t.Fatalf("0x92 reads %#x after %#x", got, fast)
					}
				default:
					if got != 0xFF {
						t.Fatalf("port %#x reads %#x", e.addr, got)
					}
				}
				continue
			}
			m.out(e.addr, v)
			switch e.addr {
			case Exit:
				want++
			case KBCCommand:
				if v >= 0xF0 && v%2 == 0 {
					want++
				}
				last = v
			case KBCData:
				if last == 0xD1 && v%2 == 0 {
					want++
				}
				last = 0
			case ResetControl:
				if control&4 == 0 && v&4 != 0 {
					want++
				}
				control = v
			case Fast:
				if fast&1 == 0 && v&1 != 0 {
					want++
				}
				fast = v
			}
			ends := 0
			for _, e := range m.events {
				if e.Kind != Milestone {
					ends++
				}
			}
			if ends != want {
				t.Fatalf("%d events that end the machine, want %d", ends, want)
			}
			if n := len(m.Marks()); n > MaxMarks || n != len(m.events)-ends {
				t.Fatalf("%d marks of %d events", n, len(m.events))
			}
		}
	})
}
