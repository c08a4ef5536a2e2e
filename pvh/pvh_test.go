package pvh

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// guest reads back what a kernel would see, by its own offsets.
type guest struct {
	t   *testing.T
	mem *guestmem.Memory
}

func (g guest) u16(a uint64) uint16 { v, err := g.mem.Uint16(a); g.ok(err); return v }
func (g guest) u32(a uint64) uint32 { v, err := g.mem.Uint32(a); g.ok(err); return v }
func (g guest) u64(a uint64) uint64 { v, err := g.mem.Uint64(a); g.ok(err); return v }
func (g guest) ok(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g guest) bytes(a, n uint64) []byte {
	b, err := g.mem.Slice(a, n)
	g.ok(err)
	return b
}

func (g guest) str(a uint64) string {
	b := g.bytes(a, 4096)
	return string(b[:bytes.IndexByte(b, 0)])
}

func TestLoad(t *testing.T) {
	for _, bits := range []int{64, 32} {
		for _, zip := range []bool{false, true} {
			for _, fresh := range []bool{false, true} {
				t.Run(fmt.Sprintf("elf%d gzip=%v fresh=%v", bits, zip, fresh), func(t *testing.T) {
					spec := netbsd(bits)
					img := spec.build()
					if zip {
						img = pack(img)
					}
					mem := ram(t, 64<<20)
					if !fresh {
						dirty, _ := mem.Slice(0, 64<<20)
						for i := range dirty {
							dirty[i] = 0xEE
						}
					}
					initrd := pattern(12345, 0x33)
					e, err := Load(mem, file(img), Params{
						Cmdline: "root=ld0a console=com", CPUs: 2, LevelPins: 1<<5 | 1<<16,
						Modules:     []File{{bytes.NewReader(initrd), 12345, "a"}, {bytes.NewReader(initrd), 100, "b"}},
						FreshMemory: fresh,
					})
					if err != nil {
						t.Fatal(err)
					}
					g := guest{t, mem}
					if e.EIP != 0x200010 || e.OS != "NetBSD" || e.Gzip != zip {
						t.Errorf("entry %#x OS %q gzip %v", e.EIP, e.OS, e.Gzip)
					}
					if !bytes.Equal(g.bytes(0x200000, 0x3456), spec.progs[0].data) || !bytes.Equal(g.bytes(0x300000, 0x1001), spec.progs[1].data) {
						t.Error("segments differ from the file")
					}
					if !bytes.Equal(g.bytes(0x301001, 0x9000-0x1001), make([]byte, 0x9000-0x1001)) {
						t.Error("BSS is not zero")
					}
					si := uint64(e.StartInfo)
					if g.u32(si) != 0x336ec578 || g.u32(si+4) != 1 || g.u32(si+8) != 0 || g.u32(si+12) != 2 || g.u64(si+32) != 0 || g.u32(si+52) != 0 {
						t.Errorf("start_info: % x", g.bytes(si, 56))
					}
					if s := g.str(g.u64(si + 24)); s != "root=ld0a console=com" {
						t.Errorf("command line %q", s)
					}
					want := [][3]uint64{{0, 0x9FC00, 1}, {0x9FC00, 0x400, 2}, {1 << 20, 63 << 20, 1}}
					if int(g.u32(si+48)) != len(want) {
						t.Fatalf("%d map entries", g.u32(si+48))
					}
					for i, w := range want {
						a := g.u64(si+40) + uint64(i)*24
						if got := [3]uint64{g.u64(a), g.u64(a + 8), uint64(g.u32(a + 16))}; got != w || g.u32(a+20) != 0 {
							t.Errorf("map entry %d is %#x, want %#x", i, got, w)
						}
					}
					list := g.u64(si + 16)
					for i, n := range []uint64{12345, 100} {
						a, sz := g.u64(list+uint64(i)*32), g.u64(list+uint64(i)*32+8)
						if sz != n || a%4096 != 0 || a < 0x309000 || !bytes.Equal(g.bytes(a, sz), initrd[:n]) {
							t.Errorf("module %d at %#x, %d bytes", i, a, sz)
						}
						if e.Modules[i] != (Span{a, sz}) {
							t.Errorf("module %d reported as %v", i, e.Modules[i])
						}
					}
					if g.u16(0x40E) != 0x9FC0 || g.u16(0x413) != 639 {
						t.Errorf("BIOS data: EBDA %#x, base memory %d", g.u16(0x40E), g.u16(0x413))
					}
					// One page holds all that NetBSD copies to one page.
					if si>>12 != g.u64(si+24)>>12 || si>>12 != g.u64(si+40)>>12 || g.u64(si+24)+22 > si&^0xFFF+0x1000 {
						t.Error("start_info, map and command line are not in one page")
					}
				})
			}
		}
	}
}

