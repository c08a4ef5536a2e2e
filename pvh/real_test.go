package pvh

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// TestRealNetBSD loads every NetBSD kernel in the user's cache, as
// `smolvmm kernel fetch` leaves it there, plain and compressed.
func TestRealNetBSD(t *testing.T) {
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("SKIPPED, no NetBSD kernel was loaded: %v", err)
	}
	found, err := filepath.Glob(filepath.Join(dir, "smolvmm", "kernels", "*", "netbsd-MICROVM"))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Skip("SKIPPED, no NetBSD kernel was loaded: none in the cache (`smolvmm kernel fetch` puts one there)")
	}
	for _, name := range found {
		t.Run(filepath.Base(filepath.Dir(name)), func(t *testing.T) {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			line, err := Cmdline("-z", []VirtioMMIO{{0x1000, 0xD0000000, 5}})
			if err != nil {
				t.Fatal(err)
			}
			plain, zipped := ram(t, 128<<20), ram(t, 128<<20)
			e, err := Load(plain, File{bytes.NewReader(b), int64(len(b)), name}, Params{CPUs: 1, Cmdline: line, FreshMemory: true})
			if err != nil {
				t.Fatal(err)
			}
			if e.OS != "NetBSD" {
				t.Errorf("its notes name it %q", e.OS)
			}
			z := pack(b)
			ez, err := Load(zipped, File{bytes.NewReader(z), int64(len(z)), name}, Params{CPUs: 1, Cmdline: line})
			if err != nil {
				t.Fatal(err)
			}
			x, _ := plain.Slice(0, 128<<20)
			y, _ := zipped.Slice(0, 128<<20)
			if !bytes.Equal(x, y) || e.EIP != ez.EIP {
				t.Error("the compressed kernel loads differently")
			}
			t.Logf("%d bytes, entry %#x, segments %v", len(b), e.EIP, e.Segments)
		})
	}
}

// benchImage writes a kernel of 10 MiB to a file: 8 MiB of text, 2 of data,
// 4 of BSS.
func benchImage(b *testing.B) *os.File {
	spec := netbsd(64)
	spec.progs[0].data = pattern(8<<20, 3)
	spec.progs[1] = prog{typ: 1, addr: 0xC00000, data: pattern(2<<20, 5), memsz: 6 << 20}
	f, err := os.Create(filepath.Join(b.TempDir(), "netbsd"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	if _, err := f.Write(spec.build()); err != nil {
		b.Fatal(err)
	}
	return f
}

// benchFresh runs load with RAM that no one has touched, as at every start.
func benchFresh(b *testing.B, load func(*guestmem.Memory)) {
	b.SetBytes(10 << 20)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		mem, err := guestmem.New(128<<20, guestmem.Transparent)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		load(mem)
		b.StopTimer()
		mem.Close()
		b.StartTimer()
	}
}

// BenchmarkLoad against BenchmarkPread says what Load costs beyond reading
// the same bytes to the same place.
func BenchmarkLoad(b *testing.B) {
	f := benchImage(b)
	st, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	benchFresh(b, func(mem *guestmem.Memory) {
		if _, err := Load(mem, File{f, st.Size(), "netbsd"}, Params{CPUs: 1, Cmdline: "root=ld0a console=com", FreshMemory: true}); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkPread(b *testing.B) {
	f := benchImage(b)
	benchFresh(b, func(mem *guestmem.Memory) {
		for _, s := range []struct{ addr, off, n uint64 }{{0x200000, 232, 8 << 20}, {0xC00000, 232 + 8<<20, 2 << 20}} {
			p, err := mem.Slice(s.addr, s.n)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := f.ReadAt(p, int64(s.off)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
