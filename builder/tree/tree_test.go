package tree

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
)

// must sets up trees.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sample has one of each kind, a hard link and a link out.
func sample(t testing.TB) *Tree {
	t.Helper()
	tr := New()
	passwd := NewFile(0o644, Bytes("root:*:0:0::/root:/bin/sh\n"))
	passwd.Mtime, passwd.Flags = 1_700_000_000_123_456_789, 0x20000
	must(t, tr.Put("etc/passwd", passwd))
	must(t, tr.Put("/etc/passwd.link", passwd))
	must(t, tr.Put("etc/empty", NewFile(0o600, nil)))
	must(t, tr.Put("dev/console", &Node{Kind: CharDevice, Perm: 0o600, Major: 0, Minor: 0}))
	must(t, tr.Put("dev/ld0a", &Node{Kind: BlockDevice, Perm: 0o640, GID: 5, Major: 19, Minor: 0x12345}))
	must(t, tr.Put("dev/pipe", &Node{Kind: FIFO, Perm: 0o666}))
	must(t, tr.Put("var/run/sock", &Node{Kind: Socket, Perm: 0o777, UID: 7}))
	must(t, tr.Put("var/tmp", &Node{Kind: Dir, Perm: 0o1777, Mtime: -5}))
	must(t, tr.Put("tmp", NewSymlink("/var/tmp")))
	must(t, tr.Put("out", NewSymlink("../../../../etc")))
	must(t, tr.Put("loop", NewSymlink("loop")))
	return tr
}

func TestLookup(t *testing.T) {
	tr := sample(t)
	for _, path := range []string{"etc/passwd", "/etc/passwd", "//etc/./passwd/", "etc/passwd.link"} {
		if n, err := tr.Lookup(path); err != nil || n.Size() != 26 {
			t.Errorf("Lookup(%q) = %v, %v", path, n, err)
		}
	}
	for _, path := range []string{"", ".", "/", "./."} {
		if n, err := tr.Lookup(path); err != nil || n != tr.Root {
			t.Errorf("Lookup(%q) = %v, %v", path, n, err)
		}
	}
	for path, want := range map[string]error{
		"nothing": fs.ErrNotExist, "etc/nothing/at/all": fs.ErrNotExist,
		"tmp/x": ErrNotDir, "etc/passwd/x": ErrNotDir,
		"etc/../etc": ErrName, "..": ErrName, "a\x00": ErrName, strings.Repeat("n", 256): ErrName, strings.Repeat("a/", 2049): ErrName,
	} {
		if _, err := tr.Lookup(path); !errors.Is(err, want) || len(err.Error()) > 300 {
			t.Errorf("Lookup(%q): %v, want %v", path, err, want)
		}
	}
}

func TestResolve(t *testing.T) {
	tr := sample(t)
	must(t, tr.Put("var/tmp/f", NewFile(0o644, nil)))
	must(t, tr.Put("a/b", NewSymlink("../var")))
	for path, want := range map[string]string{
		"etc/passwd": "etc/passwd", "/": ".", "..": ".", "../../etc": "etc", "tmp": "var/tmp", "tmp/f": "var/tmp/f", "tmp/../run": "var/run",
		"out": "etc", "out/passwd": "etc/passwd", "a/b/tmp/f": "var/tmp/f", "a/b/..": ".", "etc/passwd/": "etc/passwd",
	} {
		real, n, err := tr.Resolve(path)
		if err != nil || real != want {
			t.Errorf("Resolve(%q) = %q, %v, want %q", path, real, err, want)
			continue
		}
		if m, err := tr.Lookup(real); err != nil || m != n {
			t.Errorf("Resolve(%q) gives another node than Lookup(%q)", path, real)
		}
	}
	for path, want := range map[string]error{
		"loop": ErrLinkLoop, "loop/x": ErrLinkLoop, "tmp/nothing": fs.ErrNotExist, "etc/passwd/x": ErrNotDir,
		strings.Repeat("x", 300): ErrName, strings.Repeat("x/", 3000): ErrName, "etc/a\x00b": ErrName,
	} {
		if _, _, err := tr.Resolve(path); !errors.Is(err, want) {
			t.Errorf("Resolve(%.40q): %v, want %v", path, err, want)
		}
	}
}

