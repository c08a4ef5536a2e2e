package rtc

import (
	b64 "encoding/base64"
	"testing"
	"time"
)

func base64(b []byte) string { return b64.StdEncoding.EncodeToString(b) }

// A fuzzed session is a string of operations of two bytes: a register, with bit
// 7 to write it, and a value; a read lets value milliseconds pass. Register
// 0x7F with bit 7 takes the clock through its state.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte("\x8A\x26\x8B\x02\x0D\x00\x0A\x00\x00\x00\x01\x00\x02\x00\x03\x00\x04\x00\x05\x00\x06\x00\x07\x00\x08\x00\x09\x00\x32\x00"))
	f.Add([]byte("\x8B\x82\x80\x58\x81\x00\x82\x59\x83\x00\x84\x23\x85\x00\x86\x05\x87\x31\x88\x12\x89\x30\x8B\x02\x0A\xFF\x00\x00\x09\x00\xB2\x19\x32\x00"))
	f.Add([]byte("\x8B\x86\x8A\x76\x80\x3B\x84\x17\x88\x0C\xFF\x00\x8B\x06\x8A\x26\x0A\x01\x00\xFF\x0C\xFF\x0C\x00\x8B\x74\x0C\xFF"))
	f.Add([]byte("\x8B\x84\x84\xFF\x87\xFF\x88\x00\x89\x00\xB2\x00\x8B\x04\x09\x00\x32\x00\x8B\x00\x04\x00"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		h := &host{begin}
		c := New(h.now)
		for ; len(ops) >= 2; ops = ops[2:] {
			r, v := ops[0]&indexMask, ops[1]
			switch {
			case ops[0] == 0xFF:
				state, err := c.State()
				if err != nil {
					t.Fatal(err)
				}
				c = New(h.now)
				if err := c.Restore(state); err != nil {
					t.Fatalf("%s: %v", state, err)
				}
			case ops[0]&0x80 != 0:
				out(c, r, v)
			default:
				h.t = h.t.Add(time.Duration(v) * time.Millisecond)
				got := in(c, r)
				check(t, c, r, got)
			}
			if y := c.time().Year(); y < -1 || y > 30000 {
				t.Fatalf("year %d", y)
			}
		}
	})
}

// check is what holds for a value read, whatever was written.
func check(t *testing.T, c *Clock, r, v byte) {
	bad := false
	switch {
	case r == regA:
		bad = v&aUIP != 0
	case r == regC:
		bad = v&^(cIRQF|cPF|cUF) != 0
	case r == regD:
		bad = v != dVRT
	case c.stands():
	case r == regSeconds || r == regMinutes:
		bad = c.value(v) > 59
	case r == regHours && c.ram[regB]&b24 != 0:
		bad = c.value(v) > 23
	case r == regHours:
		bad = c.value(v&^hoursPM) < 1 || c.value(v&^hoursPM) > 12
	case r == regWeekday:
		bad = v < 1 || v > 7
	case r == regDay:
		bad = c.value(v) < 1 || c.value(v) > 31
	case r == regMonth:
		bad = c.value(v) < 1 || c.value(v) > 12
	case r == regYear || r == regCentury:
		bad = c.value(v) > 99
	}
	if bad {
		t.Fatalf("register %#x reads %#x", r, v)
	}
}

func FuzzRestore(f *testing.F) {
	c, _ := newClock()
	s, _ := c.State()
	f.Add(s)
	f.Fuzz(func(t *testing.T, state []byte) {
		c, _ := newClock()
		if c.Restore(state) != nil {
			return
		}
		for r := range byte(ramSize) {
			check(t, c, r, in(c, r))
		}
	})
}
