package tree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func digest(t testing.TB, tr *Tree) string {
	t.Helper()
	d, err := tr.Digest()
	must(t, err)
	must(t, CheckDigest(d))
	return d
}

func encoded(t testing.TB, tr *Tree) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, tr.Encode(&b))
	return b.Bytes()
}

func TestEncodeRoundTrip(t *testing.T) {
	tr := sample(t)
	b := encoded(t, tr)
	got, err := Decode(bytes.NewReader(b), func(digest string, size int64) (Content, error) {
		c := Bytes("root:*:0:0::/root:/bin/sh\n")
		if digest != c.Digest() || size != c.Size() {
			t.Errorf("asked for %s, %d", digest, size)
		}
		return c, nil
	})
	must(t, err)
	if !bytes.Equal(encoded(t, got), b) {
		t.Error("another encoding after a round")
	}
	p, _ := got.Lookup("etc/passwd")
	l, _ := got.Lookup("etc/passwd.link")
	if p != l || p.Mtime != 1_700_000_000_123_456_789 || p.Flags != 0x20000 {
		t.Errorf("passwd: %+v, its link: %+v", p, l)
	}
	d, _ := got.Lookup("dev/ld0a")
	if d.Kind != BlockDevice || d.Major != 19 || d.Minor != 0x12345 || d.GID != 5 {
		t.Errorf("a device: %+v", d)
	}
	if n, _ := got.Lookup("var/tmp"); n.Mtime != -5 {
		t.Errorf("a time before 1970: %d", n.Mtime)
	}
	// Without anybody who has the bytes the digest is still the same.
	refs, err := Decode(bytes.NewReader(b), nil)
	must(t, err)
	if digest(t, refs) != digest(t, tr) {
		t.Error("another digest of a tree of references")
	}
	p, _ = refs.Lookup("etc/passwd")
	if _, err := p.Content.Open(); err == nil {
		t.Error("a reference was opened")
	}
}

