// Package kernels keeps NetBSD's official netbsd-MICROVM kernels in the user's
// cache folder: it fetches them by release, checks them, lists and finds them.
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

	"github.com/smolvmm/smolvmm/builder/fetch"
)

const (
	// Name is the kernel's file name in a release and in the cache.
	Name     = "netbsd-MICROVM"
	packed   = Name + ".gz"
	sumsName = "SHA512"

	// maxKernel bounds an unpacked kernel, in bytes; they have about 10 MiB.
	maxKernel = 256 << 20
)

// What an *Error can be about, for errors.Is.
var (
	ErrRelease   = errors.New("bad release")
	ErrTooOld    = errors.New("no such kernel in this release")
	ErrNotCached = errors.New("kernel not in the cache")
	ErrNotFound  = fetch.ErrNotFound
	ErrNetwork   = fetch.ErrNetwork
	ErrMirror    = fetch.ErrServer
	ErrChecksum  = fetch.ErrChecksum
	ErrCache     = fetch.ErrCache
)

// Error is one line for the user: what, where, what to do. Its Kind is one of the
// Err values.
type Error = fetch.Error

// fail makes an *Error; cause may be nil.
func fail(kind, cause error, format string, args ...any) error {
	return fetch.Fail(kind, cause, format, args...)
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
		return "", fail(ErrCache, err, "no folder for the kernel cache: %v: set HOME or XDG_CACHE_HOME", err)
	}
	return filepath.Join(dir, "smolvmm", "kernels"), nil
}

// cacheOr is dir, or CacheDir where dir is empty.
func cacheOr(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	return CacheDir()
}

// List gives the kernels in the cache at dir ("" is CacheDir), newest release
// first. No cache yet is an empty list.
func List(dir string) ([]Kernel, error) {
	dir, err := cacheOr(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fail(ErrCache, err, "kernel cache: %v", err)
	}
	var found []Kernel
	var order []release
	for _, e := range entries {
		r, err := parseRelease(e.Name())
		if err != nil {
			continue // not ours
		}
		k, err := lookup(dir, r)
		if errors.Is(err, ErrNotCached) {
			continue // a fetch that has not ended
		}
		if err != nil {
			return nil, err
		}
		i, _ := slices.BinarySearchFunc(order, r, func(a, b release) int { return b.compare(a) })
		order = slices.Insert(order, i, r)
		found = slices.Insert(found, i, k)
	}
	return found, nil
}

// Find gives the cached kernel of a release, or of the newest one there is
// where rel is empty. dir is the cache ("" is CacheDir).
func Find(dir, rel string) (Kernel, error) {
	if rel != "" {
		r, err := parseRelease(rel)
		if err != nil {
			return Kernel{}, err
		}
		if dir, err = cacheOr(dir); err != nil {
			return Kernel{}, err
		}
		return lookup(dir, r)
	}
	all, err := List(dir)
	if err != nil {
		return Kernel{}, err
	}
	if len(all) == 0 {
		return Kernel{}, fail(ErrNotCached, nil, "no kernel given and none in the cache: name one with -kernel, or run `smolvmm kernel fetch`")
	}
	return all[0], nil
}

func lookup(dir string, r release) (Kernel, error) {
	folder := filepath.Join(dir, r.String())
	for _, name := range []string{Name, packed} {
		path := filepath.Join(folder, name)
		st, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return Kernel{}, fail(ErrCache, err, "kernel cache: %v", err)
		case !st.Mode().IsRegular():
			return Kernel{}, fail(ErrCache, nil, "kernel cache: %s is not a regular file", path)
		}
		k := Kernel{Release: r.String(), Path: path, Size: st.Size()}
		if sums, err := fetch.ReadSums(filepath.Join(folder, sumsName)); err == nil {
			k.SHA512 = sums[name]
		}
		return k, nil
	}
	return Kernel{}, fail(ErrNotCached, nil, "no kernel of NetBSD %s in the cache: run `smolvmm kernel fetch %s`", r, r)
}

// Verify reads the kernel and compares it with the digest noted when it was
// fetched.
func Verify(k Kernel) error {
	if k.SHA512 == "" {
		return fail(ErrChecksum, nil, "%s: no digest is beside it to check against (it was put there by hand)", k.Path)
	}
	f, err := os.Open(k.Path)
	if err != nil {
		return fail(ErrCache, err, "kernel cache: %v", err)
	}
	defer f.Close()
	h := sha512.New()
	n, err := io.Copy(h, io.LimitReader(f, maxKernel+1))
	if err != nil {
		return fail(ErrCache, err, "%s: %v", k.Path, err)
	}
	if n > maxKernel || hex.EncodeToString(h.Sum(nil)) != k.SHA512 {
		return fail(ErrChecksum, nil, "%s: its SHA-512 is not the one noted when it was fetched: run `smolvmm kernel fetch %s` again", k.Path, k.Release)
	}
	return nil
}
