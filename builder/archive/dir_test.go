package archive

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// folder is a folder with everything that a user may make.
func folder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("a/b"), 0o755))
	must(t, os.WriteFile(at("a/file"), []byte("content"), 0o644))
	must(t, os.Chmod(at("a/file"), 0o4750|fs.ModeSetuid))
	must(t, os.Link(at("a/file"), at("a/b/hard")))
	must(t, os.Symlink("/etc/shadow", at("out")))
	must(t, os.Symlink("a", at("in")))
	must(t, unix.Mkfifo(at("fifo"), 0o600))
	must(t, os.WriteFile(at("empty"), nil, 0o600))
	when := time.Unix(1_700_000_000, 123_456_789)
	must(t, os.Chtimes(at("a/file"), when, when))
	return dir
}

func TestFromDir(t *testing.T) {
	dir := folder(t)
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer unix.Close(s)
	if len(dir) < 90 { // sun_path
		must(t, unix.Bind(s, &unix.SockaddrUnix{Name: filepath.Join(dir, "sock")}))
	}
	tr, err := FromDir(t.Context(), dir, DirOptions{})
	must(t, err)
	var got []string
	must(t, tr.Walk(func(path string, n *tree.Node) error {
		got = append(got, path)
		if n.UID != 0 || n.GID != 0 {
			t.Errorf("%s: owner %d:%d", path, n.UID, n.GID)
		}
		return nil
	}))
	if want := []string{".", "a", "a/b", "a/b/hard", "a/file", "empty", "fifo", "in", "out"}; !slices.Equal(got, want) {
		t.Errorf("paths: %q", got)
	}
	f, _ := tr.Lookup("a/file")
	h, _ := tr.Lookup("a/b/hard")
	out, _ := tr.Lookup("out")
	fifo, _ := tr.Lookup("fifo")
	if f != h || f.Perm != 0o4750 || f.Mtime != 1_700_000_000_123_456_789 || out.Target != "/etc/shadow" || fifo.Kind != tree.FIFO {
		t.Errorf("%+v %+v %+v", f, out, fifo)
	}
	if b, err := tree.ReadAll(f.Content, 100); err != nil || string(b) != "content" {
		t.Errorf("content: %q, %v", b, err)
	}
	// Two readings are one tree.
	again, err := FromDir(t.Context(), dir, DirOptions{})
	must(t, err)
	d1, err := tr.Digest()
	must(t, err)
	if d2, err := again.Digest(); err != nil || d1 != d2 {
		t.Errorf("another digest: %v", err)
	}
	tr, err = FromDir(t.Context(), dir, DirOptions{Skip: func(path string, d fs.FileInfo) bool { return path == "a/b" || d.Name() == "fifo" }})
	must(t, err)
	if s, err := tr.Stats(); err != nil || s.Names != 5 {
		t.Errorf("skipped: %+v, %v", s, err)
	}
	if os.Getuid() == 0 {
		must(t, os.Lchown(filepath.Join(dir, "out"), 1234, 5678))
		tr, err = FromDir(t.Context(), dir, DirOptions{KeepOwner: true})
		must(t, err)
		if n, _ := tr.Lookup("out"); n.UID != 1234 || n.GID != 5678 {
			t.Errorf("kept owner: %+v", n)
		}
	}
}

// TestFromDirChanges: a file that is no longer what it was gives no bytes, and
// never those of a file outside of the folder.
func TestFromDirChanges(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("content"), 0o600)) // as long as the file's
	for name, change := range map[string]func(dir string){
		"longer":    func(dir string) { must(t, os.WriteFile(filepath.Join(dir, "a/file"), []byte("contents"), 0o600)) },
		"rewritten": func(dir string) { must(t, os.WriteFile(filepath.Join(dir, "a/file"), []byte("CONTENT"), 0o600)) },
		"gone":      func(dir string) { must(t, os.Remove(filepath.Join(dir, "a/file"))) },
		"a symlink": func(dir string) {
			f := filepath.Join(dir, "a/file")
			must(t, os.Remove(f))
			must(t, os.Symlink(secret, f))
		},
		"a FIFO": func(dir string) {
			f := filepath.Join(dir, "a/file")
			must(t, os.Remove(f))
			must(t, unix.Mkfifo(f, 0o600))
		},
		"a dir's link": func(dir string) {
			must(t, os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")))
			must(t, os.Symlink(filepath.Dir(secret), filepath.Join(dir, "a")))
		},
	} {
		dir := folder(t)
		tr, err := FromDir(t.Context(), dir, DirOptions{Skip: func(path string, _ fs.FileInfo) bool { return path == "a/b" }})
		must(t, err)
		n, err := tr.Lookup("a/file")
		must(t, err)
		change(dir)
		if b, err := tree.ReadAll(n.Content, 100); err == nil || !strings.Contains(err.Error(), "a/file: ") {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func TestFromDirRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		o    DirOptions
		says string
	}{
		"entries": {DirOptions{Limits: Limits{Entries: 3}}, "more than 3 entries"},
		"bytes":   {DirOptions{Limits: Limits{Bytes: 6}}, "more than 6 bytes"},
		"depth":   {DirOptions{Limits: Limits{Depth: 1}}, "1 levels"},
		"path":    {DirOptions{Limits: Limits{Path: 7}}, "more than 7 bytes"},
		"names":   {DirOptions{Limits: Limits{Names: 7}}, "more than 7 bytes"},
	} {
		if _, err := FromDir(t.Context(), folder(t), c.o); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := folder(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FromDir(ctx, dir, DirOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := FromDir(t.Context(), filepath.Join(dir, "none"), DirOptions{}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir) {
		t.Errorf("no folder: %v", err)
	}
	if _, err := FromDir(t.Context(), filepath.Join(dir, "empty"), DirOptions{}); err == nil {
		t.Error("a file is taken for a folder")
	}
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Skipf("NOT RUN: no device can be made here: %v", err)
	}
	if _, err := FromDir(t.Context(), dir, DirOptions{}); !errors.Is(err, ErrEntry) || !strings.Contains(err.Error(), `entry "null": a character device`) {
		t.Errorf("a device: %v", err)
	}
	tr, err := FromDir(t.Context(), dir, DirOptions{Devices: true})
	must(t, err)
	if n, _ := tr.Lookup("null"); n.Kind != tree.CharDevice || n.Major != 1 || n.Minor != 3 {
		t.Errorf("a device that is kept: %+v", n)
	}
}

func TestFromFile(t *testing.T) {
	dir := folder(t)
	n, err := FromFile(filepath.Join(dir, "in", "file"))
	must(t, err)
	if b, err := tree.ReadAll(n.Content, 100); err != nil || string(b) != "content" || n.Perm != 0o4750 {
		t.Errorf("%q %+v, %v", b, n, err)
	}
	for _, name := range []string{"a", "fifo", "none"} {
		if _, err := FromFile(filepath.Join(dir, name)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
