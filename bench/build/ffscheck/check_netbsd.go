package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func (e Entry) check() error {
	var st syscall.Stat_t
	if err := syscall.Lstat(e.Path, &st); err != nil {
		return err
	}
	got := Entry{
		Path: e.Path, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Flags: st.Flags, Links: st.Nlink,
		Mtime: st.Mtimespec.Sec*1e9 + int64(st.Mtimespec.Nsec), Same: e.Same,
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		got.Size = st.Size
		f, err := os.Open(e.Path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		got.Sum = hex.EncodeToString(h.Sum(nil))
	case syscall.S_IFLNK:
		got.Size = st.Size
		target, err := os.Readlink(e.Path)
		if err != nil {
			return err
		}
		got.Target = target
	case syscall.S_IFCHR, syscall.S_IFBLK:
		got.Dev = st.Rdev
	}
	if got != e {
		return fmt.Errorf("it is %+v, want %+v", got, e)
	}
	if e.Same != "" {
		var other syscall.Stat_t
		if err := syscall.Lstat(e.Same, &other); err != nil || other.Ino != st.Ino {
			return fmt.Errorf("inode %d, and %s is %d: %v", st.Ino, e.Same, other.Ino, err)
		}
	}
	return nil
}

// fill writes until no byte more has room, twice, and creates files until no
// inode is left, and takes all away again.
func fill() (string, error) {
	var sizes [2]int64
	for i := range sizes {
		n, err := fillBytes("/fill")
		if err != nil {
			return "", err
		}
		sizes[i] = n
	}
	if sizes[0] != sizes[1] {
		return "", fmt.Errorf("room for %d bytes at first, and %d when they had been removed", sizes[0], sizes[1])
	}
	files := 0
	for ; ; files++ {
		err := os.WriteFile(fmt.Sprintf("/inodes/%d", files), nil, 0o600)
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if errors.Is(err, os.ErrNotExist) && files == 0 {
			err = os.Mkdir("/inodes", 0o755)
			files--
		}
		if err != nil {
			return "", err
		}
	}
	if err := os.RemoveAll("/inodes"); err != nil {
		return "", err
	}
	unix.Sync()
	return fmt.Sprintf("room for %d bytes, twice, and for %d files", sizes[0], files), nil
}

func fillBytes(name string) (int64, error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := pattern(name, 1<<20)
	total := int64(0)
	// At the end in smaller and smaller pieces: the last fragment counts.
	for size := len(b); size >= 512; {
		n, err := f.Write(b[:size])
		total += int64(n)
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		case err != nil:
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return total, os.Remove(name)
}

// pattern is bytes that differ from name to name.
func pattern(name string, n int) []byte {
	sum := sha256.Sum256([]byte(name))
	return bytes.Repeat(sum[:], n/len(sum)+1)[:n]
}

// expect is what change leaves behind, by name: files have pattern's bytes.
func expect() map[string]int {
	files := map[string]int{"/victims/grown": 300000, "/victims/shrunk": 1000, "/new/large": 3 << 20}
	for i := range 200 {
		if i%3 != 0 {
			files[fmt.Sprintf("/new/%d/%s-%d", i%7, strings.Repeat("n", i), i)] = i * 97
		}
	}
	return files
}

// change makes, renames, links, grows, shrinks and removes, new files and the
// image's own.
func change() (string, error) {
	if err := os.RemoveAll("/victims/tree"); err != nil {
		return "", err
	}
	for i := range 7 {
		if err := os.MkdirAll(fmt.Sprintf("/new/%d/a/b/c", i), 0o755); err != nil {
			return "", err
		}
	}
	for i := range 200 {
		name := fmt.Sprintf("/new/%d/tmp-%d", i%7, i)
		final := fmt.Sprintf("/new/%d/%s-%d", i%7, strings.Repeat("n", i), i)
		err := os.WriteFile(name, pattern(final, i*97), 0o644)
		if i%3 == 0 {
			err = errors.Join(err, os.Remove(name))
		} else {
			err = errors.Join(err, os.Rename(name, final))
		}
		if err != nil {
			return "", err
		}
	}
	if err := errors.Join(
		os.WriteFile("/victims/grown", pattern("/victims/grown", 300000), 0o644),
		os.WriteFile("/victims/shrunk", pattern("/victims/shrunk", 1000), 0o644),
		os.WriteFile("/new/large", pattern("/new/large", 3<<20), 0o644),
		os.Link("/new/large", "/new/linked"),
		os.Symlink(strings.Repeat("t", 400), "/new/symlink"),
	); err != nil {
		return "", err
	}
	f, err := os.Create("/new/sparse")
	if err != nil {
		return "", err
	}
	_, err = f.WriteAt([]byte("far"), 3<<30)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", err
	}
	unix.Sync()
	return changed()
}

// changed holds what is there to what change made.
func changed() (string, error) {
	want := expect()
	for name, size := range want {
		b, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		if !bytes.Equal(b, pattern(name, size)) {
			return "", fmt.Errorf("%s: other bytes, %d of %d", name, len(b), size)
		}
	}
	names := 0
	err := filepath.WalkDir("/new", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names++
		}
		return err
	})
	// What is in /new, with /new/linked and /new/sparse and without /victims.
	if err == nil && names != len(want) {
		err = fmt.Errorf("%d files, want %d", names, len(want))
	}
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat("/victims/tree"); !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("/victims/tree is still there: %v", err)
	}
	target, err := os.Readlink("/new/symlink")
	if err != nil || target != strings.Repeat("t", 400) {
		return "", fmt.Errorf("/new/symlink is %q: %v", target, err)
	}
	b := make([]byte, 3)
	f, err := os.Open("/new/sparse")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := f.ReadAt(b, 3<<30); err != nil || string(b) != "far" {
		return "", fmt.Errorf("/new/sparse ends with %q: %v", b, err)
	}
	return fmt.Sprintf("%d files are as they were left", len(want)), nil
}