// TestFill reads pieces around the sizes where the way of reading changes, in
// both ranges of RAM, and next to bytes that must stay.
func TestFill(t *testing.T) {
	data := pattern(fillMin+3*4096+77, 0x21)
	for _, gpa := range []uint64{0x100000, 0x100001, 0x100FFF, 1 << 32, 1<<32 + 0x123} {
		for _, n := range []uint64{0, 1, fillMin - 1, fillMin, fillMin + 1, fillMin + 2*4096} {
			mem := ram(t, guestmem.HoleStart+2<<20)
			w, _ := mem.Slice(gpa&^0xFFF, 1<<20)
			w[gpa&0xFFF+n] = 0xEE
			if gpa&0xFFF != 0 {
				w[gpa&0xFFF-1] = 0xEE
			}
			if err := fill(mem, file(data), 77, gpa, n); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(w[gpa&0xFFF:][:n], data[77:77+n]) || w[gpa&0xFFF+n] != 0xEE || gpa&0xFFF != 0 && w[gpa&0xFFF-1] != 0xEE {
				t.Errorf("%d bytes at %#x: wrong bytes in RAM", n, gpa)
			}
			if err := fill(mem, file(data[:n/2]), 0, gpa, n); n > 0 && err == nil {
				t.Errorf("%d bytes of a file of %d: no error", n, n/2)
			}
			mem.Close()
		}
	}
}

// TestLoadWritesOnlyWhatItStates compares all of RAM with what Entry and the
// package's comment say was written.
func TestLoadWritesOnlyWhatItStates(t *testing.T) {
	mem := ram(t, 8<<20)
	all, _ := mem.Slice(0, 8<<20)
	for i := range all {
		all[i] = 0xEE
	}
	e, err := Load(mem, file(netbsd(64).build()), Params{CPUs: MaxCPUs, LevelPins: 1<<24 - 1, Modules: []File{{strings.NewReader("initrd"), 6, "i"}}})
	if err != nil {
		t.Fatal(err)
	}
	stated := append([]Span{{0x40E, 2}, {0x413, 2}, {0x9000, 0x1000}, {0x9FC00, 0x400}}, e.Segments...)
	stated = append(stated, e.Modules...)
	for _, s := range stated {
		b, _ := mem.Slice(s.Addr, s.Size)
		for i := range b {
			b[i] = 0xEE
		}
	}
	for i, c := range all {
		if c != 0xEE {
			t.Fatalf("address %#x was written and lies in none of %v", i, stated)
		}
	}
}

