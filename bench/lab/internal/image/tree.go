// Package image gathers what goes into the lab's guest (files, programs with their libraries, kernel modules) and writes
// it as the initramfs.
package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"
)

// Tree is a set of files by guest path. The zero value is not ready: call NewTree.
type Tree struct {
	recs map[string]cpio.Record // by path without the leading slash
	size int64
}

// NewTree returns an empty tree.
func NewTree() *Tree { return &Tree{recs: map[string]cpio.Record{}} }

// Size is the number of bytes of all files.
func (t *Tree) Size() int64 { return t.size }

// Has says whether something is at the guest path.
func (t *Tree) Has(guest string) bool {
	_, ok := t.recs[name(guest)]
	return ok
}

func name(guest string) string { return strings.TrimPrefix(path.Clean("/"+guest), "/") }

func (t *Tree) put(r cpio.Record) {
	if r.Name == "" {
		return
	}
	if old, ok := t.recs[r.Name]; ok {
		if old.Mode&cpio.S_IFMT == cpio.S_IFDIR && r.Mode&cpio.S_IFMT == cpio.S_IFDIR {
			return
		}
		t.size -= int64(old.FileSize)
	}
	t.size += int64(r.FileSize)
	t.recs[r.Name] = r
	for d := path.Dir(r.Name); d != "."; d = path.Dir(d) {
		if _, ok := t.recs[d]; ok {
			break
		}
		t.recs[d] = cpio.Directory(d, 0o755)
	}
}

// Dir adds a folder; its parents come by themselves, here and in the other methods.
func (t *Tree) Dir(guest string, perm fs.FileMode) {
	t.put(cpio.Directory(name(guest), unixPerm(perm)))
}

// Bytes adds a file of the bytes given.
func (t *Tree) Bytes(guest string, b []byte, perm fs.FileMode) {
	t.put(cpio.StaticFile(name(guest), string(b), unixPerm(perm)))
}

// Symlink adds a symbolic link.
func (t *Tree) Symlink(guest, target string) { t.put(cpio.Symlink(name(guest), target)) }

// CharDev adds a character device.
func (t *Tree) CharDev(guest string, perm fs.FileMode, major, minor uint64) {
	t.put(cpio.CharDev(name(guest), unixPerm(perm), major, minor))
}

// File adds a host file, following symbolic links. It is read when the archive is written.
func (t *Tree) File(host, guest string) error {
	fi, err := os.Stat(host)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", host)
	}
	if fi.Size() > 1<<32-1 {
		return fmt.Errorf("%s has %d bytes; an initramfs takes files below 4 GiB (give it as a -drive)", host, fi.Size())
	}
	t.put(cpio.Record{
		ReaderAt: &lazyFile{path: host, size: fi.Size()},
		Info:     cpio.Info{Name: name(guest), Mode: cpio.S_IFREG | unixPerm(fi.Mode()), FileSize: uint64(fi.Size())},
	})
	return nil
}

// Path adds a host file or a whole folder. In a folder symbolic links stay links, .git and special files are left out.
func (t *Tree) Path(host, guest string) error {
	fi, err := os.Stat(host)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return t.File(host, guest)
	}
	return walk(host, func(p, rel string, fi fs.FileInfo) error {
		g := path.Join(guest, rel)
		switch fi.Mode().Type() {
		case 0:
			return t.File(p, g)
		case fs.ModeDir:
			t.Dir(g, fi.Mode())
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			t.Symlink(g, target)
		}
		return nil
	})
}

// FolderSize is the number of bytes Path would add; it stops counting beyond limit.
func FolderSize(host string, limit int64) (int64, error) {
	var n int64
	errEnough := errors.New("enough")
	err := walk(host, func(_, _ string, fi fs.FileInfo) error {
		if fi.Mode().IsRegular() {
			n += fi.Size()
		}
		if n > limit {
			return errEnough
		}
		return nil
	})
	if err == errEnough {
		err = nil
	}
	return n, err
}

func walk(host string, f func(p, rel string, fi fs.FileInfo) error) error {
	// A trailing slash makes WalkDir follow host itself where it is a link.
	host = filepath.Clean(host)
	return filepath.WalkDir(host+"/", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == ".git" {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(host, p)
		if err != nil {
			return err
		}
		return f(p, rel, fi)
	})
}

// Under adds all of u below the guest folder dir.
func (t *Tree) Under(dir string, u *Tree) {
	for _, r := range u.sorted() {
		r.Name = path.Join(name(dir), r.Name)
		t.put(r)
	}
}

func (t *Tree) sorted() []cpio.Record {
	// Sorted by name, a folder comes before what is in it.
	recs := make([]cpio.Record, 0, len(t.recs))
	for _, r := range t.recs {
		recs = append(recs, r)
	}
	slices.SortFunc(recs, func(a, b cpio.Record) int { return strings.Compare(a.Name, b.Name) })
	return recs
}

// Write writes the tree as a newc archive, the format of an initramfs.
func (t *Tree) Write(w io.Writer) error {
	rw := cpio.Newc.Writer(w)
	recs := t.sorted()
	for i := range recs {
		// Every record its own inode number: no two are links to one file.
		recs[i].Ino = uint64(i + 1)
		if recs[i].Mode&cpio.S_IFMT == cpio.S_IFREG {
			recs[i].NLink = 1
		}
		if err := rw.WriteRecord(recs[i]); err != nil {
			return fmt.Errorf("/%s: %w", recs[i].Name, err)
		}
	}
	return cpio.WriteTrailer(rw)
}

// unixPerm gives the permission bits as Unix has them, with set-uid, set-gid and sticky.
func unixPerm(m fs.FileMode) uint64 {
	p := uint64(m.Perm())
	for _, b := range []struct {
		m fs.FileMode
		u uint64
	}{{fs.ModeSetuid, unix.S_ISUID}, {fs.ModeSetgid, unix.S_ISGID}, {fs.ModeSticky, unix.S_ISVTX}} {
		if m&b.m != 0 {
			p |= b.u
		}
	}
	return p
}

// lazyFile is a file opened at its first read and closed after its last byte, so that a tree of many files holds no
// descriptors.
type lazyFile struct {
	path string
	size int64
	f    *os.File
}

// ReadAt gives the size announced, whatever has become of the file meanwhile: the archive's header is already written.
func (l *lazyFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= l.size {
		return 0, io.EOF
	}
	if l.f == nil {
		f, err := os.Open(l.path)
		if err != nil {
			return 0, err
		}
		l.f = f
	}
	p = p[:min(int64(len(p)), l.size-off)]
	n, err := l.f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return n, err
	}
	clear(p[n:])
	return len(p), nil
}

// Close closes the file; the cpio writer calls it when the record is written.
func (l *lazyFile) Close() error {
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}
