package mirror

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder/fetch/files"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"

	"github.com/smolvmm/smolvmm/builder/fetch"
)

// mirror is an HTTP server with one release. Its fields are set before use.
type mirror struct {
	*httptest.Server
	mu       sync.Mutex
	packed   []byte
	sums     string
	etag     string
	modified time.Time
	cuts     []int // nth request for the kernel is cut after so many bytes
	override func(http.ResponseWriter, *http.Request) bool
	requests []string // "path range status"
}

// kernelBytes is a made-up kernel that does not compress to nothing.
func kernelBytes() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 300<<10)
	for i := range b {
		b[i] = byte(r.Uint32() & 0x3F)
	}
	copy(b, "\x7fELF")
	return b
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

func newMirror(t *testing.T) *mirror {
	m := &mirror{packed: gz(kernelBytes()), etag: `"one"`}
	m.sums = fmt.Sprintf("SHA512 (netbsd-GENERIC.gz) = %0128x\nSHA512 (%s) = %x\n", 1, kernels.Packed, sha512.Sum512(m.packed))
	m.Server = httptest.NewServer(http.HandlerFunc(m.serve))
	t.Cleanup(m.Close)
	return m
}

func (m *mirror) serve(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests = append(m.requests, strings.TrimSpace(filepath.Base(r.URL.Path)+" "+r.Header.Get("Range")))
	if m.override != nil && m.override(w, r) {
		return
	}
	switch r.URL.Path {
	case "/pub/NetBSD/NetBSD-11.0/amd64/binary/kernel/SHA512":
		w.Write([]byte(m.sums))
	case "/pub/NetBSD/NetBSD-11.0/amd64/binary/kernel/netbsd-MICROVM.gz":
		if m.etag != "" {
			w.Header().Set("ETag", m.etag)
		}
		if len(m.cuts) > 0 {
			w = &cutter{w, m.cuts[0]}
			m.cuts = m.cuts[1:]
		}
		http.ServeContent(w, r, "", m.modified, bytes.NewReader(m.packed))
	default:
		http.NotFound(w, r)
	}
}

// cutter breaks the connection after left bytes of body.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func (m *mirror) fetch(t *testing.T, cache string) (kernels.Kernel, error) {
	return Fetch(t.Context(), "11.0", Options{Mirror: m.URL, Cache: cache, Idle: 10 * time.Second})
}

// settled checks that nothing but the finished files is in the cache.
func settled(t *testing.T, cache string, want ...string) {
	t.Helper()
	var got []string
	filepath.WalkDir(cache, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(cache, p)
			got = append(got, rel)
		}
		return err
	})
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the cache holds %q, want %q", got, want)
	}
}

var whole = []string{"11.0/SHA512", "11.0/netbsd-MICROVM"}

func checkKernel(t *testing.T, k kernels.Kernel, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(k.Path)
	if err != nil || !bytes.Equal(b, kernelBytes()) {
		t.Fatalf("the kernel at %s is not the one served (%v)", k.Path, err)
	}
	if err := kernels.Verify(k); err != nil || k.Release != "11.0" || k.Size != int64(len(b)) {
		t.Errorf("kernel %+v: %v", k, err)
	}
}

func TestFetch(t *testing.T) {
	m, cache := newMirror(t), t.TempDir()
	var seen [][2]int64
	k, err := Fetch(t.Context(), "", Options{Mirror: m.URL + "/pub/NetBSD/", Cache: cache, Progress: func(got, total int64) { seen = append(seen, [2]int64{got, total}) }})
	checkKernel(t, k, err)
	settled(t, cache, whole...)
	n := int64(len(m.packed))
	if len(seen) < 2 || seen[0] != [2]int64{0, n} || seen[len(seen)-1] != [2]int64{n, n} {
		t.Errorf("progress %v of %d bytes", seen, n)
	}
	if found, err := kernels.Find(cache, ""); err != nil || found != k {
		t.Errorf("Find: %v, %v", found, err)
	}
	// Once more: nothing is asked of the mirror.
	m.Close()
	k, err = m.fetch(t, cache)
	checkKernel(t, k, err)
}

func TestFetchAgainWhenDamaged(t *testing.T) {
	m, cache := newMirror(t), t.TempDir()
	k, err := m.fetch(t, cache)
	checkKernel(t, k, err)
	put(t, k.Path, "damaged")
	k, err = m.fetch(t, cache)
	checkKernel(t, k, err)
	settled(t, cache, whole...)
}