func TestPutAndRemove(t *testing.T) {
	tr := sample(t)
	n := NewFile(0o600, Bytes("x"))
	n.Mtime = 42
	must(t, tr.Put("new/dir/file", n))
	if d, err := tr.Lookup("new/dir"); err != nil || d.Mtime != 42 || d.Perm != 0o755 {
		t.Errorf("a parent that was made: %+v, %v", d, err)
	}
	for path, c := range map[string]struct {
		n    *Node
		want error
	}{
		"tmp/x":        {n, ErrNotDir},
		"etc/passwd/x": {n, ErrNotDir},
		"../x":         {n, ErrName},
		"/":            {n, ErrIsDir},
		"x":            {&Node{}, ErrNode},
		"perm":         {&Node{Kind: File, Perm: 0o10000}, ErrNode},
		"link":         {NewSymlink(""), ErrNode},
		"link0":        {NewSymlink("a\x00b"), ErrNode},
		"long":         {NewSymlink(strings.Repeat("x", MaxTarget+1)), ErrNode},
		"major":        {&Node{Kind: CharDevice, Major: MaxMajor + 1}, ErrNode},
		"minor":        {&Node{Kind: CharDevice, Minor: MaxMinor + 1}, ErrNode},
		"size":         {NewFile(0, Ref{"", -1}), ErrNode},
		"nil":          {nil, ErrNode},
	} {
		if err := tr.Put(path, c.n); !errors.Is(err, c.want) {
			t.Errorf("Put(%q): %v, want %v", path, err, c.want)
		}
	}
	must(t, tr.Remove("etc/passwd"))
	if _, err := tr.Lookup("etc/passwd.link"); err != nil {
		t.Errorf("the other name went too: %v", err)
	}
	for path, want := range map[string]error{"etc/passwd": fs.ErrNotExist, "/": ErrIsDir, "tmp/x": ErrNotDir, "no/x": fs.ErrNotExist} {
		if err := tr.Remove(path); !errors.Is(err, want) {
			t.Errorf("Remove(%q): %v, want %v", path, err, want)
		}
	}
	if err := n.Set("x", n); !errors.Is(err, ErrNotDir) {
		t.Errorf("Set in a file: %v", err)
	}
	if err := tr.Root.Set("self", tr.Root); !errors.Is(err, ErrDirTwice) {
		t.Errorf("a directory in itself: %v", err)
	}
}

func TestWalk(t *testing.T) {
	tr := sample(t)
	var got []string
	must(t, tr.Walk(func(path string, n *Node) error {
		if m, err := tr.Lookup(path); err != nil || m != n {
			t.Errorf("Walk's %q is not Lookup's: %v", path, err)
		}
		got = append(got, path)
		return nil
	}))
	want := []string{".", "dev", "dev/console", "dev/ld0a", "dev/pipe", "etc", "etc/empty", "etc/passwd", "etc/passwd.link", "loop", "out", "tmp", "var", "var/run", "var/run/sock", "var/tmp"}
	if !slices.Equal(got, want) {
		t.Errorf("Walk:\n%q\nwant\n%q", got, want)
	}
	got = nil
	must(t, tr.Walk(func(path string, n *Node) error {
		got = append(got, path)
		switch path {
		case "dev":
			return fs.SkipDir
		case "etc":
			n.Remove("passwd")
		case "out":
			return fs.SkipAll
		}
		return nil
	}))
	if want := []string{".", "dev", "etc", "etc/empty", "etc/passwd.link", "loop", "out"}; !slices.Equal(got, want) {
		t.Errorf("Walk with skips: %q", got)
	}
	broken := errors.New("broken")
	if err := tr.Walk(func(string, *Node) error { return broken }); err != broken {
		t.Errorf("Walk gives %v", err)
	}
}