// TestDigestSeesEverything: two trees that make different images differ.
func TestDigestSeesEverything(t *testing.T) {
	base := digest(t, sample(t))
	for name, change := range map[string]func(tr *Tree, n *Node){
		"perm":    func(_ *Tree, n *Node) { n.Perm = 0o640 },
		"uid":     func(_ *Tree, n *Node) { n.UID = 1 },
		"gid":     func(_ *Tree, n *Node) { n.GID = 1 },
		"mtime":   func(_ *Tree, n *Node) { n.Mtime++ },
		"flags":   func(_ *Tree, n *Node) { n.Flags = 1 },
		"content": func(_ *Tree, n *Node) { n.Content = Bytes("root:*:0:0::/root:/bin/xx\n") },
		"rename":  func(tr *Tree, n *Node) { tr.Remove("etc/passwd"); tr.Put("etc/password", n) },
		"link":    func(tr *Tree, n *Node) { c := *n; tr.Put("etc/passwd.link", &c) },
		"removed": func(tr *Tree, _ *Node) { tr.Remove("tmp") },
		"target":  func(tr *Tree, _ *Node) { n, _ := tr.Lookup("tmp"); n.Target = "var/tmp" },
		"minor":   func(tr *Tree, _ *Node) { n, _ := tr.Lookup("dev/ld0a"); n.Minor = 1 },
		"kind":    func(tr *Tree, _ *Node) { n, _ := tr.Lookup("dev/ld0a"); n.Kind = CharDevice },
	} {
		tr := sample(t)
		n, _ := tr.Lookup("etc/passwd")
		change(tr, n)
		if digest(t, tr) == base {
			t.Errorf("%s: the digest is the same", name)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := encoded(t, sample(t))
	for n := range len(good) {
		if _, err := Decode(bytes.NewReader(good[:n]), nil); !errors.Is(err, ErrEncoding) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(good), err)
		}
	}
	head := magic + "\x01\x00\x00\x00\x00\x00" // a directory's, up to the number of its entries
	file := "\x02\x00\x00\x00\x00\x00\x00"
	for name, s := range map[string]string{
		"more":           string(good) + "x",
		"root file":      magic + file,
		"root link":      magic + "\xff\x00",
		"order":          head + "\x02" + "\x01b" + file + "\x01a" + file,
		"twice":          head + "\x02" + "\x01a" + file + "\x01a" + file,
		"dotdot":         head + "\x01" + "\x02.." + file,
		"slash":          head + "\x01" + "\x03a/b" + file,
		"no name":        head + "\x01" + "\x00" + file,
		"link to none":   head + "\x01" + "\x01a" + "\xff\x00",
		"kind":           head + "\x01" + "\x01a" + "\x09\x00\x00\x00\x00\x00\x00",
		"long form":      magic + "\x01\x80\x00\x00\x00\x00\x00\x00",
		"65 bits":        magic + "\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02\x00\x00",
		"perm":           magic + "\x01\x80\x20\x00\x00\x00\x00\x00",
		"entries":        head + "\xff\xff\xff\xff\x0f",
		"empty target":   head + "\x01" + "\x01a" + "\x03\x00\x00\x00\x00\x00\x00",
		"a name too big": head + "\x01" + "\x80\x02" + strings.Repeat("x", 256) + file,
	} {
		if _, err := Decode(strings.NewReader(s), nil); !errors.Is(err, ErrEncoding) {
			t.Errorf("%s: %v", name, err)
		}
	}
	deep := magic
	for range 2100 {
		deep += "\x01\x00\x00\x00\x00\x00\x01\x01d"
	}
	if _, err := Decode(strings.NewReader(deep), nil); !errors.Is(err, ErrEncoding) || !strings.Contains(err.Error(), "path") {
		t.Errorf("a deep tree: %v", err)
	}
	wide := New()
	n := NewFile(0o644, nil)
	for i := range 1000 {
		must(t, wide.Root.Set(fmt.Sprint(i), n)) // links cost memory too
	}
	var b bytes.Buffer
	must(t, wide.encode(&b, 1001))
	if err := wide.encode(io.Discard, 1000); !errors.Is(err, ErrNode) || !strings.Contains(err.Error(), "names") {
		t.Errorf("a tree with too many names: %v", err)
	}
	if _, err := decode(bytes.NewReader(b.Bytes()), nil, 1001); err != nil {
		t.Errorf("as many names as may be: %v", err)
	}
	if _, err := decode(bytes.NewReader(b.Bytes()), nil, 1000); !errors.Is(err, ErrEncoding) || !strings.Contains(err.Error(), "names") {
		t.Errorf("too many names: %v", err)
	}
	broken := errors.New("blob is gone")
	if _, err := Decode(bytes.NewReader(good), func(string, int64) (Content, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("a content that is not there: %v", err)
	}
	if _, err := Decode(bytes.NewReader(good), func(string, int64) (Content, error) { return Bytes("x"), nil }); !errors.Is(err, ErrEncoding) {
		t.Errorf("a content of another size: %v", err)
	}
}

type runs struct {
	Bytes
	e []Extent
}

func (r runs) Extents() ([]Extent, error) { return r.e, nil }

func TestContent(t *testing.T) {
	if e, err := Extents(Bytes("abc")); err != nil || len(e) != 1 || e[0] != (Extent{0, 3}) {
		t.Errorf("extents of bytes: %v, %v", e, err)
	}
	if e, err := Extents(nil); err != nil || len(e) != 0 {
		t.Errorf("extents of nothing: %v, %v", e, err)
	}
	ten := Bytes("0123456789")
	if e, err := Extents(runs{ten, []Extent{{0, 2}, {2, 1}, {9, 1}}}); err != nil || len(e) != 3 {
		t.Errorf("good extents: %v, %v", e, err)
	}
	for _, bad := range [][]Extent{{{-1, 2}}, {{0, 0}}, {{0, 11}}, {{5, 2}, {6, 1}}, {{9, 1 << 62}}, {{1 << 62, 1 << 62}}, {{5, 1}, {0, 1}}} {
		if _, err := Extents(runs{ten, bad}); !errors.Is(err, ErrNode) {
			t.Errorf("extents %v: %v", bad, err)
		}
	}
	const abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // FIPS 180-4's example
	if d, err := ContentDigest(Bytes("abc")); err != nil || d != abc {
		t.Errorf("digest: %s, %v", d, err)
	}
	if d, err := ContentDigest(plain{Bytes("abc"), 3}); err != nil || d != abc {
		t.Errorf("digest of what does not know it: %s, %v", d, err)
	}
	if _, err := ContentDigest(plain{Bytes("abc"), 4}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that shrank: %v", err)
	}
	if _, err := ReadAll(plain{Bytes("abc"), 4}, 10); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that shrank: %v", err)
	}
	if b, err := ReadAll(Bytes("abc"), 3); err != nil || string(b) != "abc" {
		t.Errorf("ReadAll: %q, %v", b, err)
	}
	if _, err := ReadAll(Bytes("abcd"), 3); err == nil {
		t.Error("ReadAll read more than it may")
	}
	for _, s := range []string{"", "sha256:", abc[7:], abc + "0", strings.ToUpper(abc), "sha256:../../" + strings.Repeat("0", 58)} {
		if CheckDigest(s) == nil {
			t.Errorf("%q was taken for a digest", s)
		}
	}
}

// plain has bytes and knows nothing else of them.
type plain struct {
	b    Bytes
	size int64
}

func (p plain) Size() int64                 { return p.size }
func (p plain) Open() (ReadAtCloser, error) { return p.b.Open() }

func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, sample(f)))
	f.Add(encoded(f, New()))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := Decode(bytes.NewReader(b), nil)
		if err != nil {
			if !errors.Is(err, ErrEncoding) || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("%q", err)
			}
			return
		}
		if !bytes.Equal(encoded(t, tr), b) {
			t.Fatal("two encodings of one tree")
		}
		must(t, tr.Walk(func(path string, n *Node) error {
			if m, err := tr.Lookup(path); err != nil || m != n {
				t.Fatalf("Lookup(%q): %v", path, err)
			}
			if _, _, err := tr.Resolve(path); err != nil && n.Kind != Symlink {
				t.Fatalf("Resolve(%q): %v", path, err)
			}
			return nil
		}))
	})
}
