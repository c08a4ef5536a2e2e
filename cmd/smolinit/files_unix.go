//go:build (netbsd && amd64) || linux

package main

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// rootFiles is a directory as the root of a step's file system.
type rootFiles string

func (r rootFiles) path(name string) string { return string(r) + "/" + name }

func (r rootFiles) list(dir string) ([]string, error) {
	f, err := os.Open(r.path(dir))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (r rootFiles) lstat(name string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Lstat(r.path(name), &st); err != nil {
		return inode{}, &fs.PathError{Op: "lstat", Path: "/" + name, Err: err}
	}
	return inodeOf(&st), nil
}

func (r rootFiles) open(name string) (fileSource, error) { return os.Open(r.path(name)) }

func (r rootFiles) readlink(name string) (string, error) { return os.Readlink(r.path(name)) }

// stat follows links.
func stat(name string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return inode{}, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return inodeOf(&st), nil
}

// noteOwn remembers a file, and gives what tells whether smolinit has written it
// between the two calls.
func noteOwn(name string) func() *own {
	var o own
	old, oldErr := os.ReadFile(name)
	o.was, _ = stat(name)
	return func() *own {
		now, err := os.ReadFile(name)
		if err != nil || oldErr == nil && string(now) == string(old) {
			return nil
		}
		if o.written, err = stat(name); err != nil {
			return nil
		}
		if oldErr == nil {
			o.original = append([]byte{}, old...)
		}
		return &o
	}
}
