package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

const diskSize = 8 << 20

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ref(t testing.TB, s string) spec.Reference {
	t.Helper()
	r, err := spec.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// makeDisk gives a disk with two runs of data and holes around them.
func makeDisk(t testing.TB, seed int64) File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 40<<10)
	rand.New(rand.NewSource(seed)).Read(data)
	_, err = f.WriteAt(data, 64<<10)
	_, err2 := f.WriteAt(data, 5<<20)
	if err := errors.Join(err, err2, f.Truncate(diskSize)); err != nil {
		t.Fatal(err)
	}
	c, err := OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sample is an image with everything.
func sample(t testing.TB, seed int64, names ...string) Put {
	t.Helper()
	root := tree.New()
	for i := range 3 {
		content := bytes.Repeat([]byte{byte(seed), byte(i + 1)}, 1000*(i+1))
		if err := root.Put(fmt.Sprintf("/bin/p%d", i), tree.NewFile(0o755, tree.Bytes(content))); err != nil {
			t.Fatal(err)
		}
	}
	p := Put{
		Image: spec.Image{
			Architecture: "amd64", OS: "netbsd", Created: "2026-01-02T03:04:05Z",
			Config: spec.Config{Cmd: []string{"/bin/p0"}, Env: []string{"A=b"}},
			Memory: 64 << 20, Disk: spec.Disk{Layout: spec.LayoutFFS, Root: "ld0a"},
		},
		Disk: makeDisk(t, seed), Kernel: tree.Bytes(fmt.Sprintf("kernel %d", seed)), Tree: root,
	}
	for _, n := range names {
		p.Names = append(p.Names, ref(t, n))
	}
	return p
}

