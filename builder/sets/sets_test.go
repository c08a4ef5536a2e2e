package sets

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder/fetch/files"

	"github.com/smolvmm/smolvmm/builder/archive"
	"github.com/smolvmm/smolvmm/builder/archive/archivetest"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func file(name, body string) archivetest.Entry {
	return archivetest.Entry{Header: tar.Header{Name: name, Mode: 0o644}, Body: body}
}

const folder = "/pub/NetBSD/NetBSD-10.1/amd64/binary/sets/"

// mirror has one folder of sets. Its fields are set before use.
type mirror struct {
	*httptest.Server
	mu       sync.Mutex
	folder   string
	files    map[string][]byte
	sums     string // instead of the right ones
	cut      int    // answers end after so many bytes
	override func(http.ResponseWriter, *http.Request) bool
	requests []string
	now, max int // requests at a time
}

func newMirror(t *testing.T) *mirror {
	base := archivetest.Tar(
		archivetest.Entry{Header: tar.Header{Name: "./", Mode: 0o755}},
		file("./bin/sh", "#!sh"),
		archivetest.Entry{Header: tar.Header{Name: "./bin/ksh", Linkname: "./bin/sh", Typeflag: tar.TypeLink}},
		archivetest.Entry{Header: tar.Header{Name: "./dev/console", Typeflag: tar.TypeChar, Mode: 0o600}},
		archivetest.Entry{Header: tar.Header{Name: "./usr/bin/su", Mode: 0o4555, Uid: 0, Gid: 7}, Body: strings.Repeat("su", 50_000)},
	)
	m := &mirror{folder: folder, files: map[string][]byte{
		"base.tar.xz":         archivetest.XZ(base),
		"etc.tgz":             archivetest.Gzip(archivetest.Tar(file("./etc/rc", "rc"))),
		"kern-GENERIC.tar.xz": archivetest.XZ(archivetest.Tar(file("./netbsd", "kernel"))),
	}}
	m.Server = httptest.NewServer(http.HandlerFunc(m.serve))
	t.Cleanup(m.Close)
	return m
}

