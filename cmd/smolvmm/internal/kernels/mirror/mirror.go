// Package mirror fetches NetBSD's official kernels from its mirrors into the cache of
// package kernels, which is apart from it so that a boot that finds its kernel there
// takes in no HTTP client.
package mirror

import (
	"compress/flate"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/builder/fetch"
	"github.com/smolvmm/smolvmm/builder/fetch/files"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"
)

const (
	// DefaultMirror is NetBSD's own content network.
	DefaultMirror = "https://cdn.netbsd.org"
	// MirrorVariable is the environment variable that names another; the
	// command reads it.
	MirrorVariable = "SMOLVMM_NETBSD_MIRROR"

	// maxPacked bounds a compressed kernel, in bytes; they have about 5 MiB.
	maxPacked = 64 << 20
)

// Options say where to fetch from and to. The zero value is the default.
type Options struct {
	// Mirror holds pub/NetBSD; http or https. "" is DefaultMirror. The digest
	// comes from the same place: over plain http it proves only that the
	// transfer was whole.
	Mirror string
	// Cache is the cache folder. "" is CacheDir.
	Cache string
	// Progress is told the bytes got and to get (-1: unknown), in the caller's
	// goroutine.
	Progress func(got, total int64)
	// Idle is how long the mirror may send nothing. 0 is half a minute.
	Idle time.Duration
}

// Fetch brings the kernel of a release ("" is DefaultRelease) into the cache
// and returns it. One that is there and matches its digest is not fetched
// again. A transfer that is cut is taken up where it ended, by this call or by
// the next. The kernel appears under its name only when it is whole, checked
// and on disk.
func Fetch(ctx context.Context, rel string, o Options) (kernels.Kernel, error) {
	if rel == "" {
		rel = kernels.DefaultRelease
	}
	r, err := kernels.ParseRelease(rel)
	if err != nil {
		return kernels.Kernel{}, err
	}
	if err := r.Published(); err != nil {
		return kernels.Kernel{}, err
	}
	if o.Cache, err = kernels.Cache(o.Cache); err != nil {
		return kernels.Kernel{}, err
	}
	if o.Mirror == "" {
		o.Mirror = DefaultMirror
	}
	base, err := mirrorBase(o.Mirror)
	if err != nil {
		return kernels.Kernel{}, err
	}
	if k, err := kernels.Lookup(o.Cache, r); err == nil && filepath.Base(k.Path) == kernels.Name && kernels.Verify(k) == nil {
		return k, nil
	}
	f := fetcher{Options: o, rel: r, dir: filepath.Join(o.Cache, r.String()), base: base + r.Folder()}
	f.client = fetch.New(fetch.Options{Idle: o.Idle, Proxy: http.ProxyFromEnvironment, Advice: f.byHand(), Disk: f.cacheError})
	defer f.client.Close()
	return f.fetch(ctx)
}

// mirrorBase checks a mirror's URL and takes what lies above pub/NetBSD.
func mirrorBase(mirror string) (string, error) {
	base, err := fetch.Base(mirror, DefaultMirror)
	return strings.TrimSuffix(base, "/pub/NetBSD"), err
}

type fetcher struct {
	Options
	rel    kernels.Release
	dir    string // of the release in the cache
	base   string // of the release on the mirror
	client *fetch.Client
}

func (f *fetcher) fetch(ctx context.Context) (kernels.Kernel, error) {
	unlock, err := f.open()
	if err != nil {
		return kernels.Kernel{}, err
	}
	defer unlock()
	want, err := f.digest(ctx)
	if err != nil {
		return kernels.Kernel{}, err
	}
	err = f.client.Download(ctx, fetch.Request{URL: f.base + kernels.Packed, Path: filepath.Join(f.dir, kernels.Packed), Limit: maxPacked, What: "a kernel", Progress: f.Progress})
	if err != nil {
		return kernels.Kernel{}, f.notFound(err)
	}
	if err := f.install(want); err != nil {
		return kernels.Kernel{}, err
	}
	return kernels.Lookup(f.Cache, f.rel)
}

