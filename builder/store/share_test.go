package store

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// TestShare: contents are found on a disk wherever their blocks are, and are the
// same when they are taken from there.
func TestShare(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	const u = shareUnit
	disk := make([]byte, 4<<20)
	place := func(b []byte, at int) { copy(disk[at:], b) }
	contents := map[string][]byte{
		"small": []byte("a few bytes"), "unit": noise(u), "tail": noise(5*u + 77), "large": noise(700_000), "split": noise(40*u + 1), "same start": nil,
		"zeros": make([]byte, 3*u+5), "holes": slices.Concat(make([]byte, 7*u), noise(3*u), make([]byte, 100*u), noise(9)),
		"absent": noise(3 * u), "half absent": noise(6 * u), "unaligned": noise(4 * u), "longer": noise(2 * u),
	}
	contents["same start"] = slices.Concat(contents["large"][:u], noise(u))
	for name, at := range map[string]int{"small": 10 * u, "unit": 11 * u, "tail": 20 * u, "large": 100 * u, "same start": 600 * u, "unaligned": 700*u + 512} {
		place(contents[name], at)
	}
	place(contents["split"][:16*u], 30*u)
	place(contents["split"][16*u:], 1000*u) // as behind an indirect block
	place(contents["holes"][7*u:10*u], 800*u)
	place(contents["holes"][110*u:], 810*u)
	place(contents["half absent"][:3*u], 820*u)
	place(append(contents["longer"][:u:u], contents["longer"][u:u+9]...), len(disk)-u-9)
	d, err := s.blobs.Put(t.Context(), tree.Bytes(disk))
	must(t, err)
	var list []blob.Blob
	for _, b := range contents {
		c, err := s.blobs.Put(t.Context(), tree.Bytes(b))
		must(t, err)
		list = append(list, c)
	}
	sh, err := newSharer(t.Context(), d)
	must(t, err)
	defer sh.disk.Close()
	table, own, err := sh.shared(t.Context(), list)
	must(t, err)
	var missing []string
	m := sharedReader{table, d.Size()}
	for _, c := range list {
		b, err := tree.ReadAll(c, 1<<30)
		must(t, err)
		runs, ok, err := m.next(c.Size())
		must(t, err)
		if !ok {
			for name, other := range contents {
				if bytes.Equal(b, other) {
					missing = append(missing, name)
				}
			}
			continue
		}
		var got bytes.Buffer
		if _, err := got.ReadFrom(&runReader{disk: sh.disk, runs: runs, size: c.Size()}); err != nil || !bytes.Equal(got.Bytes(), b) {
			t.Errorf("%d bytes in %v are others, %v", len(b), runs, err)
		}
		if len(runs) > 2 {
			t.Errorf("%d bytes in %d runs", len(b), len(runs))
		}
	}
	slices.Sort(missing)
	if want := []string{"absent", "half absent", "longer", "unaligned"}; !slices.Equal(missing, want) || len(own) != len(want) || len(m.b) != 0 {
		t.Errorf("not found: %q, want %q; %d bytes of the map are left", missing, want, len(m.b))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// FuzzShared: no map leads a reader out of the disk or gives a content another
// length.
func FuzzShared(f *testing.F) {
	f.Add([]byte{3, 1, 3, 2, 1, 0, 4}, int64(9))
	f.Add([]byte{1, 0, 2, 0, 0, 200, 1}, int64(200))
	f.Add(bytes.Repeat([]byte{0xff}, 11), int64(1))
	disk := bytes.Repeat([]byte("disk"), 1024)
	name := filepath.Join(f.TempDir(), "disk")
	must(f, os.WriteFile(name, disk, 0o600))
	f.Fuzz(func(t *testing.T, table []byte, size int64) {
		size = max(0, size) % (1 << 14)
		m := sharedReader{table, int64(len(disk))}
		for len(m.b) > 0 {
			runs, ok, err := m.next(size)
			if err != nil {
				return
			}
			if !ok {
				continue
			}
			var got bytes.Buffer
			if _, err := got.ReadFrom(&runReader{disk: bytes.NewReader(disk), runs: runs, size: size}); err != nil || int64(got.Len()) != size {
				t.Fatalf("%d bytes of %d, %v", got.Len(), size, err)
			}
		}
	})
}