func TestHighMemory(t *testing.T) {
	mem := ram(t, 5<<30)
	e, err := Load(mem, file(netbsd(64).build()), Params{CPUs: 1, FreshMemory: true, Modules: []File{{strings.NewReader("initrd"), 6, "i"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := []MapEntry{{Span{0, 0x9FC00}, TypeRAM}, {Span{0x9FC00, 0x400}, TypeReserved}, {Span{0x100000, 0xC0000000 - 0x100000}, TypeRAM}, {Span{1 << 32, 2 << 30}, TypeRAM}}
	if fmt.Sprint(e.Map) != fmt.Sprint(want) {
		t.Errorf("map %v, want %v", e.Map, want)
	}
	if e.Modules[0].Addr != 0xC0000000-0x1000 {
		t.Errorf("module at %v: want it at the top of low RAM", e.Modules[0])
	}
	spec := elfSpec{progs: []prog{{typ: 1, addr: 0x100000, data: pattern(16, 1)}, {typ: 1, addr: 1<<32 + 0x1000, data: pattern(99, 2)}, {typ: 4, data: entryNote32(0x100000)}}}
	if _, err := Load(mem, file(spec.build()), Params{CPUs: 1}); err != nil {
		t.Fatal(err)
	}
	if b, _ := mem.Slice(1<<32+0x1000, 99); !bytes.Equal(b, pattern(99, 2)) {
		t.Error("a segment above 4 GiB was not loaded")
	}
}

func TestEntryNotes(t *testing.T) {
	load := prog{typ: 1, addr: 0x100000, data: pattern(64, 9)}
	other := note("GNU", 3, []byte("0123456789abcdef0123"))
	prop := cat(other[:0], note("GNU", 5, pattern(16, 5)))
	for name, c := range map[string]struct {
		progs, sections []prog
		os              string
	}{
		"4 bytes":                 {progs: []prog{load, {typ: 4, data: entryNote32(0x100020)}}},
		"8 bytes":                 {progs: []prog{load, {typ: 4, data: entryNote64(0x100020)}}},
		"before the segments":     {progs: []prog{{typ: 4, data: entryNote32(0x100020)}, load}},
		"behind others":           {progs: []prog{load, {typ: 4, data: cat(other, prop, note("Xen", 6, []byte("linux")), entryNote64(0x100020))}}, os: "linux"},
		"in a second PT_NOTE":     {progs: []prog{load, {typ: 4, align: 8, data: prop}, {typ: 4, align: 4, data: entryNote32(0x100020)}}},
		"the first of two":        {progs: []prog{load, {typ: 4, data: cat(entryNote32(0x100020), entryNote32(0x100030))}}},
		"section only":            {progs: []prog{load}, sections: []prog{{typ: 1, data: []byte("x")}, {typ: 7, align: 4, data: entryNote32(0x100020)}}},
		"section beside PT_NOTE":  {progs: []prog{load, {typ: 4, data: other}}, sections: []prog{{typ: 7, data: entryNote32(0x100020)}}},
		"NetBSD's identification": {progs: []prog{load, {typ: 4, data: cat(note("NetBSD", 1, []byte{0, 0xE1, 0xF5, 5}), entryNote32(0x100020))}}, os: "NetBSD"},
	} {
		for _, bits := range []int{32, 64} {
			for _, zip := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/%v", name, bits, zip), func(t *testing.T) {
					img := elfSpec{bits: bits, progs: c.progs, sections: c.sections}.build()
					if zip {
						img = pack(img)
					}
					e, err := Load(ram(t, 4<<20), file(img), Params{CPUs: 1})
					if err != nil {
						t.Fatal(err)
					}
					if e.EIP != 0x100020 || e.OS != c.os {
						t.Errorf("entry %#x of %q", e.EIP, e.OS)
					}
				})
			}
		}
	}
}

// TestNotesInsideSegment has the notes where linkers put them: within a
// loaded segment, which a compressed file yields only once.
func TestNotesInsideSegment(t *testing.T) {
	text := cat(pattern(128, 4), entryNote32(0x100000))
	spec := elfSpec{progs: []prog{{typ: 1, addr: 0x100000, data: text}, {typ: 4, offset: 64 + 2*56 + 128, filesz: uint64(len(text) - 128)}}}
	for _, img := range [][]byte{spec.build(), pack(spec.build())} {
		if _, err := Load(ram(t, 4<<20), file(img), Params{CPUs: 1}); err != nil {
			t.Error(err)
		}
	}
}

func TestRefused(t *testing.T) {
	load := prog{typ: 1, addr: 0x100000, data: pattern(64, 9)}
	en := prog{typ: 4, data: entryNote32(0x100000)}
	elf := func(p ...prog) []byte { return elfSpec{progs: p}.build() }
	good := netbsd(64).build()
	patch := func(off int, b ...byte) []byte {
		c := bytes.Clone(good)
		copy(c[off:], b)
		return c
	}
	bz := make([]byte, 0x400)
	copy(bz[0x1FE:], "\x55\xAA\xeb\x66HdrS")
	zipped := pack(good)
	badSum := bytes.Clone(zipped)
	badSum[len(badSum)-8] ^= 1
	for name, c := range map[string]struct {
		img  []byte
		kind error
		says string
	}{
		"empty":               {nil, ErrNotELF, "empty"},
		"text":                {[]byte("#!/bin/sh\n"), ErrNotELF, "not an ELF"},
		"bzImage":             {bz, ErrNotELF, "extract its vmlinux"},
		"xz":                  {[]byte("\xFD7zXZ\x00\x00"), ErrNotELF, "xz"},
		"magic only":          {[]byte("\x7fELF"), ErrTruncated, "truncated"},
		"header only":         {good[:60], ErrTruncated, "truncated"},
		"no program headers":  {good[:64], ErrTruncated, "truncated"},
		"cut in the data":     {good[:0x2000], ErrTruncated, "the file has 8192"},
		"big-endian":          {elfSpec{data: 2, progs: []prog{load, en}}.build(), ErrMachine, "little-endian"},
		"arm64":               {elfSpec{machine: 183, progs: []prog{load, en}}.build(), ErrMachine, "machine 183"},
		"x86-64 in ELF32":     {elfSpec{bits: 32, machine: 62, progs: []prog{load, en}}.build(), ErrMachine, "ELF32"},
		"class 9":             {patch(4, 9), ErrMachine, "class 9"},
		"object file":         {elfSpec{typ: 1, progs: []prog{load, en}}.build(), ErrFormat, "type 1"},
		"phentsize":           {patch(54, 55), ErrFormat, "55 bytes"},
		"phnum":               {patch(56, 0xFF, 0xFF), ErrFormat, "65535 program headers"},
		"phnum 0":             {patch(56, 0, 0), ErrFormat, "without program headers"},
		"phoff beyond":        {patch(32, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF), ErrTruncated, "truncated"},
		"no note":             {elf(load), ErrNoNote, "not a PVH kernel"},
		"a program":           {elf(prog{typ: 1, addr: 0, data: pattern(0x500, 1)}), ErrNoNote, "not a PVH kernel"},
		"other notes":         {elf(load, prog{typ: 4, data: note("GNU", 18, []byte{0, 0, 0x10, 0})}), ErrNoNote, "not a PVH kernel"},
		"note of 2 bytes":     {elf(load, prog{typ: 4, data: note("Xen", 18, []byte{0, 0})}), ErrNoNote, "not a PVH kernel"},
		"nothing to load":     {elf(en), ErrFormat, "without loadable"},
		"entry outside":       {elf(load, prog{typ: 4, data: entryNote32(0x100040)}), ErrEntry, "0x100040"},
		"entry in BSS":        {elf(prog{typ: 1, addr: 0x100000, data: pattern(64, 1), memsz: 0x1000}, prog{typ: 4, data: entryNote32(0x100800)}), ErrEntry, "0x100800"},
		"entry over 4 GiB":    {elf(load, prog{typ: 4, data: entryNote64(1<<32 + 0x100000)}), ErrEntry, "beyond 4 GiB"},
		"too little memory":   {elf(load, en, prog{typ: 1, addr: 0x3FF000, data: pattern(16, 1), memsz: 0x1001}), ErrOutsideRAM, "segment 2 (0x3ff000-0x400000) does not fit into 4 MiB of memory: it takes at least 5 MiB (-m 5)"},
		"in the device hole":  {elf(load, en, prog{typ: 1, addr: 0xFEC00000, data: pattern(16, 1)}), ErrOutsideRAM, "devices"},
		"in the legacy hole":  {elf(load, en, prog{typ: 1, addr: 0x9F800, data: pattern(16, 1), memsz: 0x1000}), ErrOutsideRAM, "640 KiB"},
		"at 2^60":             {elf(load, en, prog{typ: 1, addr: 1 << 60, data: pattern(16, 1)}), ErrOutsideRAM, "beyond the 64 GiB"},
		"above 4 GiB":         {elf(load, en, prog{typ: 1, addr: 1 << 32, data: pattern(16, 1)}), ErrOutsideRAM, "at least 3073 MiB"},
		"address wraps":       {elf(load, en, prog{typ: 1, addr: 1<<64 - 8, data: pattern(16, 1)}), ErrFormat, "wrap"},
		"offset wraps":        {elf(load, en, prog{typ: 1, addr: 0x200000, offset: 1<<64 - 8, filesz: 16}), ErrFormat, "wrap"},
		"filesz over memsz":   {elf(load, en, prog{typ: 1, addr: 0x200000, data: pattern(16, 1), memsz: 8}), ErrFormat, "0x10 bytes in the file for 0x8"},
		"overlapping":         {elf(load, en, prog{typ: 1, addr: 0x10003F, data: pattern(16, 1)}), ErrOverlap, "segments 0 (0x100000-0x10003f) and 2 (0x10003f-0x10004e) overlap"},
		"on start_info":       {elf(load, en, prog{typ: 1, addr: 0x8000, data: pattern(16, 1), memsz: 0x1001}), ErrOverlap, "start_info"},
		"on the MP table":     {elf(load, en, prog{typ: 1, addr: 0x9FFFF, data: []byte{1}}), ErrOverlap, "MP table"},
		"on the BIOS data":    {elf(load, en, prog{typ: 1, addr: 0, data: pattern(0x401, 1)}), ErrOverlap, "BIOS data"},
		"notes of 1 GiB":      {elf(load, prog{typ: 4, offset: 8, filesz: 1 << 30}), ErrTruncated, "truncated"},
		"notes of 100 KiB":    {elf(load, prog{typ: 4, data: make([]byte, 100<<10)}), ErrFormat, "notes of"},
		"gzip of text":        {pack([]byte(strings.Repeat("hello", 100))), ErrNotELF, "inside gzip"},
		"gzip cut":            {zipped[:len(zipped)/2], ErrTruncated, "truncated"},
		"gzip cut at its end": {zipped[:len(zipped)-3], ErrTruncated, "truncated"},
		"gzip bad checksum":   {badSum, ErrFormat, "checksum"},
		"gzip bad header":     {[]byte("\x1f\x8b\x07"), ErrCompressed, "gzip"},
		"gzip bomb":           {pack(cat(good, make([]byte, 70<<20))), ErrCompressed, "more than"},
		"gzip out of order": {pack(elfSpec{progs: []prog{load, en, {typ: 4, offset: 4, filesz: 80}, {typ: 4, offset: 3, filesz: 80}, {typ: 4, offset: 2, filesz: 80}, {typ: 4, offset: 1, filesz: 80}}}.build()),
			ErrFormat, "unpack it first"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(ram(t, 4<<20), file(c.img), Params{CPUs: 1, FreshMemory: true})
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error %q (kind %v), want %v saying %q", err, errors.Unwrap(err), c.kind, c.says)
			}
			if !strings.HasPrefix(err.Error(), "netbsd: ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line that names the file: %q", err)
			}
		})
	}
}

