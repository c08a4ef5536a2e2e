package rtc

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

// host is a host clock that the test moves.
type host struct{ t time.Time }

func (h *host) now() time.Time { return h.t }

// begin is a Saturday.
var begin = time.Date(2026, 11, 21, 13, 45, 59, 250e6, time.FixedZone("not UTC", 3600))

func newClock() (*Clock, *host) {
	h := &host{begin}
	return New(h.now), h
}

func in(c *Clock, r byte) byte {
	c.Write(portIndex, []byte{r})
	b := []byte{0xFF}
	c.Read(portData, b)
	return b[0]
}

func out(c *Clock, r, v byte) { c.Write(portIndex, []byte{r, v}) }

// all reads the time as a driver does.
func all(c *Clock) [8]byte {
	in(c, regA)
	var v [8]byte
	for i, r := range timeRegs {
		v[i] = in(c, r)
	}
	return v
}

func TestTimeFormats(t *testing.T) {
	at := func(h int) time.Time { return time.Date(2026, 11, 21, h, 45, 59, 0, time.UTC) }
	for _, c := range []struct {
		name string
		b    byte
		t    time.Time
		want [8]byte // seconds, minutes, hours, weekday, day, month, year, century
	}{
		{"BCD, 24 h", b24, at(12), [8]byte{0x59, 0x45, 0x12, 0x07, 0x21, 0x11, 0x26, 0x20}},
		{"binary, 24 h", b24 | bDM, at(23), [8]byte{59, 45, 23, 7, 21, 11, 26, 20}},
		{"BCD, midnight is 12 AM", 0, at(0), [8]byte{0x59, 0x45, 0x12, 0x07, 0x21, 0x11, 0x26, 0x20}},
		{"BCD, 1 AM", 0, at(1), [8]byte{0x59, 0x45, 0x01, 0x07, 0x21, 0x11, 0x26, 0x20}},
		{"BCD, 11 AM", 0, at(11), [8]byte{0x59, 0x45, 0x11, 0x07, 0x21, 0x11, 0x26, 0x20}},
		{"BCD, noon is 12 PM", 0, at(12), [8]byte{0x59, 0x45, 0x92, 0x07, 0x21, 0x11, 0x26, 0x20}},
		{"BCD, 11 PM", 0, at(23), [8]byte{0x59, 0x45, 0x91, 0x07, 0x21, 0x11, 0x26, 0x20}},
		{"binary, 11 PM", bDM, at(23), [8]byte{59, 45, 0x80 | 11, 7, 21, 11, 26, 20}},
		{"the last century", b24, time.Date(1999, 12, 31, 23, 59, 59, 0, time.UTC), [8]byte{0x59, 0x59, 0x23, 0x06, 0x31, 0x12, 0x99, 0x19}},
		{"a leap day", b24, time.Date(2028, 2, 29, 0, 0, 0, 0, time.UTC), [8]byte{0, 0, 0, 0x03, 0x29, 0x02, 0x28, 0x20}},
		{"a Sunday", b24, time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), [8]byte{0, 0, 0, 0x01, 0x22, 0x11, 0x26, 0x20}},
	} {
		clock, h := newClock()
		h.t = c.t
		out(clock, regB, c.b)
		got := all(clock)
		if got != c.want {
			t.Errorf("%s: % x, want % x", c.name, got, c.want)
		}
		// Set to what it shows, it shows the same, a year later on the host.
		h.t = c.t.AddDate(1, 1, 1)
		out(clock, regB, c.b|bSET)
		for i, r := range timeRegs {
			out(clock, r, c.want[i])
		}
		if got := all(clock); got != c.want {
			t.Errorf("%s: while set: % x", c.name, got)
		}
		out(clock, regB, c.b)
		if got := all(clock); got != c.want {
			t.Errorf("%s: set: % x, want % x", c.name, got, c.want)
		}
	}
}

func TestUTC(t *testing.T) {
	c, _ := newClock()
	if got := in(c, regHours); got != 0x12 {
		t.Errorf("hours %#x, want UTC's 12", got)
	}
}