func (m *mirror) serve(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.requests = append(m.requests, r.URL.Path+strings.TrimRight(" "+r.Header.Get("Range"), " "))
	m.now++
	m.max = max(m.max, m.now)
	override := m.override
	m.mu.Unlock()
	defer func() { m.mu.Lock(); m.now--; m.mu.Unlock() }()
	if override != nil && override(w, r) {
		return
	}
	name, ok := strings.CutPrefix(r.URL.Path, m.folder)
	body := m.files[name]
	if name == sumsName {
		body = []byte(m.sums)
		if m.sums == "" {
			for name, b := range m.files {
				body = fmt.Appendf(body, "SHA512 (%s) = %x\n", name, sha512.Sum512(b))
			}
		}
	}
	if !ok || body == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha512.Sum512(body)))
	if m.cut > 0 && name != sumsName {
		w = &cutter{w, m.cut}
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

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

func (m *mirror) options(t testing.TB, names ...string) Options {
	t.Helper()
	dir := t.TempDir()
	s, err := blob.Open(filepath.Join(dir, "blobs"))
	must(t, err)
	return Options{Mirror: m.URL, Release: "10.1", Names: names, Cache: filepath.Join(dir, "sets"), Blobs: s}
}

// cached gives the files of a cache.
func cached(t *testing.T, o Options) (got []string) {
	t.Helper()
	must(t, filepath.WalkDir(filepath.Dir(o.Cache), func(p string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(filepath.Dir(o.Cache), p); err == nil && !d.IsDir() && !strings.HasPrefix(rel, "blobs/sha256/") && rel != "blobs/lock" {
			got = append(got, rel)
		}
		return err
	}))
	return got
}

func checkBase(t *testing.T, tr *tree.Tree) {
	t.Helper()
	sh, err := tr.Lookup("bin/sh")
	must(t, err)
	ksh, err := tr.Lookup("bin/ksh")
	must(t, err)
	su, err := tr.Lookup("usr/bin/su")
	must(t, err)
	console, err := tr.Lookup("dev/console")
	must(t, err)
	if sh != ksh || su.Perm != 0o4555 || su.GID != 7 || console.Kind != tree.CharDevice {
		t.Errorf("%+v %+v %+v %+v", sh, ksh, su, console)
	}
	if b, err := tree.ReadAll(su.Content, 1<<20); err != nil || string(b) != strings.Repeat("su", 50_000) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

var whole = []string{"sets/10.1/amd64/SHA512", "sets/10.1/amd64/base/base.tar.xz", "sets/10.1/amd64/base/tree", "sets/10.1/amd64/etc/etc.tgz", "sets/10.1/amd64/etc/tree"}

func TestFetch(t *testing.T) {
	m := newMirror(t)
	o := m.options(t, "etc", "base")
	var phases []string
	o.Progress = func(p Progress) {
		if p.Set == "base" {
			phases = append(phases, p.Phase.String())
		}
	}
	trees, err := Fetch(t.Context(), o)
	must(t, err)
	checkBase(t, trees[1])
	if n, err := trees[0].Lookup("etc/rc"); err != nil || n.Size() != 2 {
		t.Errorf("etc: %+v, %v", n, err)
	}
	if got := slices.Compact(phases); !slices.Equal(got, []string{"fetching", "checking", "unpacking", "ready"}) {
		t.Errorf("progress: %q", got)
	}
	if got := cached(t, o); !slices.Equal(got, whole) {
		t.Errorf("cached: %q", got)
	}
	// Once more: nothing is asked of the mirror, nothing is unpacked.
	m.Close()
	phases = nil
	again, err := Fetch(t.Context(), o)
	must(t, err)
	checkBase(t, again[1])
	if !slices.Equal(phases, []string{"ready"}) {
		t.Errorf("progress of a cached set: %q", phases)
	}
	a, err := trees[1].Digest()
	must(t, err)
	if b, err := again[1].Digest(); err != nil || a != b {
		t.Errorf("another tree from the cache: %v", err)
	}
	// Contents that were pruned are unpacked again, from what was fetched.
	kept := 0
	must(t, Referenced(o.Cache, func(string) { kept++ }))
	if kept != 3 {
		t.Errorf("%d contents are referenced", kept)
	}
	if n, _, err := o.Blobs.Prune(t.Context(), func(string) bool { return false }); err != nil || n != 3 {
		t.Errorf("pruned %d, %v", n, err)
	}
	// They are not looked for, and missed when they are read; Trees can look.
	g, err := Find(t.Context(), o)
	must(t, err)
	again, err = g.Trees(t.Context(), false)
	must(t, err)
	n, err := again[0].Lookup("etc/rc")
	must(t, err)
	if _, err := tree.ReadAll(n.Content, 10); !errors.Is(err, blob.ErrGone) {
		t.Errorf("a content that was removed: %v", err)
	}
	again, err = g.Trees(t.Context(), true)
	must(t, err)
	checkBase(t, again[1])
	// The same where who prunes has told.
	must(t, Forget(o.Cache))
	_, _, err = o.Blobs.Prune(t.Context(), func(string) bool { return false })
	must(t, err)
	again, err = Fetch(t.Context(), o)
	must(t, err)
	checkBase(t, again[1])
}

func TestFind(t *testing.T) {
	m := newMirror(t)
	o := m.options(t, "kern-GENERIC", "base")
	g, err := Find(t.Context(), o)
	must(t, err)
	if len(g.Sets) != 2 || g.Sets[0].File != "kern-GENERIC.tar.xz" || tree.CheckDigest(g.Sets[1].Digest) != nil || g.Sets[0].Digest == g.Sets[1].Digest {
		t.Errorf("%+v", g.Sets)
	}
	if got := cached(t, o); !slices.Equal(got, []string{"sets/10.1/amd64/SHA512"}) {
		t.Errorf("cached: %q", got)
	}
	must(t, os.MkdirAll(filepath.Join(o.Cache, "10.1"), 0o755))
	if _, err := Find(t.Context(), m.options(t, "bse")); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "there is no set bse, but base etc kern-GENERIC") {
		t.Errorf("a set that is not there: %v", err)
	}
	for _, c := range []struct {
		change func(*Options)
		kind   error
	}{
		{func(o *Options) { o.Release = "../10.1" }, ErrRelease},
		{func(o *Options) { o.Release = "10.1/.." }, ErrRelease},
		{func(o *Options) { o.Release = "HEAD/../x" }, ErrRelease},
		{func(o *Options) { o.Release = "" }, ErrRelease},
		{func(o *Options) { o.Release = "10.1\n" }, ErrRelease},
		{func(o *Options) { o.Arch = "../amd64" }, ErrRelease},
		{func(o *Options) { o.Names = []string{"../base"} }, ErrNotFound},
		{func(o *Options) { o.Names = []string{"base.tar.xz/x"} }, ErrNotFound},
		{func(o *Options) { o.Names = []string{""} }, ErrNotFound},
		{func(o *Options) { o.Mirror = "ftp://x" }, ErrServer},
		{func(o *Options) { o.Cache = "" }, ErrCache},
		{func(o *Options) { o.Release = "10.9" }, ErrNotFound},
		{func(o *Options) { o.Mirror = "http://127.0.0.1:1" }, ErrNetwork},
	} {
		o := m.options(t, "base")
		c.change(&o)
		if _, err := Find(t.Context(), o); !errors.Is(err, c.kind) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", o, err)
		}
	}
}

