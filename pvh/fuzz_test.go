package pvh

import (
	"bytes"
	"runtime/metrics"
	"testing"

	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// fuzzRAM is small so that a check of all of it is cheap.
const fuzzRAM = 4 << 20

// fuzzAlloc bounds what one Load may allocate, in bytes: headers, notes, a
// section table, the gzip reader and its errors.
const fuzzAlloc = 1 << 20

func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

func FuzzLoad(f *testing.F) {
	for _, bits := range []int{64, 32} {
		img := netbsd(bits) // with little in it: small seeds are soon minimised
		img.progs[0].data, img.progs[1].data = pattern(40, 1), pattern(24, 2)
		img.sections = []prog{{typ: 7, data: entryNote32(0x200000)}}
		f.Add(img.build(), "root=ld0a console=com", uint32(1<<5), []byte("initrd"))
		f.Add(pack(img.build()), "", uint32(0), []byte{})
		img.progs = img.progs[:2]
		f.Add(img.build(), "-z", uint32(1<<16), []byte("x"))
		f.Add(pack(img.build()), "-z", uint32(1<<16), []byte("x"))
	}
	mem, err := guestmem.New(fuzzRAM, guestmem.Transparent)
	if err != nil {
		f.Fatal(err)
	}
	all, err := mem.Slice(0, fuzzRAM)
	if err != nil {
		f.Fatal(err)
	}
	untouched := bytes.Repeat([]byte{0xEE}, fuzzRAM)
	copy(all, untouched)
	f.Fuzz(func(t *testing.T, img []byte, cmdline string, pins uint32, initrd []byte) {
		p := Params{Cmdline: cmdline, CPUs: 1 + int(pins>>27), LevelPins: pins & (1<<IOAPICPins - 1)}
		if len(initrd) > 0 {
			p.Modules = []File{{bytes.NewReader(initrd), int64(len(initrd)), "initrd"}}
		}
		before := allocated()
		e, err := Load(mem, file(img), p)
		if n := allocated() - before; n > fuzzAlloc {
			t.Fatalf("Load of %d bytes allocated %d", len(img), n)
		}
		defer copy(all, untouched)
		if err != nil {
			if len(err.Error()) > 4<<10 || bytes.ContainsAny([]byte(err.Error()), "\n\r\x00") {
				t.Fatalf("not one plain line: %q", err)
			}
			return
		}
		inside := false
		for _, s := range e.Segments {
			inside = inside || uint64(e.EIP) >= s.Addr && uint64(e.EIP) < s.End()
		}
		if !inside {
			t.Fatalf("entry %#x is in none of %v", e.EIP, e.Segments)
		}
		stated := append([]Span{{0x40E, 2}, {0x413, 2}, {0x9000, 0x1000}, {0x9FC00, 0x400}}, e.Segments...)
		for _, s := range append(stated, e.Modules...) {
			copy(all[s.Addr:s.End()], untouched)
		}
		if !bytes.Equal(all, untouched) {
			t.Fatalf("memory outside %v was written", stated)
		}
	})
}

func FuzzNotes(f *testing.F) {
	f.Add(cat(note("GNU", 3, pattern(20, 1)), note("Xen", 6, []byte("NetBSD\x00")), entryNote32(0x200000)), true)
	f.Add(cat(note("NetBSD", 1, []byte{1, 2, 3, 4}), entryNote64(0x200000)), false)
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x12\x00\x00\x00Xen\x00"), false)
	f.Fuzz(func(t *testing.T, b []byte, wide bool) {
		align := uint64(4)
		if wide {
			align = 8
		}
		var n notes
		n.scan(b, align)
		if len(n.os) > 32 {
			t.Fatalf("OS name of %d bytes", len(n.os))
		}
		// A note found is in the bytes: type 18 and its owner.
		if n.found && !bytes.Contains(b, []byte("\x12\x00\x00\x00Xen")) {
			t.Fatalf("entry %#x out of nothing", n.entry)
		}
	})
}