// TestRegisters checks every register that is not the time.
func TestRegisters(t *testing.T) {
	for _, c := range []struct {
		name             string
		reg, write, want byte
		initial          byte
	}{
		{"seconds alarm", regSecAlarm, 0xC0, 0xC0, 0},
		{"minutes alarm", regMinAlarm, 0x59, 0x59, 0},
		{"hours alarm", regHourAlarm, 0xFF, 0xFF, 0},
		{"A: UIP is read-only and 0", regA, 0xAA, 0x2A, 0x26},
		{"A: rate and divider", regA, 0x2F, 0x2F, 0x26},
		{"B: all bits", regB, 0x7F, 0x7F, 0x02},
		{"B: SET clears UIE", regB, 0xFF, 0xEF, 0x02},
		{"C: read-only", regC, 0xFF, 0x00, 0x00},
		{"D: VRT, read-only", regD, 0x00, 0x80, 0x80},
		{"diagnostic status", regDiagnostic, 0x00, 0x00, 0x00},
	} {
		clock, _ := newClock()
		if got := in(clock, c.reg); got != c.initial {
			t.Errorf("%s: %#x at first, want %#x", c.name, got, c.initial)
		}
		out(clock, c.reg, c.write)
		if got := in(clock, c.reg); got != c.want {
			t.Errorf("%s: %#x after %#x, want %#x", c.name, got, c.write, c.want)
		}
	}
	// The rest is RAM.
	clock, _ := newClock()
	for r := byte(regD + 1); r < ramSize; r++ {
		if r == regCentury {
			continue
		}
		if got := in(clock, r); got != 0 {
			t.Errorf("CMOS %#x: %#x at first: NetBSD's checksum wants zeros", r, got)
		}
		out(clock, r, ^r)
	}
	for r := byte(regD + 1); r < ramSize; r++ {
		if got := in(clock, r); r != regCentury && got != ^r {
			t.Errorf("CMOS %#x: %#x", r, got)
		}
	}
}

func TestPorts(t *testing.T) {
	c, _ := newClock()
	out(c, 0x40, 0x99)
	c.Write(portIndex, []byte{0x80 | 0x40})
	b := []byte{0xFF, 0xFF}
	c.Read(portIndex, b)
	if b[0] != 0xFF || b[1] != 0x99 {
		t.Errorf("index 0x40 with the NMI masked reads % x", b)
	}
	c.Write(portData, []byte{0x11, 0x22})
	if got := in(c, 0x40); got != 0x11 {
		t.Errorf("a write past the ports reached %#x", got)
	}
	c.Read(^uint64(0), b)
	c.Write(2, b)
}

// TestUIP: what NetBSD polls for is never set.
func TestUIP(t *testing.T) {
	c, h := newClock()
	for range 2000 {
		h.t = h.t.Add(time.Millisecond)
		if in(c, regA)&aUIP != 0 {
			t.Fatal("UIP")
		}
	}
}

// TestConsistent: reading A and then the time never mixes two seconds.
func TestConsistent(t *testing.T) {
	c, h := newClock()
	h.t = time.Date(2026, 12, 31, 23, 59, 59, 999_900_000, time.UTC)
	in(c, regA)
	var got [8]byte
	for i, r := range timeRegs {
		h.t = h.t.Add(50 * time.Microsecond)
		got[i] = in(c, r)
	}
	if want := [8]byte{0x59, 0x59, 0x23, 0x05, 0x31, 0x12, 0x26, 0x20}; got != want {
		t.Errorf("read % x, want % x", got, want)
	}
	h.t = h.t.Add(latchFor)
	if got := in(c, regSeconds); got != 0 {
		t.Errorf("a guest that polls the seconds alone sees %#x for ever", got)
	}
	// A host clock that goes back must not hold the latch.
	in(c, regA)
	h.t = h.t.Add(-time.Hour)
	if got := in(c, regHours); got != 0x23 {
		t.Errorf("hours %#x after the host's clock went back", got)
	}
}

