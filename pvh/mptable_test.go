package pvh

import (
	"encoding/binary"
	"testing"
)

func TestMPTable(t *testing.T) {
	for _, cpus := range []int{1, 2, 15, 16, 32} {
		for _, level := range []uint32{0, 1<<5 | 1<<16 | 1<<23, 1<<24 - 1} {
			b, err := MPTable(cpus, level)
			if err != nil {
				t.Fatal(err)
			}
			checkMP(t, b, cpus, level)
		}
	}
}

// checkMP walks the EBDA as NetBSD's mpbios.c does: search every 4 bytes for
// the pointer, sum both structures, walk entries by their type's length.
func checkMP(t *testing.T, ebda []byte, cpus int, level uint32) {
	t.Helper()
	le := binary.LittleEndian
	sum := func(b []byte) (s byte) {
		for _, c := range b {
			s += c
		}
		return
	}
	if len(ebda) != 1024 || ebda[0] != 1 {
		t.Fatalf("EBDA of %d bytes, size byte %d", len(ebda), ebda[0])
	}
	at := -1
	for i := 0; i <= 1024-16; i += 4 {
		if string(ebda[i:i+4]) == "_MP_" && sum(ebda[i:i+16]) == 0 {
			at = i
			break
		}
	}
	if at < 0 || at%16 != 0 || ebda[at+8] != 1 || ebda[at+9] != 4 || ebda[at+11] != 0 || ebda[at+12]&0x80 != 0 {
		t.Fatalf("floating pointer at %d", at)
	}
	tab := ebda[le.Uint32(ebda[at+4:])-0x9FC00:]
	tab = tab[:le.Uint16(tab[4:])]
	if string(tab[:4]) != "PCMP" || sum(tab) != 0 || tab[6] != 4 || string(tab[8:28]) != "SMOLVMM microvm     " || le.Uint32(tab[36:]) != 0xFEE00000 {
		t.Fatalf("configuration table % x", tab[:44])
	}
	ids := map[byte]bool{}
	pins := map[byte][]byte{}
	var lints [][]byte
	pos, count := 44, int(le.Uint16(tab[34:]))
	for ; count > 0; count-- {
		e := tab[pos:]
		switch e[0] {
		case 0:
			if ids[e[1]] || e[3]&1 == 0 || e[3]&2 != 0 != (e[1] == 0) {
				t.Errorf("processor % x", e[:20])
			}
			ids[e[1]] = true
			pos += 20
			continue
		case 1:
			if string(e[1:8]) != "\x00ISA   " {
				t.Errorf("bus %q", e[:8])
			}
		case 2:
			if ids[e[1]] || len(ids) != cpus || e[3] != 1 || le.Uint32(e[4:]) != 0xFEC00000 {
				t.Errorf("IOAPIC % x after %d processors", e[:8], len(ids))
			}
			ids[e[1]] = true
		case 3:
			if pins[e[7]] != nil || e[5] != e[7] || e[1] != 0 || !ids[e[6]] || int(e[6]) < cpus {
				t.Errorf("interrupt % x", e[:8])
			}
			pins[e[7]] = e[:8]
		case 4:
			lints = append(lints, e[:8])
		default:
			t.Fatalf("entry type %d", e[0])
		}
		pos += 8
	}
	if pos != len(tab) {
		t.Errorf("entries end at %d of %d", pos, len(tab))
	}
	if len(ids) != cpus+1 {
		t.Errorf("%d APICs for %d processors", len(ids), cpus)
	}
	for pin := range byte(24) {
		e := pins[pin]
		switch isLevel := level>>pin&1 != 0; {
		case isLevel && (e == nil || le.Uint16(e[2:]) != 0xD):
			t.Errorf("pin %d is % x: want level, active high", pin, e)
		case !isLevel && pin < 16 && pin != 2 && (e == nil || le.Uint16(e[2:]) != 0):
			t.Errorf("pin %d is % x: want it to conform to ISA", pin, e)
		case !isLevel && (pin == 2 || pin >= 16) && e != nil:
			t.Errorf("pin %d is described: % x", pin, e)
		}
	}
	if len(lints) != 2 || lints[0][1] != 3 || lints[0][7] != 0 || lints[1][1] != 1 || lints[1][6] != 0xFF || lints[1][7] != 1 {
		t.Errorf("local interrupts % x", lints)
	}
}
