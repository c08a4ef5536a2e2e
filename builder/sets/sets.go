// Package sets gives NetBSD's distribution sets (base, etc, kern-GENERIC, …) as
// trees: fetched from a mirror, checked, and kept unpacked, so that the second use
// of a set costs the reading of its names.
//
// The cache holds, for each set:
//
//	<cache>/<release>/<arch>/SHA512               the release's digests
//	<cache>/<release>/<arch>/<set>/<set>.tar.xz   as the mirror has it
//	<cache>/<release>/<arch>/<set>/tree           unpacked: the encoded tree
//
// and the contents of its files in a blob store. What is cached can be removed at
// any time; it is fetched or unpacked again.
package sets

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/smolvmm/smolvmm/builder/fetch/files"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/fetch"
	"github.com/smolvmm/smolvmm/builder/tree"
)

const (
	// DefaultMirror has the releases, DefaultDaily the daily builds.
	DefaultMirror = "https://cdn.netbsd.org"
	DefaultDaily  = "https://nycdn.netbsd.org"
	// DefaultArch is what smolvmm runs.
	DefaultArch = "amd64"

	// maxPacked bounds a packed set, in bytes: the largest, debug, has about
	// 700 MiB.
	maxPacked = 2 << 30
	// maxUnpacked bounds a set's files, in bytes; debug has about 4 GiB.
	maxUnpacked = 16 << 30

	// fetches bounds the transfers at a time; mirrors are not there for one alone.
	fetches = 4
	// unpacks bounds the sets that are unpacked at a time: each may take 64 MiB
	// for its dictionary.
	unpacks = 2

	sumsName = "SHA512"
)

// What an error can be about, beside those of package archive, for errors.Is.
var (
	ErrRelease  = errors.New("bad release")
	ErrNotFound = fetch.ErrNotFound
	ErrNetwork  = fetch.ErrNetwork
	ErrServer   = fetch.ErrServer
	ErrChecksum = fetch.ErrChecksum
	ErrCache    = fetch.ErrCache
)

// Error is one line for the user: what, where, what to do.
type Error = fetch.Error

// Options say which sets, from where and to where. Release, Names, Cache and
// Blobs must be given.
type Options struct {
	// Mirror holds pub/NetBSD (or pub/NetBSD-daily); http or https. "" is
	// DefaultMirror or DefaultDaily. The digests come from the same place: over
	// plain http they prove only that the transfer was whole.
	Mirror string
	// Release is "10.1" or "11.0_RC1", or a daily build: "HEAD" (also
	// "current"), "netbsd-11", each the latest, or of a day: "HEAD/202511200000Z".
	Release string
	Arch    string   // "" is DefaultArch
	Names   []string // "base", "kern-GENERIC"
	Cache   string   // a folder, made where it is not there
	Blobs   *blob.Store
	// Progress is told how it goes, one call at a time; nil is nobody.
	Progress func(Progress)
	// Idle is how long the mirror may send nothing. 0 is half a minute.
	Idle time.Duration
	// Proxy as in http.Transport; nil is none. Commands pass
	// http.ProxyFromEnvironment.
	Proxy func(*http.Request) (*url.URL, error)
}

// Phase is what is being done with a set.
type Phase uint8

// The phases of a set, in their order. A set that is cached is Ready at once.
const (
	Fetching Phase = iota
	Checking
	Unpacking
	Ready
)

func (p Phase) String() string {
	if names := [...]string{"fetching", "checking", "unpacking", "ready"}; int(p) < len(names) {
		return names[p]
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

// Progress is how far a set is: bytes of the packed set; Total -1 is unknown.
type Progress struct {
	Set        string
	Phase      Phase
	Got, Total int64
}

// Set is a set that a release has.
type Set struct {
	Name   string
	File   string // "base.tar.xz"
	SHA512 string // of that file, in hex, as the release's SHA512 has it
	// Digest is "sha256:…", for caches: the same digest, the same tree.
	Digest string
}

// Group is the sets of one Find. Its methods may be called by several goroutines
// at once.
type Group struct {
	Sets []Set // in the order of Options.Names

	o     Options
	where where
	mu    sync.Mutex   // held while sets are got
	trees []*tree.Tree // as far as got
	tell  sync.Mutex   // of Progress
}

// Fetch gives the sets of o as trees, in the order of their names: Find and Trees
// in one.
func Fetch(ctx context.Context, o Options) ([]*tree.Tree, error) {
	g, err := Find(ctx, o)
	if err != nil {
		return nil, err
	}
	return g.Trees(ctx, false)
}

// Find looks the sets up in the release's digests, which are fetched where they
// are not cached; those of a daily build that is not named by its day always are.
func Find(ctx context.Context, o Options) (*Group, error) {
	if o.Arch == "" {
		o.Arch = DefaultArch
	}
	if !archForm().MatchString(o.Arch) {
		return nil, fetch.Fail(ErrRelease, nil, "%.40q is not a NetBSD port: it looks like %s", o.Arch, DefaultArch)
	}
	if o.Cache == "" || o.Blobs == nil {
		return nil, fetch.Fail(ErrCache, nil, "sets: no folder to keep them in was given")
	}
	w, err := locate(o)
	if err != nil {
		return nil, err
	}
	g := &Group{o: o, where: w, trees: make([]*tree.Tree, len(o.Names))}
	for _, name := range o.Names {
		if !nameForm().MatchString(name) {
			return nil, fetch.Fail(ErrNotFound, nil, "%.40q is not a set's name: it looks like base or kern-GENERIC", name)
		}
	}
	c := g.client("")
	defer c.Close()
	sums, err := g.sums(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, name := range o.Names {
		set, err := pick(sums, name)
		if err != nil {
			return nil, fetch.Fail(ErrNotFound, nil, "NetBSD %s/%s: %v", o.Release, o.Arch, err)
		}
		g.Sets = append(g.Sets, set)
	}
	return g, nil
}

// pick finds a set among the files of a release.
func pick(sums map[string]string, name string) (Set, error) {
	for _, ext := range extensions() {
		if sum, ok := sums[name+ext]; ok {
			digest := sha256.Sum256([]byte(treeVersion + sum))
			return Set{name, name + ext, sum, tree.DigestPrefix + hex.EncodeToString(digest[:])}, nil
		}
	}
	var there []string
	for file := range sums {
		for _, ext := range extensions() {
			if set, ok := strings.CutSuffix(file, ext); ok && nameForm().MatchString(set) && len(there) < 100 {
				there = append(there, set)
			}
		}
	}
	slices.Sort(there)
	return Set{}, fmt.Errorf("there is no set %s, but %s", name, cmp.Or(strings.Join(there, " "), "none at all"))
}

// extensions are those of sets, the one that is preferred first.
func extensions() []string { return []string{".tar.xz", ".tgz", ".tar.gz", ".tar.zst"} }

// where is the place of a release.
type where struct {
	url   string // of the folder of sets, with a slash at its end
	dir   string // in the cache
	fixed bool   // it does not change any more
}

var (
	releaseForm = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[0-9]{1,3}\.[0-9]{1,3}(\.[0-9]{1,4})?(_[A-Z]{1,12}[0-9]{0,3})?$`)
	})
	dailyForm = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(HEAD|current|netbsd-[0-9]{1,3}(?:-[0-9]{1,3})?)(?:/(latest|[0-9]{12}Z))?$`)
	})
	archForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`) })
	nameForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][A-Za-z0-9_-]{0,63}$`) })
)

