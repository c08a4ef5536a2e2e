package pvh

import (
	"bytes"
	"errors"
	"testing"
)

// TestACPI: tables are where start_info says, and the map keeps a kernel off
// their pages.
func TestACPI(t *testing.T) {
	tables := pattern(5000, 0x44)
	mem := ram(t, 64<<20)
	e, err := Load(mem, file(netbsd(64).build()), Params{CPUs: 1, ACPI: tables, ResetCode: []byte{0xEB, 0xFE}, FreshMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	g := guest{t, mem}
	if rsdp := g.u64(uint64(e.StartInfo) + 32); rsdp != 0xE0000 || !bytes.Equal(g.bytes(rsdp, 5000), tables) {
		t.Errorf("rsdp_paddr is %#x, or the tables are not there", rsdp)
	}
	if want := (MapEntry{Span{0xE0000, 0x20000}, TypeReserved}); len(e.Map) != 4 || e.Map[2] != want {
		t.Errorf("the map is %v: want %v as the third of four", e.Map, want)
	}
	if n := g.u32(uint64(e.StartInfo) + 48); n != 4 {
		t.Errorf("start_info has %d lines of map", n)
	}

	if got := g.bytes(0xFFFF0, 4); !bytes.Equal(got, []byte{0xEB, 0xFE, 0, 0}) {
		t.Errorf("at the reset vector is % x", got)
	}

	for _, p := range []Params{
		{CPUs: 1, ACPI: make([]byte, ACPISize+1)}, {CPUs: 1, ACPI: tables, ResetCode: make([]byte, 17)}, {CPUs: 1, ResetCode: make([]byte, 1)},
	} {
		if _, err = Load(mem, file(netbsd(64).build()), p); !errors.Is(err, ErrParams) {
			t.Errorf("%d bytes of tables, %d at the reset vector: %v", len(p.ACPI), len(p.ResetCode), err)
		}
	}
}
