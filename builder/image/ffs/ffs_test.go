package ffs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/image/ffs/ffstest"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// memory is a sparse disk of zeros that remembers what was written, and takes no
// byte twice, nothing behind its end and no block of zeros.
type memory struct {
	sectors map[int64][]byte
	size    int64
	block   int
	again   bool // takes bytes twice: the disk of a second image
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off%512 != 0 || len(b)%512 != 0 || off+int64(len(b)) > m.size {
		return 0, fmt.Errorf("a write of %d bytes at %d of %d", len(b), off, m.size)
	}
	for at := 0; at < len(b); at += m.block {
		if p := b[at:min(len(b), at+m.block)]; len(bytes.Trim(p, "\x00")) == 0 {
			return 0, fmt.Errorf("%d bytes of zeros were written at %d", len(p), off+int64(at))
		}
	}
	own := bytes.Clone(b)
	for at := 0; at < len(b); at += 512 {
		n := (off + int64(at)) / 512
		if m.sectors[n] != nil && !m.again {
			return 0, fmt.Errorf("sector %d was written twice", n)
		}
		m.sectors[n] = own[at : at+512]
	}
	return len(b), nil
}

func (m *memory) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > m.size {
		return 0, fmt.Errorf("a read of %d bytes at %d of %d", len(b), off, m.size)
	}
	clear(b)
	for n := off / 512; n*512 < off+int64(len(b)); n++ {
		s := m.sectors[n]
		if s == nil {
			continue
		}
		if lo := n*512 - off; lo >= 0 {
			copy(b[lo:], s)
		} else {
			copy(b, s[-lo:])
		}
	}
	return len(b), nil
}

// write writes a tree to a disk of memory, checks all tables and every name.
func write(t *testing.T, tr *tree.Tree, o Options) (*memory, Info) {
	t.Helper()
	l, err := Plan(tr, o)
	if err != nil {
		t.Fatal(err)
	}
	info := l.Info()
	m := &memory{sectors: map[int64][]byte{}, size: info.Size, block: info.Block}
	if err := l.Write(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	d, err := ffstest.Open(m, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Verify(); err != nil {
		t.Fatalf("%+v: %v", info, err)
	}
	if err := d.Compare(tr); err != nil {
		t.Fatalf("%+v: %v", info, err)
	}
	if free := (d.Super.Total[1]*int64(d.Super.Frag) + d.Super.Total[3]) * int64(d.Super.Fsize); free < info.Free || free-info.Free >= int64(info.Block) {
		t.Fatalf("%d bytes are free, and it says %d", free, info.Free)
	}
	if d.Super.Total[2] != info.FreeInodes || int64(d.Super.Ncg) != info.Groups || d.Super.Size*int64(d.Super.Fsize) != info.Size {
		t.Fatalf("%+v is not %+v", info, d.Super)
	}
	return m, info
}

// sparse is a content of holes and a pattern; it fails reads behind its end.
type sparse struct {
	size    int64
	extents []tree.Extent
}

func (s sparse) Size() int64                      { return s.size }
func (s sparse) Open() (tree.ReadAtCloser, error) { return s, nil }
func (s sparse) Close() error                     { return nil }
func (s sparse) Extents() ([]tree.Extent, error)  { return s.extents, nil }
func (s sparse) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > s.size {
		return 0, io.EOF
	}
	clear(b)
	for _, e := range s.extents {
		for at := max(e.Off, off); at < min(e.Off+e.Len, off+int64(len(b))); at++ {
			b[at-off] = byte(at*31>>7) | 1
		}
	}
	return len(b), nil
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		copy(b[i:], le.AppendUint64(nil, r.Uint64()))
	}
	return b
}

