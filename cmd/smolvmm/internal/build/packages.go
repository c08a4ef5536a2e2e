package build

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/builder/fetch/files"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/archive"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/fetch"
	"github.com/smolvmm/smolvmm/builder/tree"
)

const (
	// defaultPackageMirror has pkgsrc's binary packages.
	defaultPackageMirror = "https://cdn.netbsd.org"
	// localBase is where packages of NetBSD's own builds are; one says so itself in
	// buildInfo (pkgsrc's LOCALBASE).
	localBase = "/usr/pkg"
	buildInfo = "+BUILD_INFO"
	// maxBuildInfo bounds that file, in bytes: it has some 70 lines.
	maxBuildInfo = 1 << 20
	// maxSummary bounds pkg_summary.gz, maxUnpackedSummary what it holds, in bytes:
	// those of 2025 have 10 and 60 MiB.
	maxSummary, maxUnpackedSummary = 128 << 20, 1 << 30
	// maxPackage bounds a package, in bytes.
	maxPackage = 4 << 30
)

// packages are pkgsrc's binary packages: builder.Packages. Which file a name stands
// for is looked up in the mirror's pkg_summary once and kept, with the digest that
// the file had, so that the same Dockerfile makes the same image.
type packages struct {
	mirror string
	cache  string
	blobs  *blob.Store
	client *fetch.Client
	line   func(string)
	renew  bool
}

// chosen is what is kept of a package.
type chosen struct {
	File   string `json:"file"`             // "curl-8.5.0.tgz"
	Size   int64  `json:"size"`             // bytes
	Sum    string `json:"sum,omitempty"`    // "sha256 …" or "sha512 …", where the mirror says it
	Digest string `json:"digest,omitempty"` // "sha256:…", once it was fetched
}

func (p *packages) url(release, file string) string {
	return p.mirror + "/pub/pkgsrc/packages/NetBSD/amd64/" + release + "/All/" + file
}

func (p *packages) file(release, name string) string {
	return filepath.Join(p.cache, release, name+".json")
}

// Fetch finds the packages, and fetches those that somebody opens.
func (p *packages) Fetch(ctx context.Context, release string, names []string) ([]builder.Layer, error) {
	if tree.CheckName(release) != nil {
		return nil, fmt.Errorf("%q is no release of NetBSD", release)
	}
	known := map[string]chosen{}
	var missing []string
	for _, n := range names {
		var c chosen
		b, err := os.ReadFile(p.file(release, n))
		if err != nil || json.Unmarshal(b, &c) != nil || tree.CheckName(c.File) != nil || p.renew {
			missing = append(missing, n)
			continue
		}
		known[n] = c
	}
	if len(missing) > 0 {
		p.line("looking for packages: " + strings.Join(missing, " "))
		b, err := p.client.Bytes(ctx, p.url(release, "pkg_summary.gz"), maxSummary, "a list of packages")
		if err != nil {
			return nil, fmt.Errorf("LABEL smolbsd.addpkgs: %w", err)
		}
		found, err := findPackages(bytes.NewReader(b), missing)
		if err != nil {
			return nil, fmt.Errorf("LABEL smolbsd.addpkgs: %s: %w", p.url(release, "pkg_summary.gz"), err)
		}
		for _, n := range missing {
			c, ok := found[n]
			if !ok {
				return nil, fmt.Errorf("LABEL smolbsd.addpkgs: NetBSD %s has no package %s", release, n)
			}
			known[n] = c
			if err := p.keep(release, n, c); err != nil {
				return nil, err
			}
		}
	}
	var out []builder.Layer
	for _, n := range names {
		c := known[n]
		id := sha256.Sum256(fmt.Appendf(nil, "package at its LOCALBASE %s %s %d %s", release, c.File, c.Size, c.Sum))
		out = append(out, builder.Layer{Name: n, Digest: tree.DigestPrefix + hex.EncodeToString(id[:]), Open: func(ctx context.Context, _ bool) (*tree.Tree, error) {
			t, err := p.open(ctx, release, n, c)
			if err != nil {
				return nil, fmt.Errorf("package %s: %w", n, err)
			}
			return t, nil
		}})
	}
	return out, nil
}

func (p *packages) keep(release, name string, c chosen) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	dir := filepath.Join(p.cache, release)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return files.WriteFile(dir, name+".json", func(w io.Writer) error { _, err := w.Write(b); return err })
}

// open gives a package's files where they belong, without what describes it.
func (p *packages) open(ctx context.Context, release, name string, c chosen) (*tree.Tree, error) {
	b, err := p.get(ctx, release, name, c)
	if err != nil {
		return nil, err
	}
	r, err := b.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	t := tree.New()
	err = archive.Read(ctx, io.NewSectionReader(r, 0, b.Size()), t, archive.Options{
		Name: c.File, Owners: archive.AllRoot, NoDevices: true, Blobs: p.blobs,
		Filter: func(name string, _ *tree.Node) bool { return name == buildInfo || !strings.HasPrefix(name, "+") },
	})
	if err != nil {
		return nil, err
	}
	base, err := baseOf(t.Root.Child(buildInfo))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.File, err)
	}
	t.Root.Remove(buildInfo)
	if base == "/" {
		return t, nil
	}
	out := tree.New()
	return out, out.Put(base, t.Root)
}

// baseOf reads where a package's files belong from its build info, which may be nil.
func baseOf(info *tree.Node) (string, error) {
	if info == nil || info.Kind != tree.File || info.Content == nil {
		return localBase, nil
	}
	b, err := tree.ReadAll(info.Content, maxBuildInfo)
	if err != nil {
		return "", fmt.Errorf("%s: %w", buildInfo, err)
	}
	base := localBase
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), "LOCALBASE="); ok {
			base = v
		}
	}
	if !path.IsAbs(base) || path.Clean(base) != base {
		return "", fmt.Errorf("%s: LOCALBASE is %.100q, and no absolute path", buildInfo, base)
	}
	return base, nil
}

