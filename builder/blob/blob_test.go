package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/tree"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	must(t, err)
	return s
}

// temps gives what is being written.
func temps(t testing.TB, s *Store) []os.DirEntry {
	t.Helper()
	e, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	must(t, err)
	return e
}

const abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // FIPS 180-4's example

func TestWriteAndRead(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "a", "store"))
	w, err := s.Create()
	must(t, err)
	for _, p := range []string{"a", "", "bc"} {
		if _, err := io.WriteString(w, p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Open(abc); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there before it is whole: %v", err)
	}
	b, err := w.Commit()
	must(t, err)
	must(t, w.Close())
	if b.Digest() != abc || b.Size() != 3 {
		t.Errorf("committed %s of %d bytes", b.Digest(), b.Size())
	}
	for _, again := range []*Store{s, open(t, s.Dir())} {
		b, err := again.Open(abc)
		must(t, err)
		if got, err := tree.ReadAll(b, 10); err != nil || string(got) != "abc" {
			t.Errorf("read %q, %v", got, err)
		}
		must(t, again.Verify(t.Context(), abc))
		must(t, again.Sync())
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a write after the commit: %v", err)
	}
	if _, err := w.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a second commit: %v", err)
	}
	if left := temps(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, bad := range []string{"", "sha256:", "../../etc/passwd", "sha256:../" + strings.Repeat("a", 61), strings.ToUpper(abc)} {
		if _, err := s.Open(bad); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%q): %v", bad, err)
		}
		if err := s.Remove(bad); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Remove(%q): %v", bad, err)
		}
	}
}

func TestAbort(t *testing.T) {
	s := open(t, t.TempDir())
	w, err := s.Create()
	must(t, err)
	w.Write(make([]byte, small+1))
	if len(temps(t, s)) != 1 {
		t.Error("where is it written to?")
	}
	must(t, w.Close())
	must(t, w.Close())
	if left := temps(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Put(ctx, tree.Bytes("abc")); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled Put: %v", err)
	}
	if _, err := s.Put(t.Context(), tree.Ref{Sum: abc, Bytes: 3}); err == nil {
		t.Error("a content that cannot be opened was put")
	}
	if _, err := s.Put(t.Context(), lying{tree.Bytes("abd")}); !errors.Is(err, ErrDamaged) {
		t.Errorf("a content with the digest of another: %v", err)
	}
	if left := temps(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if all, err := s.List(); err != nil || len(all) > 0 {
		t.Errorf("in the store: %v, %v", all, err)
	}
}

type lying struct{ tree.Bytes }

func (lying) Digest() string { return abc }

// TestSweep: what a killed process left goes when the store is opened, what
// another is writing stays.
func TestSweep(t *testing.T) {
	s := open(t, t.TempDir())
	must(t, os.WriteFile(filepath.Join(s.dir, "tmp", "dead"), []byte("half"), 0o600))
	must(t, unix.Mkfifo(filepath.Join(s.dir, "tmp", "fifo"), 0o600)) // opening it may not wait for a writer
	w, err := s.Create()
	must(t, err)
	defer w.Close()
	want := strings.Repeat("x", small) + "abc"
	if _, err := io.WriteString(w, want[:small+1]); err != nil {
		t.Fatal(err)
	}
	must(t, os.WriteFile(filepath.Join(s.dir, "tmp", "young"), []byte("small"), 0o600)) // as small ones are written
	old := time.Now().Add(-time.Hour)
	for _, e := range temps(t, s) {
		if e.Name() != "young" {
			must(t, os.Chtimes(filepath.Join(s.dir, "tmp", e.Name()), old, old))
		}
	}
	open(t, s.dir)
	must(t, os.Remove(filepath.Join(s.dir, "tmp", "young")))
	if left := temps(t, s); len(left) != 1 || left[0].Name() != filepath.Base(w.f.Name()) {
		t.Errorf("left: %v", left)
	}
	if _, err := io.WriteString(w, want[small+1:]); err != nil {
		t.Fatal(err)
	}
	if b, err := w.Commit(); err != nil || b.Digest() != tree.Bytes(want).Digest() {
		t.Errorf("commit after a sweep: %v, %v", b, err)
	}
}

func TestDamaged(t *testing.T) {
	s := open(t, t.TempDir())
	b, err := s.Put(t.Context(), tree.Bytes("abc"))
	must(t, err)
	damage := func(text string) {
		must(t, os.Chmod(b.Path(), 0o600))
		must(t, os.WriteFile(b.Path(), []byte(text), 0o600))
	}
	damage("abd")
	if err := s.Verify(t.Context(), abc); !errors.Is(err, ErrDamaged) {
		t.Errorf("Verify of other bytes: %v", err)
	}
	damage("") // as after a power failure
	if _, err := s.Content(abc, 3); !errors.Is(err, ErrDamaged) {
		t.Errorf("Content of another size: %v", err)
	}
	if _, err := b.Open(); !errors.Is(err, ErrDamaged) {
		t.Errorf("Open of another size: %v", err)
	}
	if _, err := s.Put(t.Context(), tree.Bytes("abc")); err != nil {
		t.Error(err)
	}
	if err := s.Verify(t.Context(), abc); err != nil {
		t.Errorf("putting it again does not mend it: %v", err)
	}
	if c, err := s.Content(abc, 3); err != nil || c != b {
		t.Errorf("Content: %v, %v", c, err)
	}
	ref, err := s.Ref(abc, 3)
	if err != nil || ref != b {
		t.Errorf("Ref: %v, %v", ref, err)
	}
	if _, err := s.Ref("sha256:../x", 3); err == nil {
		t.Error("Ref takes what is no digest")
	}
	must(t, os.Remove(b.Path()))
	if _, err := ref.Open(); !errors.Is(err, ErrGone) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a content that is gone: %v", err)
	}
	must(t, os.Mkdir(b.Path(), 0o700))
	if _, err := s.Open(abc); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder in a content's place: %v", err)
	}
}