func TestSetAsNetBSDDoes(t *testing.T) {
	c, h := newClock()
	out(c, regA, 0x26)
	out(c, regB, b24)
	out(c, regB, in(c, regB)|bSET)
	for i, v := range []byte{0x58, 0, 0x59, 0, 0x23, 0, 5, 0x31, 0x12, 0x30} {
		out(c, byte(i), v)
	}
	h.t = h.t.Add(time.Minute) // the clock stands
	out(c, regB, in(c, regB)&^bSET)
	h.t = h.t.Add(time.Second)
	if got, want := all(c), [8]byte{0x59, 0x59, 0x23, 0x03, 0x31, 0x12, 0x30, 0x20}; got != want {
		t.Errorf("% x, want % x", got, want)
	}
	h.t = h.t.Add(750 * time.Millisecond) // the fraction of the second went on
	if got, want := all(c), [8]byte{0, 0, 0, 0x04, 0x01, 0x01, 0x31, 0x20}; got != want {
		t.Errorf("% x, want % x", got, want)
	}
	out(c, regCentury, 0x19) // the century alone, with the clock running
	if got := all(c); got[6] != 0x31 || got[7] != 0x19 {
		t.Errorf("% x after setting the century", got)
	}
}

// TestSetAsLinuxDoes: the divider is reset too, and the first update comes half
// a second after it.
func TestSetAsLinuxDoes(t *testing.T) {
	c, h := newClock()
	out(c, regB, b24|bSET)
	out(c, regA, 0x26|0x70)
	for i, v := range []byte{0x10, 0x20, 0x03, 7, 0x21, 0x11, 0x26, 0x20} {
		out(c, timeRegs[i], v)
	}
	out(c, regB, b24)
	h.t = h.t.Add(3 * time.Second)
	if got := in(c, regSeconds); got != 0x10 {
		t.Errorf("seconds %#x with the divider in reset", got)
	}
	out(c, regA, 0x26)
	h.t = h.t.Add(499 * time.Millisecond)
	if got := in(c, regSeconds); got != 0x10 {
		t.Errorf("seconds %#x before half a second", got)
	}
	h.t = h.t.Add(time.Millisecond)
	if got := in(c, regSeconds); got != 0x11 {
		t.Errorf("seconds %#x after half a second", got)
	}
}

// TestNonsense: whatever a guest sets becomes a date.
func TestNonsense(t *testing.T) {
	for _, c := range []struct {
		set, want [8]byte // seconds, minutes, hours, weekday, day, month, year, century
	}{
		{[8]byte{0, 0, 0, 0, 0, 0, 0, 0}, [8]byte{0, 0, 0, 0x03, 0x30, 0x11, 0x99, 0x00}},                                  // 30 November of the year before 0
		{[8]byte{0x60, 0x59, 0x23, 0, 0x31, 0x12, 0x26, 0x20}, [8]byte{0, 0, 0, 0x06, 0x01, 0x01, 0x27, 0x20}},             // carries into the next year
		{[8]byte{0, 0, 0, 0, 0x30, 0x02, 0x26, 0x20}, [8]byte{0, 0, 0, 0x02, 0x02, 0x03, 0x26, 0x20}},                      // 30 February
		{[8]byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}, [8]byte{0x45, 0x47, 0x23, 0x03, 0x18, 0x02, 0x79, 0x66}}, // 0xFF counts as 165: 165 months, days, hours and so on into the year 16665
	} {
		clock, h := newClock()
		h.t = h.t.Add(500 * time.Millisecond) // later in its second than the guest's will be
		out(clock, regB, b24|bSET)
		out(clock, regA, 0x70)
		for i, r := range timeRegs {
			out(clock, r, c.set[i])
		}
		out(clock, regB, b24)
		out(clock, regA, 0x26)
		if got := all(clock); got != c.want {
			t.Errorf("% x becomes % x, want % x", c.set, got, c.want)
		}
	}
}