// random makes a tree of all kinds of nodes.
func random(r *rand.Rand, block int) *tree.Tree {
	t := tree.New()
	dirs, files := []string{""}, []*tree.Node(nil)
	name := func() string {
		n := 1 + r.IntN(12)
		if r.IntN(10) == 0 {
			n = 1 + r.IntN(255)
		}
		b := noise(r, n)
		for i := range b {
			if b[i] == 0 || b[i] == '/' || b[i] == '.' {
				b[i] = 'x'
			}
		}
		return string(b)
	}
	for range r.IntN(60) {
		n := &tree.Node{
			Kind: tree.Kind(1 + r.IntN(int(tree.Socket))), Perm: uint16(r.IntN(0o10000)), UID: r.Uint32(), GID: r.Uint32(),
			Mtime: r.Int64()>>r.IntN(40) - 1<<40, Flags: r.Uint32() &^ 0x00e00000,
		}
		path := dirs[r.IntN(len(dirs))] + "/" + name()
		switch n.Kind {
		case tree.Dir:
			if len(path) > 3000 {
				continue
			}
			dirs = append(dirs, path)
		case tree.Symlink:
			n.Target = "/" + strings.Repeat("t", r.IntN([]int{20, 130, 1023}[r.IntN(3)]))
		case tree.CharDevice, tree.BlockDevice:
			n.Major, n.Minor = uint32(r.IntN(0x1000)), uint32(r.IntN(0x100000))
		case tree.File:
			n.Content = content(r, block)
			files = append(files, n)
		}
		if len(files) > 0 && n.Kind != tree.Dir && r.IntN(8) == 0 {
			n = files[r.IntN(len(files))]
		}
		if _, err := t.Lookup(path); err == nil {
			continue
		}
		if err := t.Put(path, n); err != nil {
			panic(err)
		}
	}
	return t
}

func content(r *rand.Rand, block int) tree.Content {
	switch r.IntN(6) {
	case 0:
		return nil
	case 1: // near the sizes where something changes
		return tree.Bytes(noise(r, max(0, block*[]int{1, 2, 11, 12, 13}[r.IntN(5)]+r.IntN(5)-2)))
	case 2: // holes, up to far away
		s := sparse{size: 1 + r.Int64()>>(25+r.IntN(30))}
		for at := int64(0); len(s.extents) < 6; {
			e := tree.Extent{Off: at + r.Int64N(s.size), Len: 1 + int64(r.IntN(3*block))}
			if e.Off+e.Len > s.size {
				break
			}
			s.extents = append(s.extents, e)
			at = e.Off + e.Len
		}
		return s
	case 3: // zeros, that are no holes
		b := noise(r, 4*block)
		clear(b[r.IntN(block):][:2*block])
		return tree.Bytes(b)
	}
	return tree.Bytes(noise(r, r.IntN(3*block)))
}

// TestRandomTrees: a thousand trees, block sizes and ways to size.
func TestRandomTrees(t *testing.T) {
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 1))
		o := Options{Block: []int{4096, 8192, 16384, 32768}[r.IntN(4)], Label: "random"}
		o.Fragment = max(512, o.Block>>r.IntN(4))
		switch r.IntN(4) {
		case 0:
			o.Minimize = true
		case 1:
			o.Free = 1 + r.Int64N(100<<20)
		case 2:
			o.Size = 64<<20 + r.Int64N(1<<30)
		case 3:
			o.Minimize, o.Free, o.FreeInodes = true, r.Int64N(1<<20), int64(r.IntN(20000))
		}
		tr := random(r, o.Block)
		_, info := write(t, tr, o)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		if info.Free < o.Free || info.FreeInodes < o.FreeInodes {
			t.Fatalf("seed %d: %+v for %+v", seed, info, o)
		}
		if o.Size != 0 && (info.Size > o.Size || info.Size <= o.Size-int64(o.Block)*8) {
			t.Fatalf("seed %d: %d bytes, want %d", seed, info.Size, o.Size)
		}
	}
}

// TestSameBytes: the same tree, made anew and written in another way, gives the
// same disk.
func TestSameBytes(t *testing.T) {
	for seed := range uint64(20) {
		make := func() *tree.Tree { return random(rand.New(rand.NewPCG(seed, 2)), 4096) }
		a, _ := write(t, make(), Options{Block: 4096})
		b, _ := write(t, make().Clone(), Options{Block: 4096})
		if len(a.sectors) != len(b.sectors) {
			t.Fatalf("seed %d: %d and %d sectors", seed, len(a.sectors), len(b.sectors))
		}
		for n, s := range a.sectors {
			if !bytes.Equal(s, b.sectors[n]) {
				t.Fatalf("seed %d: sector %d differs", seed, n)
			}
		}
	}
}