func TestBadParams(t *testing.T) {
	long := strings.Repeat("x", 5000)
	linux := elfSpec{progs: []prog{{typ: 1, addr: 0x100000, data: pattern(64, 9)}, {typ: 4, data: cat(note("Xen", 6, []byte("linux\x00")), entryNote32(0x100000))}}}.build()
	plain := elfSpec{progs: []prog{{typ: 1, addr: 0x100000, data: pattern(64, 9)}, {typ: 4, data: entryNote32(0x100000)}}}.build()
	bsd := netbsd(64).build()
	mod := func(n int64) []File { return []File{{strings.NewReader(long), n, "ramdisk"}} }
	for name, c := range map[string]struct {
		img  []byte
		p    Params
		kind error
		says string
	}{
		"no CPU":           {bsd, Params{}, ErrParams, "0 processors"},
		"33 CPUs":          {bsd, Params{CPUs: 33}, ErrParams, "33 processors"},
		"pin 24":           {bsd, Params{CPUs: 1, LevelPins: 1 << 24}, ErrParams, "IOAPIC"},
		"NUL":              {bsd, Params{CPUs: 1, Cmdline: "a\x00b"}, ErrCmdline, "control"},
		"NetBSD 1024":      {bsd, Params{CPUs: 1, Cmdline: long[:1024]}, ErrCmdline, "NetBSD takes at most 1023: shorten it by 1"},
		"Linux 2050":       {linux, Params{CPUs: 1, Cmdline: long[:2050]}, ErrCmdline, "Linux takes at most 2047: shorten it by 3"},
		"a page":           {plain, Params{CPUs: 1, Cmdline: long[:4000]}, ErrCmdline, "33 bytes too many"},
		"more than a page": {plain, Params{CPUs: 1, Cmdline: long}, ErrCmdline, "shorten it by"},
		"17 modules":       {bsd, Params{CPUs: 1, Modules: make([]File, 17)}, ErrParams, "17 modules"},
		"empty module":     {bsd, Params{CPUs: 1, Modules: mod(0)}, ErrFormat, "ramdisk: initrd is empty"},
		"short module":     {bsd, Params{CPUs: 1, Modules: mod(5001)}, ErrTruncated, "ramdisk: initrd cannot be read"},
		"big module":       {bsd, Params{CPUs: 1, Modules: mod(5 << 20)}, ErrMemory, "ramdisk: initrd of 5242880 bytes does not fit"},
		"huge module":      {bsd, Params{CPUs: 1, Modules: mod(1<<63 - 1)}, ErrMemory, "does not fit"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(ram(t, 8<<20), file(c.img), c.p)
			if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Fatalf("error %q (kind %v), want %v saying %q", err, errors.Unwrap(err), c.kind, c.says)
			}
		})
	}
	for n, img := range map[int][]byte{1023: bsd, 2047: linux, 3967: plain} {
		if _, err := Load(ram(t, 8<<20), file(img), Params{CPUs: 1, Cmdline: long[:n]}); err != nil {
			t.Errorf("%d bytes of command line refused: %v", n, err)
		}
	}
}

