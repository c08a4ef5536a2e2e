package kernels

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
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// DefaultMirror is NetBSD's own content network.
	DefaultMirror = "https://cdn.netbsd.org"
	// MirrorVariable is the environment variable that names another; the
	// command reads it.
	MirrorVariable = "SMOLVMM_NETBSD_MIRROR"

	// maxPacked bounds a compressed kernel, in bytes; they have about 5 MiB.
	maxPacked = 64 << 20
	// idleTime is how long a mirror may send nothing.
	idleTime = 30 * time.Second
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
func Fetch(ctx context.Context, rel string, o Options) (Kernel, error) {
	if rel == "" {
		rel = DefaultRelease
	}
	r, err := parseRelease(rel)
	if err != nil {
		return Kernel{}, err
	}
	if err := r.published(); err != nil {
		return Kernel{}, err
	}
	if o.Cache, err = cacheOr(o.Cache); err != nil {
		return Kernel{}, err
	}
	if o.Mirror == "" {
		o.Mirror = DefaultMirror
	}
	if o.Idle == 0 {
		o.Idle = idleTime
	}
	base, err := mirrorBase(o.Mirror)
	if err != nil {
		return Kernel{}, err
	}
	if k, err := lookup(o.Cache, r); err == nil && filepath.Base(k.Path) == Name && Verify(k) == nil {
		return k, nil
	}
	f := fetcher{Options: o, rel: r, dir: filepath.Join(o.Cache, r.String()), base: base + r.folder()}
	f.client = &http.Client{Transport: f.transport(), CheckRedirect: noDowngrade}
	defer f.client.CloseIdleConnections()
	return f.fetch(ctx)
}

// mirrorBase checks a mirror's URL and takes what lies above pub/NetBSD.
func mirrorBase(mirror string) (string, error) {
	u, err := url.Parse(mirror)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		// The URL is not repeated: it can hold a password.
		return "", fail(ErrMirror, nil, "the mirror must be a plain http or https URL like %s, without a password in it", DefaultMirror)
	}
	return strings.TrimSuffix(strings.TrimRight(u.String(), "/"), "/pub/NetBSD"), nil
}

type fetcher struct {
	Options
	rel    release
	dir    string // of the release in the cache
	base   string // of the release on the mirror
	client *http.Client
}

func (f *fetcher) transport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DisableCompression:    true, // a .gz is wanted as it is
		ResponseHeaderTimeout: f.Idle,
		TLSHandshakeTimeout:   f.Idle,
		ForceAttemptHTTP2:     true,
	}
}

// noDowngrade keeps a transfer that began under TLS under TLS.
func noDowngrade(req *http.Request, via []*http.Request) error {
	if len(via) >= 5 {
		return errors.New("too many redirects")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirected from https to %s", req.URL.Scheme)
	}
	return nil
}

func (f *fetcher) fetch(ctx context.Context) (Kernel, error) {
	unlock, err := f.open()
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	want, err := f.digest(ctx)
	if err != nil {
		return Kernel{}, err
	}
	if err := f.download(ctx); err != nil {
		return Kernel{}, err
	}
	if err := f.install(want); err != nil {
		return Kernel{}, err
	}
	return lookup(f.Cache, f.rel)
}

// open makes the release's folder and keeps other fetches out of it.
func (f *fetcher) open() (unlock func(), err error) {
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return nil, f.cacheError(err)
	}
	d, err := os.Open(f.dir)
	if err != nil {
		return nil, f.cacheError(err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fail(ErrCache, err, "%s: another smolvmm is fetching this kernel: wait for it", f.dir)
		}
		return nil, f.cacheError(err)
	}
	return func() { d.Close() }, nil
}

func (f *fetcher) cacheError(err error) error {
	return fail(ErrCache, err, "kernel cache %s cannot be written: %v: make it writable, or set XDG_CACHE_HOME to a folder that is", f.Cache, err)
}

// byHand is the advice for who has no network here.
func (f *fetcher) byHand() string {
	return fmt.Sprintf("get %s%s elsewhere and put it at %s", f.base, packed, filepath.Join(f.dir, packed))
}