// open makes the release's folder and keeps other fetches out of it.
func (f *fetcher) open() (unlock func(), err error) {
	unlock, err = files.Lock(f.dir)
	if errors.Is(err, files.ErrBusy) {
		return nil, kernels.Fail(kernels.ErrCache, err, "%s: another smolvmm is fetching this kernel: wait for it", f.dir)
	}
	if err != nil {
		return nil, f.cacheError(err)
	}
	return unlock, nil
}

func (f *fetcher) cacheError(err error) error {
	return kernels.Fail(kernels.ErrCache, err, "kernel cache %s cannot be written: %v: make it writable, or set XDG_CACHE_HOME to a folder that is", f.Cache, err)
}

// byHand is the advice for who has no network here.
func (f *fetcher) byHand() string {
	return fmt.Sprintf("get %s%s elsewhere and put it at %s", f.base, kernels.Packed, filepath.Join(f.dir, kernels.Packed))
}

// notFound says what it means that a file is not on the mirror.
func (f *fetcher) notFound(err error) error {
	if errors.Is(err, kernels.ErrNotFound) {
		return kernels.Fail(kernels.ErrNotFound, err, "NetBSD %s has no %s on this mirror: %v", f.rel, kernels.Name, err)
	}
	return err
}

// digest fetches the release's SHA512 and picks the kernel's.
func (f *fetcher) digest(ctx context.Context) (string, error) {
	b, err := f.client.Bytes(ctx, f.base+kernels.SumsName, files.MaxSums, "a file of digests")
	if err != nil {
		return "", f.notFound(err)
	}
	sum, ok := files.ParseSums(b)[kernels.Packed]
	if !ok {
		return "", kernels.Fail(kernels.ErrNotFound, nil, "%s%s: has no digest of %s: this release has no such kernel", f.base, kernels.SumsName, kernels.Packed)
	}
	return sum, nil
}

// install checks the compressed kernel, unpacks it and gives it its name.
func (f *fetcher) install(want string) (err error) {
	part := filepath.Join(f.dir, kernels.Packed+fetch.PartSuffix)
	in, err := os.Open(part)
	if err != nil {
		return f.cacheError(err)
	}
	defer in.Close()
	h := sha512.New()
	if _, err := io.Copy(h, in); err != nil {
		return f.cacheError(err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		fetch.Drop(filepath.Join(f.dir, kernels.Packed))
		return kernels.Fail(kernels.ErrChecksum, nil, "%s%s: its SHA-512 begins %.12s, the release's %s says %.12s: nothing was kept; try again, or another mirror", f.base, kernels.Packed, got, kernels.SumsName, want)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return f.cacheError(err)
	}
	z, err := gzip.NewReader(in)
	if err != nil {
		fetch.Drop(filepath.Join(f.dir, kernels.Packed))
		return kernels.Fail(kernels.ErrMirror, err, "%s%s: %v", f.base, kernels.Packed, err)
	}
	h.Reset()
	err = f.write(kernels.Name, func(w io.Writer) error {
		n, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(z, kernels.MaxKernel+1))
		switch {
		case isGzip(err):
			return kernels.Fail(kernels.ErrMirror, err, "%s%s: %v", f.base, kernels.Packed, err)
		case err != nil:
			return err
		case n > kernels.MaxKernel:
			return kernels.Fail(kernels.ErrMirror, nil, "%s%s: unpacks to more than %d MiB: not a kernel", f.base, kernels.Packed, kernels.MaxKernel>>20)
		}
		// The digests go first: a kernel under its name always has them.
		return f.write(kernels.SumsName, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "SHA512 (%s) = %s\nSHA512 (%s) = %x\n", kernels.Packed, want, kernels.Name, h.Sum(nil))
			return err
		})
	})
	if err == nil || errors.Is(err, kernels.ErrMirror) {
		fetch.Drop(filepath.Join(f.dir, kernels.Packed))
	}
	return err
}

func isGzip(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &corrupt)
}

// write makes a file of the release's folder: under another name until it is
// complete and on disk.
func (f *fetcher) write(name string, fill func(io.Writer) error) error {
	err := files.WriteFile(f.dir, name, fill)
	var e *kernels.Error
	if err != nil && !errors.As(err, &e) {
		return f.cacheError(err)
	}
	return err
}
