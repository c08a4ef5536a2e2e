package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/smolvmm/smolvmm/builder/image/ffs"
	"github.com/smolvmm/smolvmm/builder/image/ffs/ffstest"
	"github.com/smolvmm/smolvmm/builder/image/gpt"
	"github.com/smolvmm/smolvmm/builder/tree"
)

func example(t *testing.T) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for path, n := range map[string]*tree.Node{
		"bin/program": tree.NewFile(0o755, tree.Bytes(bytes.Repeat([]byte("program"), 100000))),
		"etc/conf":    tree.NewFile(0o644, tree.Bytes("conf")),
		"dev/null":    {Kind: tree.CharDevice, Perm: 0o666, Major: 2, Minor: 2},
	} {
		if err := tr.Put(path, n); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// TestLayouts: both layouts have a file system that is right and where Info says,
// of the size that was asked for, with holes where nothing is.
func TestLayouts(t *testing.T) {
	for _, c := range []struct {
		o    Options
		root string
		size int64 // 0: any
	}{
		{Options{}, "ld0a", 0},
		{Options{Layout: FFS, Minimize: true}, "ld0a", 0},
		{Options{Layout: FFS, Size: 96<<20 + 512}, "ld0a", 96<<20 + 512},
		{Options{Layout: GPT}, "NAME=root", 0},
		{Options{Layout: GPT, Label: "webroot", Minimize: true}, "NAME=webroot", 0},
		{Options{Layout: GPT, Label: "webroot", Size: 64<<20 + 512}, "NAME=webroot", 64<<20 + 512},
		{Options{Layout: GPT, Label: "webroot", Minimize: true, Free: 8 << 20, Size: 64 << 20}, "NAME=webroot", 0},
	} {
		tr := example(t)
		name := filepath.Join(t.TempDir(), "disk.img")
		info, err := Create(t.Context(), name, tr, c.o)
		if err != nil {
			t.Errorf("%+v: %v", c.o, err)
			continue
		}
		planned, err := Plan(tr, c.o)
		if err != nil || planned != info {
			t.Errorf("%+v was planned, %+v made: %v", planned, info, err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() != info.Size || info.Root != c.root || c.size != 0 && info.Size != c.size || info.Size%gpt.Sector != 0 || info.FS.Free < c.o.Free {
			t.Errorf("%+v for %+v, a file of %d", info, c.o, st.Size())
		}
		if held := st.Sys().(*syscall.Stat_t).Blocks * 512; held > 2<<20 {
			t.Errorf("%+v: the file holds %d bytes for 700 KB of contents", c.o, held)
		}
		d, err := ffstest.Open(io.NewSectionReader(f, info.Offset, info.FS.Size), true)
		if err == nil {
			err = errors.Join(d.Verify(), d.Compare(tr))
		}
		if err != nil {
			t.Errorf("%+v: %v", c.o, err)
		}
		if again := filepath.Join(t.TempDir(), "again.img"); !same(t, name, again, c.o) {
			t.Errorf("%+v: other bytes the second time", c.o)
		}
	}
}

func same(t *testing.T, first, again string, o Options) bool {
	t.Helper()
	if _, err := Create(t.Context(), again, example(t), o); err != nil {
		t.Fatal(err)
	}
	a, errA := os.ReadFile(first)
	b, errB := os.ReadFile(again)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(a, b)
}

// TestBuildReplaces: nothing of what was in the file stays.
func TestBuildReplaces(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte{0xff}, 4<<20)); err != nil {
		t.Fatal(err)
	}
	info, err := Build(t.Context(), f, example(t), Options{Size: 3 << 20})
	if err != nil {
		t.Fatal(err)
	}
	d, err := ffstest.Open(io.NewSectionReader(f, 0, info.Size), true)
	if err == nil {
		err = d.Verify()
	}
	if err != nil {
		t.Error(err)
	}
	boot := make([]byte, 65536)
	if _, err := f.ReadAt(boot, 0); err != nil || len(bytes.Trim(boot, "\x00")) != 0 {
		t.Errorf("the boot area has old bytes (%v)", err)
	}
}

// hostile is a content whose reads end a build.
type hostile struct {
	size int64
	read func() error
}

func (h hostile) Size() int64                      { return h.size }
func (h hostile) Open() (tree.ReadAtCloser, error) { return h, nil }
func (h hostile) Close() error                     { return nil }
func (h hostile) ReadAt(b []byte, _ int64) (int, error) {
	if err := h.read(); err != nil {
		return 0, err
	}
	b[0] = 1
	return len(b), nil
}

// TestHalfAnImage: after an error or the end of ctx in the middle, what had the
// name before still has it, and no other file is there.
func TestHalfAnImage(t *testing.T) {
	for says, read := range map[string]func(context.CancelFunc) error{
		"file already closed": func(context.CancelFunc) error { return os.ErrClosed },
		"context canceled":    func(cancel context.CancelFunc) error { cancel(); return nil },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		dir := t.TempDir()
		name := filepath.Join(dir, "disk.img")
		if err := os.WriteFile(name, []byte("before"), 0o600); err != nil {
			t.Fatal(err)
		}
		tr := example(t)
		if err := tr.Put("etc/file", tree.NewFile(0o644, hostile{100 << 20, func() error { return read(cancel) }})); err != nil {
			t.Fatal(err)
		}
		if _, err := Create(ctx, name, tr, Options{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want it to say %q", err, says)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 1 {
			t.Errorf("left behind: %v (%v)", left, err)
		}
		if b, err := os.ReadFile(name); err != nil || string(b) != "before" {
			t.Errorf("the name has %q (%v)", b, err)
		}
	}
	if _, err := Create(t.Context(), filepath.Join(t.TempDir(), "none", "disk.img"), example(t), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such folder: %v", err)
	}
}

// TestRefused: what cannot be made is an error before there is a file.
func TestRefused(t *testing.T) {
	for says, o := range map[string]Options{
		`layout "mbr"`:          {Layout: "mbr"},
		"multiple of 512":       {Size: 1<<20 + 1},
		"table alone":           {Layout: GPT, Size: 1 << 20},
		"label":                 {Layout: GPT, Label: "two words"},
		"too small: 2097152":    {Size: 2 << 20, FreeInodes: 100000},
		"file system of":        {Size: 2 << 40},
		"file system too small": {Minimize: true, Size: 512},
	} {
		dir := t.TempDir()
		if _, err := Create(t.Context(), filepath.Join(dir, "disk.img"), example(t), o); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want it to say %q", err, says)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v (%v)", left, err)
		}
	}
	if _, err := Plan(example(t), Options{Size: 1 << 20 / 2}); !errors.Is(err, ffs.ErrSpace) {
		t.Errorf("%v is not ErrSpace", err)
	}
}