func put(t testing.TB, s *Store, seed int64, names ...string) Entry {
	t.Helper()
	e, err := s.Put(t.Context(), sample(t, seed, names...))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// sameDisk compares the stored disk with what was put, holes included.
func sameDisk(t *testing.T, e Entry, want File) {
	t.Helper()
	got, err := os.ReadFile(e.Disk.Path())
	if err != nil {
		t.Fatal(err)
	}
	orig, err := os.ReadFile(want.path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, orig) {
		t.Error("the disk has other bytes")
	}
	if room, _ := onDisk(e.Disk.Path()); room > 256<<10 {
		t.Errorf("the disk takes %d bytes: where are its holes?", room)
	}
}

func TestPutAndResolve(t *testing.T) {
	s := open(t)
	p := sample(t, 1, "web", "localhost:5000/team/web:1.0")
	e, err := s.Put(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	sameDisk(t, e, p.Disk.(File))
	for _, name := range []string{"web", "web:latest", "localhost:5000/team/web:1.0", e.ID, ShortID(e.ID), e.ID[7:11], "web@" + e.ID, "web:latest@" + e.ID} {
		got, err := s.Resolve(name)
		if err != nil || got.ID != e.ID || !slices.Equal(got.Names, []string{"localhost:5000/team/web:1.0", "web:latest"}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, want := range map[string]error{"web:2": ErrNotFound, "web:2@" + e.ID: ErrNotFound, "sha256:" + strings.Repeat("0", 64): ErrNotFound, e.ID[7:10]: ErrNotFound} {
		if _, err := s.Resolve(name); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Resolve("We b"); err == nil {
		t.Error("a bad name was looked for")
	}
	// The description says what is there.
	img, err := spec.Parse(e.Document)
	if err != nil || img.Disk.Digest != e.Disk.Digest() || img.Disk.Size != diskSize || img.Kernel.Digest != e.Kernel.Digest() || img.Tree != e.Tree.Digest() {
		t.Errorf("%+v, %v", img, err)
	}
	root, err := s.OpenTree(e)
	if err != nil {
		t.Fatal(err)
	}
	n, err := root.Lookup("/bin/p2")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := tree.ReadAll(n.Content, 1<<20); err != nil || len(b) != 6000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	// The same again is the same, and what is not valid is not stored.
	again, err := s.Put(t.Context(), sample(t, 1, "web"))
	if err != nil || again.ID != e.ID {
		t.Errorf("%s, %v", again.ID, err)
	}
	bad := sample(t, 2, "bad")
	bad.Image.Disk.Layout = "zfs"
	if _, err := s.Put(t.Context(), bad); err == nil {
		t.Error("a bad description was stored")
	}
	if all, err := s.List(); err != nil || len(all) != 1 {
		t.Errorf("%d images, %v", len(all), err)
	}
}

func TestNamesMove(t *testing.T) {
	s := open(t)
	one, two := put(t, s, 1, "web"), put(t, s, 2, "web", "db")
	if e, err := s.Resolve("web"); err != nil || e.ID != two.ID {
		t.Fatalf("%v", err)
	}
	if e, err := s.Resolve(one.ID); err != nil || len(e.Names) != 0 || e.Name() != ShortID(one.ID) {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := s.Tag(ShortID(one.ID), ref(t, "web:old")); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Resolve("web:old"); err != nil || e.ID != one.ID {
		t.Fatal(err)
	}
	if _, err := s.Tag("nothing", ref(t, "x")); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := s.Tag("web", ref(t, "x@"+one.ID)); err == nil {
		t.Error("a digest was given as a name")
	}
}

func blobs(t *testing.T, s *Store) int {
	t.Helper()
	all, err := s.blobs.List()
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestRemove(t *testing.T) {
	s := open(t)
	one := put(t, s, 1, "a", "b")
	before := blobs(t, s)
	two := put(t, s, 2, "c")
	if _, err := s.Remove(t.Context(), one.ID, RemoveOptions{}); err == nil || !strings.Contains(err.Error(), "2 names") {
		t.Fatal(err)
	}
	gone, err := s.Remove(t.Context(), "a", RemoveOptions{})
	if err != nil || len(gone.IDs) != 0 || !slices.Equal(gone.Names, []string{"a:latest"}) {
		t.Fatalf("%+v, %v", gone, err)
	}
	if gone, err = s.Remove(t.Context(), two.ID, RemoveOptions{}); err != nil || len(gone.IDs) != 1 || gone.Blobs == 0 || gone.Bytes == 0 {
		t.Fatalf("%+v, %v", gone, err)
	}
	if n := blobs(t, s); n != before {
		t.Errorf("%d contents, want %d", n, before)
	}
	if e, err := s.Resolve("b"); err != nil || e.ID != one.ID {
		t.Error(err)
	}
	if _, err := s.OpenTree(one); err != nil {
		t.Error(err)
	}
	if gone, err = s.Remove(t.Context(), "b", RemoveOptions{}); err != nil || blobs(t, s) != 0 {
		t.Errorf("%+v, %v, %d contents left", gone, err, blobs(t, s))
	}
	if _, err := s.Remove(t.Context(), "b", RemoveOptions{Force: true}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestPrune(t *testing.T) {
	s := open(t)
	put(t, s, 1, "web")
	put(t, s, 2, "web") // the first has no name now
	loose, err := s.blobs.Put(t.Context(), tree.Bytes("of a build that is at work"))
	if err != nil {
		t.Fatal(err)
	}
	there := func() bool { _, err := s.blobs.Open(loose.Digest()); return err == nil }
	if gone, err := s.Prune(t.Context(), PruneOptions{Unnamed: true, Grace: time.Hour}); err != nil || gone.Blobs != 0 || len(gone.IDs) != 0 || !there() {
		t.Fatalf("young ones went: %+v, %v", gone, err)
	}
	future := time.Now().Add(-2 * time.Second)
	if err := os.Chtimes(loose.Path(), future, future); err != nil {
		t.Fatal(err)
	}
	release, err := s.blobs.Hold()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{}); !errors.Is(err, blob.ErrInUse) || !there() {
		t.Fatalf("somebody adds: %v", err)
	}
	release()
	dry, err := s.Prune(t.Context(), PruneOptions{Unnamed: true, Grace: -time.Minute, DryRun: true})
	if err != nil || !there() || len(dry.IDs) != 1 || dry.Blobs < 4 {
		t.Fatalf("%+v, %v", dry, err)
	}
	if gone, err := s.Prune(t.Context(), PruneOptions{Grace: time.Second, Keep: func(d string) bool { return d == loose.Digest() }}); err != nil || !there() {
		t.Fatalf("%+v, %v: it was to be kept", gone, err)
	}
	if gone, err := s.Prune(t.Context(), PruneOptions{Grace: time.Second}); err != nil || there() || gone.Blobs != 1 {
		t.Fatalf("%+v, %v", gone, err)
	}
	gone, err := s.Prune(t.Context(), PruneOptions{Unnamed: true, Grace: -time.Minute})
	if err != nil || len(gone.IDs) != 1 || gone.Blobs != dry.Blobs-1 || gone.Bytes == 0 {
		t.Fatalf("%+v, %v; foretold %+v", gone, err, dry)
	}
	e, err := s.Resolve("web")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenTree(e); err != nil {
		t.Error(err)
	}
}

// TestDamage: one image that a disk's failure spoiled is told, and the others live.
func TestDamage(t *testing.T) {
	s := open(t)
	bad, good := put(t, s, 1, "bad"), put(t, s, 2, "good")
	if err := os.Remove(bad.Disk.Path()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve("bad"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	all, err := s.List()
	if err != nil || len(all) != 2 {
		t.Fatal(err)
	}
	for _, e := range all {
		if (e.Err != nil) != (e.ID == bad.ID) {
			t.Errorf("%s: %v", e.Name(), e.Err)
		}
	}
	doc, err := s.blobs.Open(bad.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(doc.Path(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(doc.Path(), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve("bad"); !errors.Is(err, blob.ErrDamaged) {
		t.Error(err)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{}); err == nil || !strings.Contains(err.Error(), "rmi") {
		t.Errorf("pruned beside a damaged image: %v", err)
	}
	if _, err := s.Remove(t.Context(), "bad", RemoveOptions{}); err != nil {
		t.Error(err)
	}
	if e, err := s.Resolve("good"); err != nil || e.ID != good.ID {
		t.Error(err)
	}
	for content, want := range map[string]string{
		`{"version":2}`: "version 2",
		`{"version":1,"images":[{"id":"sha256:../../x"}]}`:                           "digest",
		`{"version":1,"images":[{"id":"` + good.ID + `","names":["../x"]}]}`:         "name",
		`{"version":1,"images":[{"id":"` + good.ID + `"},{"id":"` + good.ID + `"}]}`: "twice",
		`not json`: "invalid",
	} {
		if err := os.WriteFile(s.indexFile(), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.List(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "index.json") {
			t.Errorf("%s: %v", content, err)
		}
		if err := s.update(func(x *index) error { x.Images = nil; return nil }); err == nil {
			t.Error("a damaged index was overwritten")
		}
	}
}

const childVariable = "SMOLVMM_STORE_TEST_CHILD"

// TestSeveralProcesses: four processes add, move one name between them, remove
// and prune; the store is whole afterwards.
func TestSeveralProcesses(t *testing.T) {
	if dir := os.Getenv(childVariable); dir != "" {
		child(t, dir)
		return
	}
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^TestSeveralProcesses$", "-test.count=1")
			cmd.Env = append(os.Environ(), childVariable+"="+dir, "SEED="+strconv.Itoa(i))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	wg.Wait()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, e := range all {
		if e.Err != nil {
			t.Error(e.Err)
		}
		if slices.Contains(e.Names, "shared:latest") {
			named++
		}
		if _, err := s.OpenTree(e); e.Err == nil && err != nil {
			t.Error(err)
		}
	}
	if len(all) != 8 || named != 1 {
		t.Errorf("%d images, %d of them shared; want 8 and 1", len(all), named)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".tmp*")); err != nil || len(left) != 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func child(t *testing.T, dir string) {
	seed, err := strconv.ParseInt(os.Getenv("SEED"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var first string
	for i := range int64(3) {
		name := fmt.Sprintf("p%d-%d", seed, i)
		e := put(t, s, seed*10+i, name)
		if i == 0 {
			first = e.ID
		}
		if _, err := s.Tag(name, ref(t, "shared")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil && !errors.Is(err, blob.ErrInUse) {
			t.Fatal(err)
		}
	}
	if _, err := s.Remove(t.Context(), first, RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
}

func TestSparseWriter(t *testing.T) {
	s := open(t)
	rng := rand.New(rand.NewSource(1))
	for range 50 {
		size := rng.Intn(100 << 10)
		data := make([]byte, size)
		for range rng.Intn(5) {
			if size > 0 {
				at := rng.Intn(size)
				rng.Read(data[at:min(size, at+rng.Intn(9000))])
			}
		}
		w, err := s.blobs.Create()
		if err != nil {
			t.Fatal(err)
		}
		sp := &sparse{ctx: context.Background(), w: w}
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+rng.Intn(10000))
			if m, err := sp.Write(rest[:n]); err != nil || m != n {
				t.Fatal(m, err)
			}
			rest = rest[n:]
		}
		if err := sp.flush(); err != nil {
			t.Fatal(err)
		}
		b, err := w.Commit()
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		got, err := tree.ReadAll(b, 1<<20)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes came back as %d others, %v", len(data), len(got), err)
		}
		if want, _ := tree.ContentDigest(tree.Bytes(data)); want != b.Digest() {
			t.Fatal("the digest is another one")
		}
	}
}