func TestResume(t *testing.T) {
	for name, c := range map[string]struct {
		etag     string
		modified time.Time
		cuts     []int
		want     []string
	}{
		"ETag": {etag: `"one"`, cuts: []int{70000, 50000}, want: []string{"SHA512", "netbsd-MICROVM.gz", "netbsd-MICROVM.gz bytes=70000-", "netbsd-MICROVM.gz bytes=120000-"}},
		"date": {modified: time.Unix(1e9, 0), cuts: []int{70000}, want: []string{"SHA512", "netbsd-MICROVM.gz", "netbsd-MICROVM.gz bytes=70000-"}},
		// Nothing to tell the file by: the part cannot be trusted.
		"neither":   {cuts: []int{70000}, want: []string{"SHA512", "netbsd-MICROVM.gz", "netbsd-MICROVM.gz"}},
		"weak ETag": {etag: `W/"one"`, cuts: []int{70000}, want: []string{"SHA512", "netbsd-MICROVM.gz", "netbsd-MICROVM.gz"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, cache := newMirror(t), t.TempDir()
			m.etag, m.modified, m.cuts = c.etag, c.modified, c.cuts
			k, err := m.fetch(t, cache)
			checkKernel(t, k, err)
			if fmt.Sprint(m.requests) != fmt.Sprint(c.want) {
				t.Errorf("requests %q, want %q", m.requests, c.want)
			}
			settled(t, cache, whole...)
		})
	}
}

// TestResumeLater is cut for good, by the caller, and goes on in another call.
func TestResumeLater(t *testing.T) {
	m, cache := newMirror(t), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	gate := make(chan struct{})
	m.override = func(w http.ResponseWriter, r *http.Request) bool {
		if filepath.Base(r.URL.Path) == "SHA512" || r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("ETag", m.etag)
		w.Header().Set("Content-Length", fmt.Sprint(len(m.packed)))
		w.Write(m.packed[:80000])
		w.(http.Flusher).Flush()
		<-gate // the caller gives up while the mirror is silent
		return true
	}
	_, err := Fetch(ctx, "11.0", Options{Mirror: m.URL, Cache: cache, Progress: func(got, _ int64) {
		if got == 80000 {
			cancel()
		}
	}})
	close(gate)
	if !errors.Is(err, kernels.ErrNetwork) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "run it again") {
		t.Fatalf("a cancelled fetch: %v", err)
	}
	if _, err := kernels.Find(cache, "11.0"); !errors.Is(err, kernels.ErrNotCached) {
		t.Errorf("half a kernel is found: %v", err)
	}
	k, err := m.fetch(t, cache)
	checkKernel(t, k, err)
	if last := m.requests[len(m.requests)-1]; last != "netbsd-MICROVM.gz bytes=80000-" {
		t.Errorf("went on with %q", last)
	}
	settled(t, cache, whole...)
}

// TestFileChanged has the release rebuilt between the two halves.
func TestFileChanged(t *testing.T) {
	m, cache := newMirror(t), t.TempDir()
	final := m.packed
	m.packed, m.etag, m.cuts = bytes.Repeat([]byte{7}, 200000), `"zero"`, []int{90000}
	m.override = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" {
			m.packed, m.etag = final, `"one"`
		}
		return false
	}
	k, err := m.fetch(t, cache)
	checkKernel(t, k, err)
}

func TestRangeIgnored(t *testing.T) {
	m, cache := newMirror(t), t.TempDir()
	m.cuts = []int{90000}
	m.override = func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		return false
	}
	k, err := m.fetch(t, cache)
	checkKernel(t, k, err)
}

