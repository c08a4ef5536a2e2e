package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/tree"
)

func TestWriteRoundTrip(t *testing.T) {
	tr, err := read(system(), Options{Blobs: store(t)})
	must(t, err)
	must(t, tr.Put("bytes \xff\xfe", tree.NewFile(0o644, tree.Bytes("x"))))
	must(t, tr.Put("before 1970", &tree.Node{Kind: tree.File, Mtime: -5_000_000_000}))
	must(t, tr.Put("owner", &tree.Node{Kind: tree.File, UID: 0xfffffffe, GID: 0xffffffff}))
	want, err := tr.Digest()
	must(t, err)
	var a, b bytes.Buffer
	must(t, Write(t.Context(), &a, tr, "a.tar"))
	must(t, Write(t.Context(), &b, tr.Clone(), "b.tar"))
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same tree gives other bytes")
	}
	back, err := read(a.Bytes(), Options{})
	must(t, err)
	if got, err := back.Digest(); err != nil || got != want {
		t.Errorf("another tree after a round: %s, %v", got, err)
	}
	checkSystem(t, back)
}

// TestTarReadsIt has the host's tar list and unpack what Write wrote.
func TestTarReadsIt(t *testing.T) {
	bin, err := exec.LookPath("tar")
	if err != nil {
		t.Skipf("NOT RUN: no tar here: %v", err)
	}
	tr, err := read(system(), Options{})
	must(t, err)
	must(t, tr.Remove("dev"))
	var b bytes.Buffer
	must(t, Write(t.Context(), &b, tr, "a.tar"))
	dir := t.TempDir()
	cmd := exec.Command(bin, "--no-same-owner", "-xpf", "-", "-C", dir)
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	back, err := FromDir(t.Context(), dir, DirOptions{})
	must(t, err)
	must(t, tr.Walk(func(path string, n *tree.Node) error { // the host keeps neither
		n.UID, n.GID, n.Flags = 0, 0, 0
		if n.Kind == tree.Symlink {
			n.Perm = 0o777
			m, err := back.Lookup(path)
			must(t, err)
			n.Mtime = m.Mtime
		}
		if path == "etc" || path == "bin" || strings.HasPrefix(path, "long") && n.Kind == tree.Dir || n.Mtime == 0 {
			m, err := back.Lookup(path)
			must(t, err)
			n.Mtime, m.Mtime, m.Perm = 0, 0, n.Perm // parents that tar makes by its umask and clock
		}
		return nil
	}))
	want, err := tr.Digest()
	must(t, err)
	if got, err := back.Digest(); err != nil || got != want {
		must(t, tr.Walk(func(path string, n *tree.Node) error {
			m, _ := back.Lookup(path)
			t.Logf("%s: %+v, %+v", path, n, m)
			return nil
		}))
		t.Errorf("tar unpacks another tree: %v", err)
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, n := range map[string]*tree.Node{
		"socket":  {Kind: tree.Socket},
		"flags":   {Kind: tree.File, Flags: 1 << 31},
		"not her": {Kind: tree.File, Content: tree.Ref{Bytes: 5}},
	} {
		tr := tree.New()
		must(t, tr.Put("d/f", n))
		err := Write(t.Context(), io.Discard, tr, "out.tar")
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), `out.tar: entry "d/f": `) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(ctx, io.Discard, tree.New(), "out.tar"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	defer full.Close()
	if err := Write(t.Context(), full, tree.New(), filepath.Base("out.tar")); err == nil || !strings.Contains(err.Error(), "out.tar: ") {
		t.Errorf("a full disk: %v", err)
	}
}