// TestDaily: of a build that changes the digests are asked for each time.
func TestDaily(t *testing.T) {
	for release, folder := range map[string]string{
		"current": "/pub/NetBSD-daily/HEAD/latest/amd64/binary/sets/", "netbsd-11": "/pub/NetBSD-daily/netbsd-11/latest/amd64/binary/sets/",
		"HEAD/202511200000Z": "/pub/NetBSD-daily/HEAD/202511200000Z/amd64/binary/sets/",
	} {
		m := newMirror(t)
		m.folder = folder
		o := m.options(t, "etc")
		o.Release, o.Mirror = release, m.URL+"/pub/NetBSD-daily/"
		_, err := Fetch(t.Context(), o)
		must(t, err)
		m.mu.Lock()
		m.files["etc.tgz"] = archivetest.Gzip(archivetest.Tar(file("./etc/rc", "newer")))
		m.mu.Unlock()
		trees, err := Fetch(t.Context(), o)
		must(t, err)
		want := int64(5)
		if strings.Contains(release, "/") {
			want = 2
		}
		if n, err := trees[0].Lookup("etc/rc"); err != nil || n.Size() != want {
			t.Errorf("%s: rc has %d bytes, %v", release, n.Size(), err)
		}
	}
}

func TestGoesOnLater(t *testing.T) {
	m := newMirror(t)
	o := m.options(t, "base")
	ctx, cancel := context.WithCancel(t.Context())
	m.cut = 60_000
	m.override = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" {
			cancel() // the first part has come
			<-r.Context().Done()
			return true
		}
		return false
	}
	if _, err := Fetch(ctx, o); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "run it again") {
		t.Fatalf("cancelled: %v", err)
	}
	if got := cached(t, o); !slices.Equal(got, []string{"sets/10.1/amd64/SHA512", "sets/10.1/amd64/base/base.tar.xz.part", "sets/10.1/amd64/base/base.tar.xz.part.of"}) {
		t.Errorf("after it: %q", got)
	}
	m.mu.Lock()
	m.override, m.requests = nil, nil
	m.mu.Unlock()
	trees, err := Fetch(t.Context(), o)
	must(t, err)
	checkBase(t, trees[0])
	if want := []string{folder + "base.tar.xz bytes=60000-"}; !slices.Equal(m.requests, want) {
		t.Errorf("requests %q, want %q", m.requests, want)
	}
	if got := cached(t, o); !slices.Equal(got, whole[:3]) {
		t.Errorf("cached: %q", got)
	}
}