// TestRefusals are mirrors that do wrong: one line that names the URL, nothing
// under the kernel's name.
func TestRefusals(t *testing.T) {
	serve := func(status int, header, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if filepath.Base(r.URL.Path) == "SHA512" {
				return false
			}
			if k, v, ok := strings.Cut(header, ": "); ok {
				w.Header().Set(k, v)
			}
			w.WriteHeader(status)
			w.Write([]byte(body))
			return true
		}
	}
	bomb := bytes.Repeat(gz(make([]byte, 1<<20)), kernels.MaxKernel>>20+1) // members of one file (RFC 1952 §2.2)
	for name, c := range map[string]struct {
		prepare func(*mirror)
		kind    error
		says    string
	}{
		"wrong checksum": {func(m *mirror) { m.sums = fmt.Sprintf("SHA512 (%s) = %0128x\n", kernels.Packed, 5) }, kernels.ErrChecksum, "nothing was kept"},
		"no such release": {func(m *mirror) {
			m.override = func(w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true }
		}, kernels.ErrNotFound, "was not found"},
		"no such kernel":  {func(m *mirror) { m.sums = fmt.Sprintf("SHA512 (netbsd-GENERIC.gz) = %0128x\n", 5) }, kernels.ErrNotFound, "has no such kernel"},
		"kernel missing":  {func(m *mirror) { m.override = serve(404, "", "") }, kernels.ErrNotFound, "was not found"},
		"busy":            {func(m *mirror) { m.override = serve(503, "", "") }, kernels.ErrMirror, "503 Service Unavailable"},
		"part unasked":    {func(m *mirror) { m.override = serve(206, "Content-Range: bytes 5-9/10", "12345") }, kernels.ErrMirror, "another part"},
		"redirect loop":   {func(m *mirror) { m.override = serve(302, "Location: netbsd-MICROVM.gz", "") }, kernels.ErrNetwork, "too many redirects"},
		"endless digests": {func(m *mirror) { m.sums = strings.Repeat("x\n", files.MaxSums) }, kernels.ErrMirror, "not a file of digests"},
		"declared huge":   {func(m *mirror) { m.override = serve(200, "Content-Length: 99999999999", "") }, kernels.ErrMirror, "longer than 64 MiB"},
		"unpacks too far": {func(m *mirror) { m.replace(bomb) }, kernels.ErrMirror, "unpacks to more than 256 MiB"},
		"not gzip":        {func(m *mirror) { m.replace([]byte("<html>hello</html>")) }, kernels.ErrMirror, "gzip"},
		"gzip cut":        {func(m *mirror) { m.replace(m.packed[:1000]) }, kernels.ErrMirror, "unexpected EOF"},
		"gzip broken":     {func(m *mirror) { b := bytes.Clone(m.packed); copy(b[500:], make([]byte, 200)); m.replace(b) }, kernels.ErrMirror, "netbsd-MICROVM.gz"},
		"nothing arrives": {func(m *mirror) { m.cuts = []int{0, 0, 0, 0} }, kernels.ErrNetwork, "without a network, get http"},
		"endless body": {func(m *mirror) {
			m.override = func(w http.ResponseWriter, r *http.Request) bool {
				if filepath.Base(r.URL.Path) == "SHA512" {
					return false
				}
				for b := make([]byte, 1<<20); ; {
					if _, err := w.Write(b); err != nil {
						return true
					}
				}
			}
		}, kernels.ErrMirror, "longer than 64 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			m, cache := newMirror(t), t.TempDir()
			c.prepare(m)
			_, err := m.fetch(t, cache)
			var e *kernels.Error
			if !errors.As(err, &e) || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), m.URL) {
				t.Fatalf("error %v (kind %v), want %v saying %q", err, errors.Unwrap(err), c.kind, c.says)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
			if _, err := kernels.Find(cache, "11.0"); !errors.Is(err, kernels.ErrNotCached) {
				t.Errorf("Find after it: %v", err)
			}
			left, _ := filepath.Glob(filepath.Join(cache, "11.0", "*"))
			for _, p := range left {
				if b := filepath.Base(p); b != kernels.Packed+fetch.PartSuffix && b != kernels.Packed+fetch.ValidatorSuffix {
					t.Errorf("%s was left behind", p)
				}
			}
			if tmp, _ := filepath.Glob(filepath.Join(cache, "11.0", ".*")); len(tmp) > 0 {
				t.Errorf("left behind: %q", tmp)
			}
			// The mirror is mended: the next fetch succeeds.
			good := newMirror(t)
			k, err := good.fetch(t, cache)
			checkKernel(t, k, err)
			settled(t, cache, whole...)
		})
	}
}

func (m *mirror) replace(b []byte) {
	m.packed = b
	m.sums = fmt.Sprintf("SHA512 (%s) = %x\n", kernels.Packed, sha512.Sum512(b))
}