// get gives the package's file, from the store or the mirror.
func (p *packages) get(ctx context.Context, release, name string, c chosen) (blob.Blob, error) {
	if c.Digest != "" {
		if b, err := p.blobs.Open(c.Digest); err == nil {
			return b, nil
		}
	}
	url := p.url(release, c.File)
	p.line("fetching " + c.File)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return blob.Blob{}, err
	}
	resp, err := p.client.HTTP().Do(req)
	if err != nil {
		return blob.Blob{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return blob.Blob{}, fmt.Errorf("%s: the server says %s", url, resp.Status)
	}
	w, err := p.blobs.Create()
	if err != nil {
		return blob.Blob{}, err
	}
	defer w.Close()
	into := []io.Writer{w}
	var sum hash.Hash
	kind, want, _ := strings.Cut(c.Sum, " ")
	switch kind {
	case "sha256":
		sum = sha256.New()
	case "sha512":
		sum = sha512.New()
	}
	if sum != nil {
		into = append(into, sum)
	}
	n, err := io.Copy(io.MultiWriter(into...), io.LimitReader(resp.Body, maxPackage+1))
	switch {
	case err != nil:
		return blob.Blob{}, fmt.Errorf("%s: %w", url, err)
	case n > maxPackage:
		return blob.Blob{}, fmt.Errorf("%s: more than %d GiB", url, maxPackage>>30)
	case c.Size > 0 && n != c.Size:
		return blob.Blob{}, fmt.Errorf("%s has %d bytes instead of %d: --no-cache looks for the package anew", url, n, c.Size)
	case sum != nil && hex.EncodeToString(sum.Sum(nil)) != want:
		return blob.Blob{}, fmt.Errorf("%s does not have the checksum that the mirror's list says", url)
	}
	b, err := w.Commit()
	if err != nil {
		return blob.Blob{}, err
	}
	if c.Digest != "" && c.Digest != b.Digest() {
		return blob.Blob{}, fmt.Errorf("%s has changed since it was first fetched: --no-cache takes the new one", url)
	}
	c.Digest = b.Digest()
	return b, p.keep(release, name, c)
}

// findPackages reads a pkg_summary (pkg_summary(5)): records of NAME=VALUE lines
// with empty lines between them. What is asked for is a package's name, or its name
// and the beginning of a version (curl-8, curl-8.10.1nb2), as with smolBSD; of
// several that fit the newest counts, and those of the name itself go first.
func findPackages(r io.Reader, names []string) (map[string]chosen, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	found := map[string]chosen{}
	best := map[string]fit{}
	var name, version string
	var c chosen
	end := func() {
		for _, want := range names {
			f := fit{want == name, version}
			if name == "" || tree.CheckName(c.File) != nil || !f.named && !ofVersion(want, name, version) {
				continue
			}
			if old, ok := best[want]; !ok || f.better(old) {
				found[want], best[want] = c, f
			}
		}
		name, version, c = "", "", chosen{}
	}
	in := bufio.NewScanner(io.LimitReader(z, maxUnpackedSummary))
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		key, value, ok := strings.Cut(in.Text(), "=")
		switch {
		case !ok:
			end()
		case key == "PKGNAME":
			if i := strings.LastIndexByte(value, '-'); i > 0 {
				name, version = value[:i], value[i+1:]
				c.File = cmp.Or(c.File, value+".tgz")
			}
		case key == "FILE_NAME":
			c.File = value
		case key == "FILE_SIZE":
			c.Size, _ = strconv.ParseInt(value, 10, 64)
		case key == "FILE_CKSUM":
			c.Sum = strings.ToLower(value)
		}
	}
	end()
	if err := in.Err(); err != nil {
		return nil, err
	}
	return found, nil
}

// fit is how a package fits what is asked for.
type fit struct {
	named   bool // by its name alone
	version string
}

func (f fit) better(old fit) bool {
	if f.named != old.named {
		return f.named
	}
	return compareVersions(f.version, old.version) > 0
}

// ofVersion says whether want is the name and a version, or the beginning of one.
func ofVersion(want, name, version string) bool {
	v, ok := strings.CutPrefix(want, name+"-")
	if !ok || v == "" {
		return false
	}
	rest, ok := strings.CutPrefix(version, v)
	return ok && (rest == "" || !digit(rest[0]) || !digit(v[len(v)-1]))
}

// compareVersions compares as far as pkgsrc's newest of two builds needs it: runs of
// digits as numbers, the rest as text.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		x, restA := run(a)
		y, restB := run(b)
		n := cmp.Compare(x, y)
		if digit(x[0]) && digit(y[0]) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			n = cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
		}
		if n != 0 {
			return n
		}
		a, b = restA, restB
	}
	return cmp.Compare(len(a), len(b))
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// run is the run of digits, or of others, that a text begins with.
func run(s string) (first, rest string) {
	i := 1
	for i < len(s) && digit(s[i]) == digit(s[0]) {
		i++
	}
	return s[:i], s[i:]
}

// newPackages gives where LABEL smolbsd.addpkgs finds its packages.
func newPackages(o Options, blobs *blob.Store, client *fetch.Client, show *progress) (builder.Packages, error) {
	base, err := fetch.Base(cmp.Or(o.Packages, defaultPackageMirror), defaultPackageMirror)
	if err != nil {
		return nil, usagef("--packages: %w", err)
	}
	return &packages{mirror: base, cache: filepath.Join(o.Cache, "packages"), blobs: blobs, client: client, line: show.line, renew: o.NoCache}, nil
}