// TestDirTwice: a directory with two names, which only a mistake in a program can
// make, ends walks and encodings with an error instead of never.
func TestDirTwice(t *testing.T) {
	tr := sample(t)
	etc, err := tr.Lookup("etc")
	must(t, err)
	must(t, etc.Set("root", tr.Root))
	if err := tr.Walk(func(string, *Node) error { return nil }); !errors.Is(err, ErrDirTwice) {
		t.Errorf("Walk: %v", err)
	}
	if _, err := tr.Digest(); !errors.Is(err, ErrDirTwice) {
		t.Errorf("Digest: %v", err)
	}
}

func TestClone(t *testing.T) {
	tr := sample(t)
	before := digest(t, tr)
	c := tr.Clone()
	if digest(t, c) != before {
		t.Error("a clone has another digest")
	}
	a, _ := c.Lookup("etc/passwd")
	b, _ := c.Lookup("etc/passwd.link")
	if a != b {
		t.Error("a clone lost a hard link")
	}
	a.Perm = 0
	must(t, c.Remove("var"))
	if digest(t, tr) != before {
		t.Error("a change of the clone changed the tree")
	}
	links, err := tr.Links()
	must(t, err)
	if len(links) != 1 {
		t.Errorf("links: %v", links)
	}
	for _, names := range links {
		if !slices.Equal(names, []string{"etc/passwd", "etc/passwd.link"}) {
			t.Errorf("names: %q", names)
		}
	}
	if s, err := tr.Stats(); err != nil || s != (Stats{Names: 15, Nodes: 15, Bytes: 26}) {
		t.Errorf("stats: %+v, %v", s, err)
	}
}

func TestMerge(t *testing.T) {
	dst, src := sample(t), New()
	src.Root.Perm = 0o700
	f := NewFile(0o755, Bytes("new"))
	must(t, src.Put("etc/passwd", f))
	must(t, src.Put("usr/bin/x", f))
	must(t, src.Put("tmp", NewSymlink("elsewhere")))
	must(t, dst.Merge(src))
	a, _ := dst.Lookup("etc/passwd")
	b, _ := dst.Lookup("usr/bin/x")
	old, _ := dst.Lookup("etc/passwd.link")
	if a != b || a == f || a.Size() != 3 || old.Size() != 26 || dst.Root.Perm != 0o700 {
		t.Errorf("merged: %v %v %v", a, b, old)
	}
	if n, _ := dst.Lookup("tmp"); n.Target != "elsewhere" {
		t.Errorf("tmp: %v", n)
	}
	if n, err := dst.Lookup("var/tmp"); err != nil || n.Perm != 0o1777 {
		t.Errorf("what src does not have: %v, %v", n, err)
	}
	for path, c := range map[string]struct {
		n    *Node
		want error
	}{"etc": {f, ErrIsDir}, "etc/passwd": {NewDir(0o755), ErrNotDir}, "etc/passwd/x": {f, ErrNotDir}, "tmp/x": {f, ErrNotDir}} {
		src := New()
		must(t, src.Put(path, c.n))
		if err := dst.Clone().Merge(src); !errors.Is(err, c.want) {
			t.Errorf("Merge of %s: %v, want %v", path, err, c.want)
		}
	}
}

// TestDev holds dev_t against numbers that NetBSD's mknod and stat give: ld0a is
// 19,0; sd1e is 4,20; a minor above 255 goes to the upper bits.
func TestDev(t *testing.T) {
	for _, c := range []struct{ major, minor, dev uint32 }{
		{0, 0, 0}, {19, 0, 0x1300}, {4, 20, 0x414}, {2, 2, 0x202}, {1, 256, 0x100100}, {MaxMajor, MaxMinor, 0xffffffff},
	} {
		if got := Dev(c.major, c.minor); got != c.dev {
			t.Errorf("Dev(%d,%d) = %#x, want %#x", c.major, c.minor, got, c.dev)
		}
		if major, minor := DevNumbers(c.dev); major != c.major || minor != c.minor {
			t.Errorf("DevNumbers(%#x) = %d,%d", c.dev, major, minor)
		}
	}
}
