package demo

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// The kernel is what a PVH loader wants: a note with a 32-bit entry inside a
// loaded, executable segment.
func TestKernelIsPVH(t *testing.T) {
	f, err := elf.NewFile(Kernel())
	if err != nil {
		t.Fatal(err)
	}
	var entry uint64
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		note := make([]byte, p.Filesz)
		if _, err := p.ReadAt(note, 0); err != nil {
			t.Fatal(err)
		}
		const xenPhys32Entry = 18 // XEN_ELFNOTE_PHYS32_ENTRY
		want := []byte{4, 0, 0, 0, 8, 0, 0, 0, xenPhys32Entry, 0, 0, 0, 'X', 'e', 'n', 0}
		if !bytes.HasPrefix(note, want) {
			t.Fatalf("note % x", note)
		}
		entry = binary.LittleEndian.Uint64(note[len(want):])
	}
	inside := false
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		if p.Paddr < 1<<20 || p.Paddr+p.Memsz > 2<<20 {
			t.Errorf("segment %#x+%#x is not in the second MiB", p.Paddr, p.Memsz)
		}
		inside = inside || p.Flags&elf.PF_X != 0 && entry >= p.Paddr && entry < p.Paddr+p.Filesz
	}
	if !inside {
		t.Errorf("entry %#x is in no executable segment", entry)
	}
	// The first instructions: mov $PortMark,%dx; mov $MarkEntry,%al; out %al,(%dx).
	text := f.Section(".text")
	code := make([]byte, 7)
	if _, err := text.ReadAt(code, int64(entry-text.Addr)); err != nil {
		t.Fatal(err)
	}
	if want := []byte{0x66, 0xba, PortMark & 0xff, PortMark >> 8, 0xb0, MarkEntry, 0xee}; !bytes.Equal(code, want) {
		t.Errorf("the guest begins with % x, want % x", code, want)
	}
}

// The list of modes is the guest's own, and README.md tells of each mode and
// each hostile case.
func TestModesAreTheGuests(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	find := func(pattern, re string) (names []string) {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		for _, name := range files {
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(re).FindAllSubmatch(src, -1) {
				names = append(names, string(m[1]))
			}
		}
		return names
	}
	have := append(find("guest/main.c", `(?m)^\t\{ "([a-z]+)", \w+ \},$`), "floor")
	var want []string
	for _, m := range Modes() {
		want = append(want, m.Name)
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("the guest has the modes %q, Modes lists %q", have, want)
	}
	cases := find("guest/hostile_*.c", `(?m)^\t\{ "([a-z0-9_-]+)", \w+, `)
	if len(cases) < 50 {
		t.Errorf("only %d hostile cases found", len(cases))
	}
	for _, name := range append(have, cases...) {
		if !bytes.Contains(readme, []byte("`"+name)) {
			t.Errorf("README.md does not tell of %s", name)
		}
	}
}

func TestParseLine(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Line
		ok   bool
	}{
		{"demo: ok blk dev=0 sectors=16 ro=1\r\n", Line{OK, "blk", "dev=0 sectors=16 ro=1"}, true},
		{"demo: FAIL heap no memory", Line{Fail, "heap", "no memory"}, true},
		{"demo: time clocks us=7316\n", Line{Time, "clocks", "us=7316"}, true},
		{"demo: done ok=3 fail=0 skip=1", Line{Done, "", "ok=3 fail=0 skip=1"}, true},
		{"demo: count n=256 ticks=8", Line{Count, "", "n=256 ticks=8"}, true},
		{"demo: ok", Line{}, false},
		{"demo: perhaps x", Line{}, false},
		{"demo:ok x", Line{}, false},
		{"", Line{}, false},
	} {
		got, ok := ParseLine(c.in)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%q: %+v %v", c.in, got, ok)
		}
	}
	l, _ := ParseLine("demo: ok x ab=1 b=2 c")
	if v, ok := l.Value("b"); v != "2" || !ok {
		t.Errorf("b is %q, %v", v, ok)
	}
	if _, ok := l.Value("c"); ok {
		t.Error("c has a value")
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add("demo: ok blk dev=0 sectors=16 ro=1\r\n", "ro")
	f.Add("demo: done ok=3 fail=0 skip=1", "fail")
	f.Fuzz(func(t *testing.T, s, key string) {
		if l, ok := ParseLine(s); ok {
			l.Value(key)
		}
	})
}