// TestReaderSees: whichever byte of a small file system's tables, inodes,
// directories and contents is changed, the reader does not take it.
func TestReaderSees(t *testing.T) {
	tr := tree.New()
	r := rand.New(rand.NewPCG(7, 7))
	for path, n := range map[string]*tree.Node{
		"d/file": tree.NewFile(0o644, tree.Bytes(noise(r, 600))), "link": tree.NewSymlink("d/file"),
		"d/tail": tree.NewFile(0o644, sparse{60000, []tree.Extent{{Off: 4096 * 13, Len: 1}}}),
	} {
		if err := tr.Put(path, n); err != nil {
			t.Fatal(err)
		}
	}
	m, info := write(t, tr, Options{Minimize: true, Free: 100000, Block: 4096})
	d, err := ffstest.Open(m, true)
	if err != nil {
		t.Fatal(err)
	}
	inodes := int64(d.Super.Iblkno) * int64(d.Super.Fsize)
	tried := 0
	for n, sector := range m.sectors {
		for i := range sector {
			off := n*512 + int64(i)
			if off >= inodes && off < inodes+info.Inodes*256 && off%256 >= 80 && off%256 < 84 {
				continue // an inode's generation: any number is right
			}
			tried++
			sector[i] ^= 1
			d, err := ffstest.Open(m, true)
			if err == nil {
				err = errors.Join(d.Verify(), d.Compare(tr))
			}
			if err == nil {
				t.Errorf("byte %d was changed, and nothing is said", off)
			}
			sector[i] ^= 1
		}
	}
	t.Logf("%d bytes of %+v", tried, info)
}

// TestLarge: a disk of 1 TiB with a file that has triple indirect blocks.
func TestLarge(t *testing.T) {
	tr := tree.New()
	n := tree.NewFile(0o600, sparse{9 << 40, []tree.Extent{{Off: 0, Len: 100}, {Off: 5 << 40, Len: 70000}, {Off: 9<<40 - 3, Len: 3}}})
	if err := tr.Put("data", n); err != nil {
		t.Fatal(err)
	}
	_, info := write(t, tr, Options{Size: MaxSize})
	t.Logf("%+v", info)
	if info.Size != MaxSize || info.Block != 32768 || info.Free < MaxSize*9/10 {
		t.Errorf("%+v", info)
	}
	if _, err := Plan(tr, Options{Size: MaxSize + 1}); err == nil {
		t.Error("a file system larger than MaxSize was planned")
	}
}

// TestManyNames: directories with single and double indirect blocks.
func TestManyNames(t *testing.T) {
	tr := tree.New()
	for i := range 100000 {
		n := tree.NewFile(0o644, nil)
		if err := tr.Root.Set(fmt.Sprintf("%0*d", 60+i%20, i), n); err != nil {
			t.Fatal(err)
		}
	}
	_, info := write(t, tr, Options{Minimize: true, Block: 4096})
	t.Logf("%+v", info)
}

// TestSmallest: what is minimized has no block to spare.
func TestSmallest(t *testing.T) {
	tr := tree.New()
	if err := tr.Put("bin/program", tree.NewFile(0o755, tree.Bytes(noise(rand.New(rand.NewPCG(1, 1)), 1500000)))); err != nil {
		t.Fatal(err)
	}
	_, info := write(t, tr, Options{Minimize: true})
	t.Logf("%+v", info)
	if info.Size > 1500000*12/10 || info.Free >= int64(info.Block) {
		t.Errorf("%+v for 1500000 bytes", info)
	}
	_, err := Plan(tr, Options{Size: info.Size - 1})
	if !errors.Is(err, ErrSpace) || !strings.Contains(err.Error(), fmt.Sprint(info.Size)) {
		t.Errorf("a byte less than needed: %v", err)
	}
	if _, err := Plan(tr, Options{Minimize: true, Size: info.Size - 1}); !errors.Is(err, ErrSpace) {
		t.Errorf("at most a byte less than needed: %v", err)
	}
	write(t, tr, Options{Size: info.Size})
	write(t, tr, Options{Minimize: true, Size: info.Size})
}