type failingReader struct{ io.ReaderAt }

func (failingReader) ReadAt([]byte, int64) (int, error) { return 0, errors.New("input/output error") }

func TestReadErrors(t *testing.T) {
	img := netbsd(64).build()
	for name, f := range map[string]File{
		"failing":       {failingReader{}, 1 << 20, "netbsd"},
		"shrunk":        {bytes.NewReader(img[:0x2000]), int64(len(img)), "netbsd"},
		"negative size": {bytes.NewReader(img), -1, "netbsd"},
	} {
		_, err := Load(ram(t, 8<<20), f, Params{CPUs: 1})
		var e *Error
		if !errors.As(err, &e) || e.File != "netbsd" {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestRegs is the state docs/misc/pvh.pandoc demands and the VM-entry checks
// on it (Intel SDM vol. 3C §26.3.1.2).
func TestRegs(t *testing.T) {
	r := (&Entry{EIP: 0x201234, StartInfo: 0x9000}).Regs()
	if r.RIP != 0x201234 || r.RBX != 0x9000 || r.CR0 != 0x11 || r.CR4 != 0 || r.EFER != 0 || r.RFLAGS != 2 {
		t.Errorf("registers %+v", r)
	}
	for name, s := range map[string]Segment{"cs": r.CS, "ds": r.DS, "es": r.ES, "fs": r.FS, "gs": r.GS, "ss": r.SS} {
		code := name == "cs"
		if s.Base != 0 || s.Limit != 0xFFFFFFFF || !s.G || !s.DB || s.L || !s.S || !s.Present || s.DPL != 0 || s.Selector&7 != 0 || s.Unusable {
			t.Errorf("%s = %+v", name, s)
		}
		if want := map[bool]uint8{true: 11, false: 3}[code]; s.Type != want {
			t.Errorf("%s has type %d, want %d", name, s.Type, want)
		}
	}
	if tr := r.TR; tr.Type != 11 || tr.S || !tr.Present || tr.G || tr.Limit != 0x67 || tr.Base != 0 || tr.Selector&4 != 0 || tr.Unusable {
		t.Errorf("tr = %+v", tr)
	}
	if !r.LDT.Unusable {
		t.Errorf("ldtr = %+v", r.LDT)
	}
}
