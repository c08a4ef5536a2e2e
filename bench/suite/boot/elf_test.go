package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// loads gives an ELF file's loaded bytes by physical address, as a monitor would place them.
func loads(t *testing.T, file []byte) map[uint64][]byte {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	out := map[uint64][]byte{}
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		out[p.Paddr] = b
	}
	return out
}

// entryOf gives the PVH entry as debug/elf and findEntry see it.
func entryOf(t *testing.T, file []byte) uint64 {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if at, ok := findEntry(b); ok {
			return uint64(binary.LittleEndian.Uint32(b[at:]))
		}
	}
	t.Fatal("no PVH entry")
	return 0
}

func TestTinyGuest(t *testing.T) {
	for hold, want := range map[bool][]byte{
		// Read back with a disassembler: mov dx,0x3f8; mov al,2; out dx,al, then the end.
		true:  {0x66, 0xBA, 0xF8, 0x03, 0xB0, 0x02, 0xEE, 0xFA, 0xF4, 0xEB, 0xFD},
		false: {0x66, 0xBA, 0xF8, 0x03, 0xB0, 0x02, 0xEE, 0x66, 0xBA, 0x01, 0x05, 0x30, 0xC0, 0xEE, 0xFA, 0xF4, 0xEB, 0xFD},
	} {
		g := TinyGuest(hold)
		if e := entryOf(t, g); e != tinyBase {
			t.Errorf("entry %#x", e)
		}
		if got := loads(t, g); len(got) != 1 || !bytes.Equal(got[tinyBase], want) {
			t.Errorf("hold %v: loaded % x, want % x at %#x", hold, got, want, tinyBase)
		}
	}
}

func TestMarkKernel(t *testing.T) {
	// A kernel at 2 MiB with another note before its entry, and something behind it in the file.
	const base = 0x200000
	other := binary.LittleEndian.AppendUint32(nil, 4)
	other = binary.LittleEndian.AppendUint32(other, 3)
	other = binary.LittleEndian.AppendUint32(other, 6)
	other = append(other, "Xen\x00abc\x00"...)
	notes := slices.Concat(other, pvhNote(base+0x40))
	kernel := ehdr(0xFFFFFFFF80200000, ehdrSize, 2)
	at := uint64(ehdrSize + 2*phdrSize)
	kernel = append(kernel, phdr(elf.PT_NOTE, at, 0, uint64(len(notes)), 4)...)
	kernel = append(kernel, phdr(elf.PT_LOAD, at+uint64(len(notes)), base, 5, 1)...)
	kernel = append(append(kernel, notes...), "codexyz"...)

	got, err := markKernel(kernel)
	if err != nil {
		t.Fatal(err)
	}
	stub := []byte{0x66, 0xBA, 0xF8, 0x03, 0xB0, 0x02, 0xEE, 0xB8, 0x40, 0x00, 0x20, 0x00, 0xFF, 0xE0}
	if e := entryOf(t, got); e != base-0x1000 {
		t.Errorf("entry %#x, want the page below the kernel", e)
	}
	l := loads(t, got)
	if len(l) != 2 || !bytes.Equal(l[base-0x1000], stub) || string(l[base]) != "codex" {
		t.Errorf("loaded %x", l)
	}

	for name, c := range map[string]struct {
		spoil func(k []byte) []byte
		want  string
	}{
		"short":        {func(k []byte) []byte { return k[:40] }, "not an ELF file"},
		"32 bits":      {func(k []byte) []byte { k[elf.EI_CLASS] = 1; return k }, "64-bit"},
		"headers":      {func(k []byte) []byte { k[39] = 0xFF; return k }, "program headers outside"},
		"no note":      {func(k []byte) []byte { k[at+uint64(len(other))+8] = 7; return k }, "no PVH note"},
		"note outside": {func(k []byte) []byte { k[ehdrSize+15] = 0xFF; return k }, "note outside"},
		"too low":      {func(k []byte) []byte { k[ehdrSize+phdrSize+26] = 0x10; return k }, "no room"},
	} {
		if _, err := markKernel(c.spoil(slices.Clone(kernel))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