// TestRefused: what the format has no place for is an error that names it.
func TestRefused(t *testing.T) {
	with := func(n *tree.Node) *tree.Tree {
		tr := tree.New()
		if err := tr.Root.Set("it", n); err != nil {
			t.Fatal(err)
		}
		return tr
	}
	links := tree.New()
	n := tree.NewFile(0o644, nil)
	for i := range maxLinks + 1 {
		if err := links.Root.Set(fmt.Sprint(i), n); err != nil {
			t.Fatal(err)
		}
	}
	dirs := tree.New()
	for i := range maxLinks - 1 {
		if err := dirs.Root.Set(fmt.Sprint(i), tree.NewDir(0o755)); err != nil {
			t.Fatal(err)
		}
	}
	holes := sparse{size: 1 << 40}
	for i := range int64(maxRuns + 1) {
		holes.extents = append(holes.extents, tree.Extent{Off: i * 65536, Len: 1})
	}
	for _, c := range []struct {
		tr   *tree.Tree
		o    Options
		says string
	}{
		{with(&tree.Node{Kind: tree.File, Flags: 0x00200000}), Options{}, `"it": st_flags 0x200000`},
		{with(tree.NewFile(0, sparse{size: 1 << 62})), Options{}, `"it": a file of`},
		{with(tree.NewFile(0, sparse{10, []tree.Extent{{Off: 5, Len: 6}}})), Options{}, `"it": not a valid node: an extent`},
		{with(tree.NewFile(0, holes)), Options{}, `"it": the files have more than 1048576 holes`},
		{links, Options{}, `more than 32767 links to "0"`},
		{dirs, Options{}, `more than 32767 links to "."`},
		{with(tree.NewFile(0, sparse{2 << 40, []tree.Extent{{Off: 0, Len: 2 << 40}}})), Options{}, "file system too small"},
		{&tree.Tree{}, Options{}, "without a root"},
		{nil, Options{}, "without a root"},
		{tree.New(), Options{Label: "a b"}, "label"},
		{tree.New(), Options{Label: strings.Repeat("x", 32)}, "label"},
		{tree.New(), Options{Free: -1}, "negative"},
		{tree.New(), Options{Free: 2 << 40}, "at most"},
		{tree.New(), Options{Size: 1000}, "too small"},
		{tree.New(), Options{Block: 5000}, "block"},
		{tree.New(), Options{Block: 65536}, "block"},
		{tree.New(), Options{Block: 16384, Fragment: 1024}, "fragment"},
		{tree.New(), Options{Block: 4096, Fragment: 256}, "fragment"},
		{tree.New(), Options{Minimize: true, FreeInodes: 1 << 31}, "free inodes"},
		{tree.New(), Options{Size: 8 << 20, FreeInodes: 1 << 20}, "too small"},
	} {
		if _, err := Plan(c.tr, c.o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v; want it to say %q", c.o, err, c.says)
		}
	}
}

// failing is a content whose reads fail or end too soon, or a disk that is full.
type failing struct {
	size   int64
	open   error
	read   error
	onRead func()
	closed *int
}

func (f failing) Size() int64 { return f.size }
func (f failing) Open() (tree.ReadAtCloser, error) {
	return f, f.open
}
func (f failing) Close() error { *f.closed++; return nil }
func (f failing) ReadAt(b []byte, off int64) (int, error) {
	if f.onRead != nil {
		f.onRead()
		return len(b), nil
	}
	return 0, f.read
}

type fullDisk struct{}

func (fullDisk) WriteAt([]byte, int64) (int, error) { return 0, errors.New("no space left") }

// TestWriteFails: errors of contents name the file, those of the disk come
// through, files are closed, and the end of ctx ends it in the middle of a file.
func TestWriteFails(t *testing.T) {
	closed := 0
	ctx, cancel := context.WithCancel(t.Context())
	for _, c := range []struct {
		f      failing
		says   string
		closes int
	}{
		{failing{size: 5, open: os.ErrPermission}, `"etc/it": permission denied`, 0},
		{failing{size: 5, read: os.ErrClosed}, `"etc/it": file already closed`, 1},
		{failing{size: 5, read: io.EOF}, `"etc/it": unexpected EOF: it ends at 0 of 5 bytes`, 1},
		{failing{size: 100 << 20, onRead: cancel}, "context canceled", 1},
	} {
		closed = 0
		c.f.closed = &closed
		tr := tree.New()
		if err := tr.Put("etc/it", tree.NewFile(0, c.f)); err != nil {
			t.Fatal(err)
		}
		m := &memory{sectors: map[int64][]byte{}, size: 1 << 40, block: 16384}
		_, err := Write(ctx, m, tr, Options{})
		if err == nil || !strings.Contains(err.Error(), c.says) || closed != c.closes {
			t.Errorf("%v, closed %d times; want it to say %q, %d", err, closed, c.says, c.closes)
		}
		if d, err := ffstest.Open(m, true); err == nil {
			t.Errorf("what was left behind has a superblock: %+v", d.Super)
		}
	}
	if _, err := Write(t.Context(), fullDisk{}, tree.New(), Options{}); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("a full disk: %v", err)
	}
}