// TestHoles: a terabyte of which little is there takes little on the host, here
// with a gigabyte so that hashing it takes no minutes.
func TestHoles(t *testing.T) {
	const size = 256 << 20
	s := open(t, t.TempDir())
	w, err := s.Create()
	must(t, err)
	defer w.Close()
	must(t, w.Hole(t.Context(), 64<<20))
	w.Write(bytes.Repeat([]byte{1}, 100_000))
	must(t, w.Hole(t.Context(), size-w.Size()))
	b, err := w.Commit()
	must(t, err)
	check := func(s *Store, b Blob) {
		t.Helper()
		st, err := os.Stat(b.Path())
		must(t, err)
		var sys unix.Stat_t
		must(t, unix.Stat(b.Path(), &sys))
		if st.Size() != size || b.Size() != size || sys.Blocks*512 > 1<<20 {
			t.Errorf("%d bytes in %d blocks", st.Size(), sys.Blocks)
		}
		runs, err := tree.Extents(b)
		must(t, err)
		sum := int64(0)
		for _, e := range runs {
			sum += e.Len
		}
		if len(runs) == 0 || sum < 100_000 || sum > 1<<20 || runs[0].Off > 64<<20 {
			t.Errorf("extents: %v", runs)
		}
		must(t, s.Verify(t.Context(), b.Digest()))
	}
	check(s, b)
	other := open(t, t.TempDir())
	c, err := other.Put(t.Context(), b)
	must(t, err)
	if c.Digest() != b.Digest() {
		t.Errorf("copied %s to %s", b.Digest(), c.Digest())
	}
	check(other, c)
	w, err = s.Create()
	must(t, err)
	defer w.Close()
	if err := w.Hole(t.Context(), -1); err == nil {
		t.Error("a negative hole")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w, err = s.Create()
	must(t, err)
	defer w.Close()
	if err := w.Hole(ctx, 1<<62); !errors.Is(err, context.Canceled) {
		t.Errorf("a huge hole, cancelled: %v", err)
	}
}

func TestListAndPrune(t *testing.T) {
	s := open(t, t.TempDir())
	var want []string
	for i := range 20 {
		b, err := s.Put(t.Context(), tree.Bytes(fmt.Sprint(i)))
		must(t, err)
		want = append(want, b.Digest())
	}
	slices.Sort(want)
	must(t, os.WriteFile(filepath.Join(filepath.Dir(s.path(want[0])), "README"), nil, 0o600))
	list := func() (got []string) {
		all, err := s.List()
		must(t, err)
		for _, b := range all {
			got = append(got, b.Digest())
		}
		return got
	}
	if got := list(); !slices.Equal(got, want) {
		t.Errorf("List: %q", got)
	}
	release, err := s.Hold()
	must(t, err)
	second, err := open(t, s.dir).Hold()
	must(t, err)
	if _, _, err := s.Prune(t.Context(), func(string) bool { return false }); !errors.Is(err, ErrInUse) {
		t.Errorf("Prune of a store in use: %v", err)
	}
	release()
	second()
	n, size, err := s.Prune(t.Context(), func(d string) bool { return d == want[3] || d == want[7] })
	if err != nil || n != 18 || size < 18 || size > 36 {
		t.Errorf("Prune: %d, %d, %v", n, size, err)
	}
	if got := list(); !slices.Equal(got, []string{want[3], want[7]}) {
		t.Errorf("after Prune: %q", got)
	}
	must(t, s.Remove(want[3]))
	if err := s.Remove(want[3]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove twice: %v", err)
	}
}

// TestTogether has stores of one folder, as of several processes, write the
// same contents and others while each sweeps.
func TestTogether(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 0))
			for range 40 {
				s, err := Open(dir)
				if err != nil {
					t.Error(err)
					return
				}
				n := r.IntN(30)
				if n > 20 {
					n += small - 25 // some wait in memory, some do not
				}
				b, err := s.Put(t.Context(), tree.Bytes(strings.Repeat("x", n)))
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := tree.ReadAll(b, 1<<20); err != nil || len(got) != n {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
	s := open(t, dir)
	all, err := s.List()
	must(t, err)
	for _, b := range all {
		must(t, s.Verify(t.Context(), b.Digest()))
	}
	if len(all) < 10 || len(all) > 30 || len(temps(t, s)) > 0 {
		t.Errorf("%d contents, %d left", len(all), len(temps(t, s)))
	}
}

func TestImport(t *testing.T) {
	s := open(t, t.TempDir())
	tr := tree.New()
	f := tree.NewFile(0o644, tree.Bytes("abc"))
	must(t, tr.Put("a/b", f))
	must(t, tr.Put("a/c", f))
	must(t, tr.Put("empty", tree.NewFile(0o644, tree.Bytes{})))
	must(t, tr.Put("link", tree.NewSymlink("a")))
	before, err := tr.Digest()
	must(t, err)
	must(t, s.Import(t.Context(), tr))
	if d, err := tr.Digest(); err != nil || d != before {
		t.Errorf("another tree: %s, %v", d, err)
	}
	n, err := tr.Lookup("a/c")
	must(t, err)
	if b, ok := n.Content.(Blob); !ok || b.Digest() != abc {
		t.Errorf("content: %v", n.Content)
	}
	if all, err := s.List(); err != nil || len(all) != 1 {
		t.Errorf("contents: %v, %v", all, err)
	}
	must(t, tr.Put("gone", tree.NewFile(0o644, tree.Ref{Sum: abc, Bytes: 3})))
	if err := s.Import(t.Context(), tr); err == nil || !strings.Contains(err.Error(), `"gone"`) {
		t.Errorf("a content that is not at hand: %v", err)
	}
	// The tree through its encoding, with the contents from the store.
	var b bytes.Buffer
	must(t, tr.Remove("gone"))
	must(t, tr.Encode(&b))
	back, err := tree.Decode(&b, s.Content)
	must(t, err)
	n, err = back.Lookup("a/b")
	must(t, err)
	if got, err := tree.ReadAll(n.Content, 10); err != nil || string(got) != "abc" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestOpenFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := Open(filepath.Join(file, "store")); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a store in a file: %v", err)
	}
}

func BenchmarkPut4K(b *testing.B) {
	s := open(b, b.TempDir())
	c := make(tree.Bytes, 4096)
	b.SetBytes(4096)
	for i := range b.N {
		c[0], c[1], c[2], c[3] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
		if _, err := s.Put(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}