// TestWrongChecksumKeepsTheOld: a kernel that is there stays.
func TestWrongChecksumKeepsTheOld(t *testing.T) {
	m, cache := newMirror(t), t.TempDir()
	old := filepath.Join(cache, "11.0", kernels.Name)
	put(t, old, "put there by hand")
	m.sums = fmt.Sprintf("SHA512 (%s) = %0128x\n", kernels.Packed, 5)
	if _, err := m.fetch(t, cache); !errors.Is(err, kernels.ErrChecksum) {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(old); err != nil || string(b) != "put there by hand" {
		t.Errorf("the old kernel is %q, %v", b, err)
	}
}

func TestSilentMirror(t *testing.T) {
	for name, headers := range map[string]bool{"before the headers": false, "in the body": true} {
		t.Run(name, func(t *testing.T) {
			m := newMirror(t)
			gate := make(chan struct{})
			m.override = func(w http.ResponseWriter, r *http.Request) bool {
				if filepath.Base(r.URL.Path) == "SHA512" {
					return false
				}
				if headers {
					w.Write([]byte("x"))
					w.(http.Flusher).Flush()
				}
				select {
				case <-gate:
				case <-r.Context().Done():
				}
				return true
			}
			_, err := Fetch(t.Context(), "11.0", Options{Mirror: m.URL, Cache: t.TempDir(), Idle: 50 * time.Millisecond})
			close(gate)
			if !errors.Is(err, kernels.ErrNetwork) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestOffline(t *testing.T) {
	m, cache := newMirror(t), t.TempDir()
	m.Close()
	_, err := m.fetch(t, cache)
	where := filepath.Join(cache, "11.0", kernels.Packed)
	if !errors.Is(err, kernels.ErrNetwork) || !strings.Contains(err.Error(), m.URL+"/pub/NetBSD/NetBSD-11.0/amd64/binary/kernel/netbsd-MICROVM.gz") || !strings.Contains(err.Error(), where) {
		t.Fatalf("error %v", err)
	}
	// Doing what it says makes the kernel found.
	put(t, where, "by hand")
	if k, err := kernels.Find(cache, "11.0"); err != nil || k.Path != where {
		t.Errorf("Find: %v, %v", k, err)
	}
}

func TestFetchRefusesBeforeTheNetwork(t *testing.T) {
	for _, c := range []struct {
		rel, mirror string
		kind        error
		says        string
	}{
		{"10.1", "", kernels.ErrTooOld, "published from 11.0 on"},
		{"10.99.12", "", kernels.ErrTooOld, "published from 11.0 on"},
		{"../x", "", kernels.ErrRelease, "not a NetBSD release"},
		{"11.0", "ftp://ftp.example.org", kernels.ErrMirror, "http or https"},
		{"11.0", "cdn.example.org", kernels.ErrMirror, "http or https"},
		{"11.0", "http://me:secret@example.org", kernels.ErrMirror, "http or https"},
		{"11.0", "http://example.org/?x=y", kernels.ErrMirror, "http or https"},
		{"11.0", "http://exa mple.org/", kernels.ErrMirror, "http or https"},
	} {
		cache := t.TempDir()
		_, err := Fetch(t.Context(), c.rel, Options{Mirror: c.mirror, Cache: cache})
		if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.says) || strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("Fetch(%q) from %q: %v", c.rel, c.mirror, err)
		}
		settled(t, cache)
	}
}

func TestTwoFetches(t *testing.T) {
	m, cache := newMirror(t), t.TempDir()
	f := fetcher{Options: Options{Cache: cache}, dir: filepath.Join(cache, "11.0")}
	unlock, err := f.open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.fetch(t, cache); !errors.Is(err, kernels.ErrCache) || !strings.Contains(err.Error(), "another smolvmm") {
		t.Errorf("a second fetch: %v", err)
	}
	unlock()
	k, err := m.fetch(t, cache)
	checkKernel(t, k, err)
}

// TestCacheNotWritable uses what binds root too: a path through a regular
// file, and a read-only mount where this process may make one.
func TestCacheNotWritable(t *testing.T) {
	m := newMirror(t)
	check := func(t *testing.T, cache string) {
		_, err := m.fetch(t, cache)
		if !errors.Is(err, kernels.ErrCache) || !strings.Contains(err.Error(), cache) || !strings.Contains(err.Error(), "XDG_CACHE_HOME") || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v", err)
		}
		if len(m.requests) > 0 {
			t.Errorf("the mirror was asked %q for nothing", m.requests)
		}
	}
	t.Run("through a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		put(t, file, "x")
		check(t, filepath.Join(file, "kernels"))
	})
	t.Run("read-only mount", func(t *testing.T) {
		dir := t.TempDir()
		done := make(chan struct{})
		go func() {
			defer close(done)
			// The thread gets mounts of its own and ends with the goroutine.
			runtime.LockOSThread()
			if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
				t.Logf("SKIPPED, no mount: unshare: %v", err)
				return
			}
			if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
				t.Logf("SKIPPED, no mount: %v", err)
				return
			}
			if err := syscall.Mount("none", dir, "tmpfs", syscall.MS_RDONLY, ""); err != nil {
				t.Logf("SKIPPED, no mount: %v", err)
				return
			}
			check(t, filepath.Join(dir, "kernels"))
		}()
		<-done
	})
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