// TestRefusals: what a mirror does wrong is one line that names the file, and
// nothing of it stays; the next try from a good mirror succeeds.
func TestRefusals(t *testing.T) {
	lie := func(m *mirror, b []byte) { // served under the digest of what should be there
		m.sums = fmt.Sprintf("SHA512 (base.tar.xz) = %x\n", sha512.Sum512(m.files["base.tar.xz"]))
		m.files["base.tar.xz"] = b
	}
	replace := func(m *mirror, b []byte) { m.files["base.tar.xz"] = b }
	for name, c := range map[string]struct {
		prepare func(*mirror)
		kind    error
		says    string
	}{
		"truncated":     {func(m *mirror) { lie(m, m.files["base.tar.xz"][:50_000]) }, ErrChecksum, "base.tar.xz: its SHA-512 begins"},
		"other content": {func(m *mirror) { lie(m, []byte("<html>login</html>")) }, ErrChecksum, "nothing was kept"},
		"wrong sums":    {func(m *mirror) { m.sums = fmt.Sprintf("SHA512 (base.tar.xz) = %0128x\n", 5) }, ErrChecksum, "nothing was kept"},
		"empty sums":    {func(m *mirror) { m.sums = "<html></html>" }, ErrServer, "has no digests"},
		"missing": {func(m *mirror) {
			m.sums = fmt.Sprintf("SHA512 (base.tar.xz) = %0128x\n", 5)
			delete(m.files, "base.tar.xz")
		}, ErrNotFound, "set base of NetBSD 10.1"},
		"no tar":          {func(m *mirror) { replace(m, []byte("<html>hello</html>")) }, archive.ErrFormat, "base.tar.xz: neither tar"},
		"truncated there": {func(m *mirror) { replace(m, m.files["base.tar.xz"][:50_000]) }, archive.ErrCorrupt, "base.tar.xz: it is cut short"},
		"hostile":         {func(m *mirror) { replace(m, archivetest.XZ(archivetest.Tar(file("../../etc/passwd", "x")))) }, archive.ErrEntry, `entry "../../etc/passwd"`},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMirror(t)
			o := m.options(t, "base")
			c.prepare(m)
			_, err := Fetch(t.Context(), o)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), m.URL) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %v, want %v saying %q", err, c.kind, c.says)
			}
			for _, f := range cached(t, o) {
				if f != "sets/10.1/amd64/SHA512" && (f != "sets/10.1/amd64/base/base.tar.xz" || errors.Is(err, ErrChecksum)) {
					t.Errorf("%s was left", f)
				}
			}
			good := newMirror(t)
			o.Mirror = good.URL
			if !errors.Is(err, ErrChecksum) { // these digests are the release's
				o.Cache = t.TempDir()
			}
			trees, err := Fetch(t.Context(), o)
			must(t, err)
			checkBase(t, trees[0])
		})
	}
}

// TestOneFails: the others are stopped and told of nothing else.
func TestOneFails(t *testing.T) {
	m := newMirror(t)
	o := m.options(t, "base", "etc", "kern-GENERIC")
	m.override = func(w http.ResponseWriter, r *http.Request) bool {
		switch filepath.Base(r.URL.Path) {
		case "etc.tgz":
			http.Error(w, "no", http.StatusInternalServerError)
			return true
		case "base.tar.xz": // would take for ever
			<-r.Context().Done()
			return true
		}
		return false
	}
	if _, err := Fetch(t.Context(), o); !errors.Is(err, ErrServer) || !strings.Contains(err.Error(), "etc.tgz") {
		t.Errorf("error %v", err)
	}
}

