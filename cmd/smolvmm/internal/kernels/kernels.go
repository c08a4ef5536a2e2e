// Package kernels is the user's cache of NetBSD's official netbsd-MICROVM kernels:
// it lists, finds and checks them by release. Package mirror fetches them.
//
// The cache holds a folder for each release:
//
//	<cache>/<release>/netbsd-MICROVM   the kernel, unpacked
//	<cache>/<release>/SHA512           digests of it and of the file it came in
//
// A netbsd-MICROVM.gz that someone put there by hand is found too; the loader
// reads it as it is. Nothing is done at package initialisation.
package kernels

import (
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/smolvmm/smolvmm/builder/fetch/files"
)

const (
	// Name is the kernel's file name in a release and in the cache.
	Name = "netbsd-MICROVM"
	// Packed is the file that it comes in, and SumsName that of the digests.
	Packed   = Name + ".gz"
	SumsName = "SHA512"

	// MaxKernel bounds an unpacked kernel, in bytes; they have about 10 MiB.
	MaxKernel = 256 << 20
)

// What an *Error can be about, for errors.Is.
var (
	ErrRelease   = errors.New("bad release")
	ErrTooOld    = errors.New("no such kernel in this release")
	ErrNotCached = errors.New("kernel not in the cache")
	ErrNotFound  = files.ErrNotFound
	ErrNetwork   = files.ErrNetwork
	ErrMirror    = files.ErrServer
	ErrChecksum  = files.ErrChecksum
	ErrCache     = files.ErrCache
)

// Error is one line for the user: what, where, what to do. Its Kind is one of the
// Err values.
type Error = files.Error

// Fail makes an *Error; cause may be nil.
func Fail(kind, cause error, format string, args ...any) error {
	return files.Fail(kind, cause, format, args...)
}

// Kernel is a kernel in the cache.
type Kernel struct {
	Release string // "11.0"
	Path    string // of the kernel file
	Size    int64  // bytes of that file
	SHA512  string // in hex, as noted when it was fetched; "" for one put there by hand
}

// CacheDir is where kernels are kept: smolvmm/kernels in the user's cache
// folder ($XDG_CACHE_HOME, or .cache in $HOME).
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", Fail(ErrCache, err, "no folder for the kernel cache: %v: set HOME or XDG_CACHE_HOME", err)
	}
	return filepath.Join(dir, "smolvmm", "kernels"), nil
}

// Cache is dir, or CacheDir where dir is empty.
func Cache(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	return CacheDir()
}

// List gives the kernels in the cache at dir ("" is CacheDir), newest release
// first. No cache yet is an empty list.
func List(dir string) ([]Kernel, error) {
	dir, err := Cache(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, Fail(ErrCache, err, "kernel cache: %v", err)
	}
	var found []Kernel
	var order []Release
	for _, e := range entries {
		r, err := ParseRelease(e.Name())
		if err != nil {
			continue // not ours
		}
		k, err := Lookup(dir, r)
		if errors.Is(err, ErrNotCached) {
			continue // a fetch that has not ended
		}
		if err != nil {
			return nil, err
		}
		i, _ := slices.BinarySearchFunc(order, r, func(a, b Release) int { return b.Compare(a) })
		order = slices.Insert(order, i, r)
		found = slices.Insert(found, i, k)
	}
	return found, nil
}

// Find gives the cached kernel of a release, or of the newest one there is
// where rel is empty. dir is the cache ("" is CacheDir).
func Find(dir, rel string) (Kernel, error) {
	if rel != "" {
		r, err := ParseRelease(rel)
		if err != nil {
			return Kernel{}, err
		}
		if dir, err = Cache(dir); err != nil {
			return Kernel{}, err
		}
		return Lookup(dir, r)
	}
	all, err := List(dir)
	if err != nil {
		return Kernel{}, err
	}
	if len(all) == 0 {
		return Kernel{}, Fail(ErrNotCached, nil, "no kernel given and none in the cache: name one with -kernel, or run `smolvmm kernel fetch`")
	}
	return all[0], nil
}

// Lookup gives a release's kernel in the cache at dir.
func Lookup(dir string, r Release) (Kernel, error) {
	folder := filepath.Join(dir, r.String())
	for _, name := range []string{Name, Packed} {
		path := filepath.Join(folder, name)
		st, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return Kernel{}, Fail(ErrCache, err, "kernel cache: %v", err)
		case !st.Mode().IsRegular():
			return Kernel{}, Fail(ErrCache, nil, "kernel cache: %s is not a regular file", path)
		}
		k := Kernel{Release: r.String(), Path: path, Size: st.Size()}
		if sums, err := files.ReadSums(filepath.Join(folder, SumsName)); err == nil {
			k.SHA512 = sums[name]
		}
		return k, nil
	}
	return Kernel{}, Fail(ErrNotCached, nil, "no kernel of NetBSD %s in the cache: run `smolvmm kernel fetch %s`", r, r)
}

// Verify reads the kernel and compares it with the digest noted when it was
// fetched.
func Verify(k Kernel) error {
	if k.SHA512 == "" {
		return Fail(ErrChecksum, nil, "%s: no digest is beside it to check against (it was put there by hand)", k.Path)
	}
	f, err := os.Open(k.Path)
	if err != nil {
		return Fail(ErrCache, err, "kernel cache: %v", err)
	}
	defer f.Close()
	h := sha512.New()
	n, err := io.Copy(h, io.LimitReader(f, MaxKernel+1))
	if err != nil {
		return Fail(ErrCache, err, "%s: %v", k.Path, err)
	}
	if n > MaxKernel || hex.EncodeToString(h.Sum(nil)) != k.SHA512 {
		return Fail(ErrChecksum, nil, "%s: its SHA-512 is not the one noted when it was fetched: run `smolvmm kernel fetch %s` again", k.Path, k.Release)
	}
	return nil
}