// locate takes nothing that could leave the cache folder or a URL path.
func locate(o Options) (where, error) {
	var mirror, folder, dir string
	fixed := true
	if m := dailyForm().FindStringSubmatch(o.Release); m != nil {
		branch, day := m[1], cmp.Or(m[2], "latest")
		if branch == "current" {
			branch = "HEAD"
		}
		mirror, folder, dir = DefaultDaily, "/pub/NetBSD-daily/"+branch+"/"+day, branch+"-"+day
		fixed = day != "latest"
	} else if releaseForm().MatchString(o.Release) {
		mirror, folder, dir = DefaultMirror, "/pub/NetBSD/NetBSD-"+o.Release, o.Release
	} else {
		return where{}, fetch.Fail(ErrRelease, nil, "%.40q is not a NetBSD release: it looks like 10.1, 11.0_RC1, HEAD, netbsd-11 or HEAD/202511200000Z", o.Release)
	}
	base, err := fetch.Base(cmp.Or(o.Mirror, mirror), mirror)
	if err != nil {
		return where{}, err
	}
	base = strings.TrimSuffix(strings.TrimSuffix(base, "/pub/NetBSD"), "/pub/NetBSD-daily")
	return where{base + folder + "/" + o.Arch + "/binary/sets/", filepath.Join(o.Cache, dir, o.Arch), fixed}, nil
}

// client fetches what is then at path by hand, where one could put it there.
func (g *Group) client(path string) *fetch.Client {
	o := fetch.Options{Idle: g.o.Idle, Proxy: g.o.Proxy, Disk: g.cacheError}
	if path != "" {
		o.Advice = fmt.Sprintf("get it elsewhere and put it at %s", path)
	}
	return fetch.New(o)
}

func (g *Group) cacheError(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return fetch.Fail(ErrCache, err, "cache of sets %s: %v", g.o.Cache, err)
}

// sums gives the digests of a release. Those of another mirror are as good: what
// is fetched has to match them.
func (g *Group) sums(ctx context.Context, c *fetch.Client) (map[string]string, error) {
	path := filepath.Join(g.where.dir, sumsName)
	if g.where.fixed {
		sums, err := files.ReadSums(path)
		if err == nil && len(sums) > 0 {
			return sums, nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, g.cacheError(err)
		}
	}
	b, err := c.Bytes(ctx, g.where.url+sumsName, files.MaxSums, "a file of digests")
	if errors.Is(err, ErrNotFound) {
		return nil, fetch.Fail(ErrNotFound, err, "NetBSD %s has no sets for %s on this mirror: %v", g.o.Release, g.o.Arch, err)
	}
	if err != nil {
		return nil, err
	}
	sums := files.ParseSums(b)
	if len(sums) == 0 {
		return nil, fetch.Fail(ErrServer, nil, "%s%s: has no digests", g.where.url, sumsName)
	}
	if !g.where.fixed {
		return sums, nil
	}
	if err := os.MkdirAll(g.where.dir, 0o755); err != nil {
		return nil, g.cacheError(err)
	}
	if err := files.WriteFile(g.where.dir, sumsName, func(w io.Writer) error { _, err := w.Write(b); return err }); err != nil {
		return nil, g.cacheError(err)
	}
	return sums, nil
}

func (g *Group) progress(set string, p Phase, got, total int64) {
	if g.o.Progress == nil {
		return
	}
	g.tell.Lock()
	defer g.tell.Unlock()
	g.o.Progress(Progress{set, p, got, total})
}