func TestRegisterC(t *testing.T) {
	c, h := newClock()
	tick := h.t
	check := func(what string, after time.Duration, want byte) {
		t.Helper()
		tick = tick.Add(after)
		h.t = tick
		if got := in(c, regC); got != want {
			t.Errorf("%s: %#x, want %#x", what, got, want)
		}
		if got := in(c, regC); got != 0 {
			t.Errorf("%s: %#x when read again", what, got)
		}
	}
	out(c, regA, 0x20)
	check("no rate, same second", 100*time.Millisecond, 0)
	check("the next second", 650*time.Millisecond, cUF)
	out(c, regA, 0x26)
	check("a period at 1,024 Hz", 976563*time.Nanosecond, cPF)
	out(c, regA, 0x21)
	check("less than one at 256 Hz", 2900*time.Microsecond, 0)
	check("one at 256 Hz", 100*time.Microsecond, cPF)
	out(c, regB, b24|bPIE|bUIE)
	check("both, enabled", time.Second, cIRQF|cPF|cUF)
	out(c, regB, b24|bSET)
	check("standing", time.Second, 0)
}

func TestStateRoundTrip(t *testing.T) {
	c, h := newClock()
	out(c, regB, b24|bDM)
	out(c, regYear, 77)
	out(c, 0x55, 0xAA)
	out(c, regB, bDM|bSET)
	out(c, regMinutes, 33)
	c.Write(portIndex, []byte{regMinutes})
	state, err := c.State()
	if err != nil {
		t.Fatal(err)
	}
	d := New(h.now)
	if err := d.Restore(state); err != nil {
		t.Fatal(err)
	}
	again, err := d.State()
	if err != nil || !bytes.Equal(state, again) {
		t.Errorf("%s comes back as %s, %v", state, again, err)
	}
	b := []byte{0}
	if d.Read(portData, b); b[0] != 33 {
		t.Errorf("minutes %d", b[0])
	}
	h.t = h.t.Add(time.Hour)
	for _, x := range []*Clock{c, d} {
		out(x, regB, bDM)
	}
	if all(c) != all(d) || in(d, regYear) != 77 {
		t.Errorf("% x and % x", all(c), all(d))
	}
	if c.Quiesce() != nil || c.Resume() != nil {
		t.Error("cannot pause")
	}
}

func TestStateComplete(t *testing.T) {
	known := "now mu index ram offSec offNsec seenSec seenPeriod latched latchTime latchedAt"
	for f := range reflect.TypeFor[Clock]().Fields() {
		if !strings.Contains(" "+known+" ", " "+f.Name+" ") {
			t.Errorf("field %s is neither state nor wiring nor short-lived", f.Name)
		}
	}
}

func TestRestoreIsWary(t *testing.T) {
	ram := func(r, v byte) string {
		b := make([]byte, ramSize)
		b[r] = v
		return `"RAM":"` + base64(b) + `"`
	}
	for _, bad := range []string{
		"", "{}", "null", "{" + ram(0, 0) + "}{}", `{"Index":128,` + ram(0, 0) + `}`, "{" + ram(regA, 0x80) + "}", "{" + ram(regB, 0x90) + "}",
		`{"OffsetNanos":-1,` + ram(0, 0) + `}`, `{"OffsetNanos":1000000000,` + ram(0, 0) + `}`,
		`{"OffsetSeconds":9223372036854775807,` + ram(0, 0) + `}`, `{"More":1,` + ram(0, 0) + `}`,
	} {
		c, _ := newClock()
		if err := c.Restore([]byte(bad)); err == nil || !strings.HasPrefix(err.Error(), "rtc: bad state: ") {
			t.Errorf("%.60s: %v", bad, err)
		}
	}
	c, _ := newClock()
	if err := c.Restore([]byte("{" + ram(0, 0) + "}")); err != nil {
		t.Error(err)
	}
}

func TestDefaultClock(t *testing.T) {
	c := New(nil)
	before := time.Now().UTC().Year()
	got := int(in(c, regYear)>>4)*10 + int(in(c, regYear)&15) + 100*(int(in(c, regCentury)>>4)*10+int(in(c, regCentury)&15))
	if got < before || got > before+1 {
		t.Errorf("year %d, want %d", got, before)
	}
}
