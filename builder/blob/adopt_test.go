package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// holey makes a file with data between holes.
func holey(t testing.TB, path string, size int64) []byte {
	t.Helper()
	want := make([]byte, size)
	copy(want[1<<20:], bytes.Repeat([]byte{7}, 100_000))
	f, err := os.Create(path)
	must(t, err)
	_, err = f.WriteAt(want[1<<20:1<<20+100_000], 1<<20)
	must(t, errors.Join(err, f.Truncate(size), f.Close()))
	return want
}

// TestAdopt: a finished file becomes a content without a copy: the very inode, its
// holes with it, in place of a damaged one if need be.
func TestAdopt(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "store"))
	path := filepath.Join(dir, "disk")
	for range 2 {
		want := holey(t, path, 8<<20)
		var before, after unix.Stat_t
		must(t, unix.Stat(path, &before))
		b, err := s.Adopt(t.Context(), path)
		must(t, err)
		must(t, unix.Stat(b.Path(), &after))
		if before.Ino != after.Ino || after.Blocks != before.Blocks || after.Mode&0o777 != filePerm {
			t.Errorf("before %+v, after %+v", before, after)
		}
		if b.Digest() != tree.Bytes(want).Digest() || b.Size() != int64(len(want)) {
			t.Errorf("%s of %d bytes", b.Digest(), b.Size())
		}
		must(t, s.Verify(t.Context(), b.Digest()))
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file is there still: %v", err)
		}
		must(t, errors.Join(s.Sync(), os.Chmod(b.Path(), 0o600), os.Truncate(b.Path(), 5)))
	}
}

func TestAdoptRefuses(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "store"))
	path := filepath.Join(dir, "disk")
	if _, err := s.Adopt(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	holey(t, path, 4<<20)
	must(t, os.Symlink(path, path+".link"))
	must(t, unix.Mkfifo(path+".fifo", 0o600))
	for _, bad := range []string{path + ".link", path + ".fifo", dir} {
		if _, err := s.Adopt(t.Context(), bad); err == nil {
			t.Errorf("%s was adopted", bad)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Adopt(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a file that was not adopted: %v", err)
	}
	if all, err := s.List(); err != nil || len(all) > 0 {
		t.Errorf("in the store: %v, %v", all, err)
	}
}

// TestAdoptElsewhere: from another file system it is copied.
func TestAdoptElsewhere(t *testing.T) {
	const shm = "/dev/shm" // proc(5): a tmpfs
	dir, err := os.MkdirTemp(shm, "smolvmm-test-*")
	if err != nil {
		t.Skipf("NOT RUN: no second file system: %v", err)
	}
	defer os.RemoveAll(dir)
	s := open(t, t.TempDir())
	var here, there unix.Stat_t
	must(t, errors.Join(unix.Stat(s.Dir(), &here), unix.Stat(dir, &there)))
	if here.Dev == there.Dev {
		t.Skipf("NOT RUN: %s is the file system of the temporary folder", shm)
	}
	path := filepath.Join(dir, "disk")
	want := holey(t, path, 8<<20)
	b, err := s.Adopt(t.Context(), path)
	must(t, err)
	must(t, s.Verify(t.Context(), b.Digest()))
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) || b.Digest() != tree.Bytes(want).Digest() {
		t.Errorf("%s, %v", b.Digest(), err)
	}
}

// TestSyncKnowsWhat: few contents are waited for by themselves, many at once, and
// those that are gone not at all.
func TestSyncKnowsWhat(t *testing.T) {
	s := open(t, t.TempDir())
	for _, n := range []int{3, maxUnsynced, maxUnsynced + 1} {
		for i := range n {
			_, err := s.Put(t.Context(), tree.Bytes(fmt.Sprint(n, i)))
			must(t, err)
		}
		if many := n > maxUnsynced; s.many != many || !many && len(s.unsynced) != n {
			t.Errorf("of %d: %d, many %v", n, len(s.unsynced), s.many)
		}
		all, err := s.List()
		must(t, err)
		must(t, s.Remove(all[0].Digest()))
		must(t, s.Sync())
		if len(s.unsynced) != 0 || s.many {
			t.Errorf("%d left after a sync, many %v", len(s.unsynced), s.many)
		}
	}
}

// BenchmarkAdoptHole1G is what hashing holes costs.
func BenchmarkAdoptHole1G(b *testing.B) {
	dir := b.TempDir()
	s := open(b, filepath.Join(dir, "store"))
	path := filepath.Join(dir, "disk")
	b.SetBytes(1 << 30)
	for range b.N {
		must(b, os.WriteFile(path, nil, 0o600))
		must(b, os.Truncate(path, 1<<30))
		if _, err := s.Adopt(b.Context(), path); err != nil {
			b.Fatal(err)
		}
	}
}