// TestParallel: sets come at the same time.
func TestParallel(t *testing.T) {
	m := newMirror(t)
	o := m.options(t, "base", "etc", "kern-GENERIC")
	all := make(chan struct{})
	var once sync.Once
	m.override = func(w http.ResponseWriter, r *http.Request) bool {
		if filepath.Base(r.URL.Path) == sumsName {
			return false
		}
		m.mu.Lock()
		if m.now == 3 {
			once.Do(func() { close(all) })
		}
		m.mu.Unlock()
		<-all // nobody is answered before all have asked
		return false
	}
	_, err := Fetch(t.Context(), o)
	must(t, err)
}

// TestDamagedCache: what is damaged on the host is made again.
func TestDamagedCache(t *testing.T) {
	m := newMirror(t)
	o := m.options(t, "base")
	at := func(name string) string { return filepath.Join(o.Cache, "10.1/amd64/base", name) }
	_, err := Fetch(t.Context(), o)
	must(t, err)
	good, err := os.ReadFile(at("tree"))
	must(t, err)
	for name, damage := range map[string]func(){
		"tree cut":   func() { must(t, os.WriteFile(at("tree"), good[:len(good)-5], 0o644)) },
		"tree bit":   func() { b := bytes.Clone(good); b[len(b)-3] ^= 1; must(t, os.WriteFile(at("tree"), b, 0o644)) },
		"tree empty": func() { must(t, os.WriteFile(at("tree"), nil, 0o644)) },
		"blob cut": func() {
			all, _ := o.Blobs.List()
			must(t, os.Chmod(all[0].Path(), 0o600))
			must(t, os.Truncate(all[0].Path(), 1))
		},
		"packed also": func() { os.Remove(at("tree")); must(t, os.WriteFile(at("base.tar.xz"), []byte("xx"), 0o644)) },
		"temporaries": func() { os.Remove(at("tree")); must(t, os.WriteFile(at(".tree.123"), []byte("xx"), 0o644)) },
	} {
		damage()
		trees, err := Fetch(t.Context(), o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkBase(t, trees[0])
		if got := cached(t, o); !slices.Equal(got, whole[:3]) {
			t.Errorf("%s: cached: %q", name, got)
		}
		if b, err := os.ReadFile(at("tree")); err != nil || !bytes.Equal(b, good) {
			t.Errorf("%s: the tree is another: %v", name, err)
		}
	}
}

// TestTwoProcesses: who comes second waits, and then has it from the cache.
func TestTwoProcesses(t *testing.T) {
	m := newMirror(t)
	o := m.options(t, "base")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			trees, err := Fetch(t.Context(), o)
			if err != nil {
				t.Error(err)
				return
			}
			checkBase(t, trees[0])
		})
	}
	wg.Wait()
	n := 0
	for _, r := range m.requests {
		if strings.Contains(r, "base") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("requests: %q", m.requests)
	}
	unlock, err := files.Lock(filepath.Join(o.Cache, "10.1/amd64/etc"))
	must(t, err)
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	o.Names = []string{"etc"}
	if _, err := Fetch(ctx, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another has the lock: %v", err)
	}
}

// TestByHand: a set that was put into the cache is taken, if it is the right one.
func TestByHand(t *testing.T) {
	m := newMirror(t)
	o := m.options(t, "base")
	_, err := Find(t.Context(), o)
	must(t, err)
	base := m.files["base.tar.xz"]
	m.Close()
	_, err = Fetch(t.Context(), o)
	at := filepath.Join(o.Cache, "10.1/amd64/base/base.tar.xz")
	if !errors.Is(err, ErrNetwork) || !strings.Contains(err.Error(), "put it at "+at) {
		t.Fatalf("without a network: %v", err)
	}
	must(t, os.WriteFile(at, base, 0o644))
	trees, err := Fetch(t.Context(), o)
	must(t, err)
	checkBase(t, trees[0])
}
