package ffstest_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/smolvmm/smolvmm/builder/image/ffs"
	"github.com/smolvmm/smolvmm/builder/image/ffs/ffstest"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// FuzzDisk changes bytes of a small file system: at is where, what the new bytes.
func FuzzDisk(f *testing.F) {
	tr := tree.New()
	if err := errors.Join(
		tr.Put("d/file", tree.NewFile(0o644, tree.Bytes("content"))),
		tr.Put("d/large", tree.NewFile(0o644, tree.Bytes(bytes.Repeat([]byte("large"), 20000)))),
		tr.Put("link", tree.NewSymlink("d/file")),
	); err != nil {
		f.Fatal(err)
	}
	file, err := os.Create(filepath.Join(f.TempDir(), "disk.img"))
	if err != nil {
		f.Fatal(err)
	}
	info, err := ffs.Write(f.Context(), file, tr, ffs.Options{Minimize: true, Block: 4096})
	if err = errors.Join(err, file.Truncate(info.Size)); err != nil {
		f.Fatal(err)
	}
	good, err := io.ReadAll(io.NewSectionReader(file, 0, info.Size))
	if err = errors.Join(err, file.Close()); err != nil {
		f.Fatal(err)
	}
	check := func(b []byte) error {
		var all error
		for _, fresh := range []bool{true, false} {
			d, err := ffstest.Open(bytes.NewReader(b), fresh)
			if err == nil {
				err = errors.Join(d.Verify(), d.Compare(tr))
			}
			all = errors.Join(all, err)
		}
		return all
	}
	if err := check(good); err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{}) // nothing: all of it is read
	f.Add(uint32(65536+48), []byte{0, 0x20})
	f.Add(uint32(65536+184), []byte{0xff, 0xff, 0xff, 0x7f})
	f.Add(uint32(65536+1080), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	for at := uint32(73728); at < uint32(len(good)); at += 512 {
		f.Add(at+16, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	}
	f.Fuzz(func(t *testing.T, at uint32, what []byte) {
		b := bytes.Clone(good)
		if int64(at) < int64(len(b)) {
			copy(b[at:], what)
		}
		if err := check(b); err != nil && bytes.Equal(b, good) {
			t.Error(err)
		}
	})
}