// digest fetches the release's SHA512 and picks the kernel's.
func (f *fetcher) digest(ctx context.Context) (string, error) {
	resp, err := f.get(ctx, sumsName, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", f.status(resp, sumsName)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxSums+1))
	if err != nil {
		return "", f.netError(sumsName, err)
	}
	if len(b) > maxSums {
		return "", fail(ErrMirror, nil, "%s%s: longer than %d bytes: not a file of digests", f.base, sumsName, maxSums)
	}
	sum, ok := parseSums(b)[packed]
	if !ok {
		return "", fail(ErrNotFound, nil, "%s%s: has no digest of %s: this release has no such kernel", f.base, sumsName, packed)
	}
	return sum, nil
}

// get asks for a file of the release. The body fails when nothing comes for
// Idle.
func (f *fetcher) get(ctx context.Context, name string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.base+name, nil)
	if err != nil {
		cancel(nil)
		return nil, fail(ErrMirror, err, "mirror: %v", err)
	}
	req.Header.Set("User-Agent", "smolvmm")
	for k, v := range header {
		req.Header[k] = v
	}
	// ResponseHeaderTimeout bounds a silent server, this a network that takes
	// the packets and answers none.
	idle := time.AfterFunc(2*f.Idle, func() { cancel(errIdle) })
	resp, err := f.client.Do(req)
	if err != nil {
		idle.Stop()
		err = withCause(ctx, err)
		cancel(nil)
		return nil, f.netError(name, err)
	}
	idle.Reset(f.Idle)
	resp.Body = &body{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, idle: idle, limit: f.Idle}
	return resp, nil
}

var errIdle = errors.New("the mirror sends nothing any more")

func withCause(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errIdle) {
		return errIdle
	}
	return err
}

// body puts the idle clock back at each read.
type body struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   *time.Timer
	limit  time.Duration
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.idle.Reset(b.limit)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = withCause(b.ctx, err)
	}
	return n, err
}

func (b *body) Close() error {
	b.idle.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

func (f *fetcher) netError(name string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fail(ErrNetwork, err, "fetching %s%s was stopped: run it again to go on", f.base, name)
	}
	var u *url.Error // its text repeats the URL
	if errors.As(err, &u) {
		err = u.Err
	}
	return fail(ErrNetwork, err, "cannot fetch %s%s: %v: without a network, %s", f.base, name, err, f.byHand())
}

func (f *fetcher) status(resp *http.Response, name string) error {
	if resp.StatusCode == http.StatusNotFound {
		return fail(ErrNotFound, nil, "NetBSD %s has no %s on this mirror: %s%s was not found", f.rel, Name, f.base, name)
	}
	return fail(ErrMirror, nil, "%s%s: the mirror answers %d %s", f.base, name, resp.StatusCode, http.StatusText(resp.StatusCode))
}

// install checks the compressed kernel, unpacks it and gives it its name.
func (f *fetcher) install(want string) (err error) {
	part := filepath.Join(f.dir, partName)
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
		f.dropPart()
		return fail(ErrChecksum, nil, "%s%s: its SHA-512 begins %.12s, the release's %s says %.12s: nothing was kept; try again, or another mirror", f.base, packed, got, sumsName, want)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return f.cacheError(err)
	}
	z, err := gzip.NewReader(in)
	if err != nil {
		f.dropPart()
		return fail(ErrMirror, err, "%s%s: %v", f.base, packed, err)
	}
	h.Reset()
	err = f.write(Name, func(w io.Writer) error {
		n, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(z, maxKernel+1))
		switch {
		case isGzip(err):
			return fail(ErrMirror, err, "%s%s: %v", f.base, packed, err)
		case err != nil:
			return err
		case n > maxKernel:
			return fail(ErrMirror, nil, "%s%s: unpacks to more than %d MiB: not a kernel", f.base, packed, maxKernel>>20)
		}
		// The digests go first: a kernel under its name always has them.
		return f.write(sumsName, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "SHA512 (%s) = %s\nSHA512 (%s) = %x\n", packed, want, Name, h.Sum(nil))
			return err
		})
	})
	if err == nil || errors.Is(err, ErrMirror) {
		f.dropPart()
	}
	return err
}

func isGzip(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &corrupt)
}

// write makes a file of the release's folder: under another name until it is
// complete and on disk.
func (f *fetcher) write(name string, fill func(io.Writer) error) (err error) {
	t, err := os.CreateTemp(f.dir, "."+name+".")
	if err != nil {
		return f.cacheError(err)
	}
	defer func() {
		t.Close()
		if err != nil {
			os.Remove(t.Name())
			var e *Error
			if !errors.As(err, &e) {
				err = f.cacheError(err)
			}
		}
	}()
	if err := fill(t); err != nil {
		return err
	}
	if err := t.Chmod(0o644); err != nil {
		return err
	}
	if err := t.Sync(); err != nil {
		return err
	}
	if err := os.Rename(t.Name(), filepath.Join(f.dir, name)); err != nil {
		return err
	}
	d, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
