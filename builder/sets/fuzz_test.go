package sets

import (
	"bytes"
	"errors"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/archive/archivetest"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/fetch/files"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// FuzzFind: whatever a Dockerfile names and a mirror's file of digests says, what is
// asked for is a file of that mirror, and what is kept is below the cache.
func FuzzFind(f *testing.F) {
	sum := strings.Repeat("0123456789abcdef", 8)
	sums := "SHA512 (base.tar.xz) = " + sum + "\nSHA512 (etc.tgz) = " + strings.ToUpper(sum) + "\nSHA512 (../base.tgz) = " + sum + "\nMD5 (base.tgz) = 00\n"
	for _, s := range [][3]string{
		{"11.0", "base", "https://cdn.netbsd.org"}, {"10.1_RC3", "kern-GENERIC", "http://10.0.0.1:8080/pub/NetBSD/"}, {"current", "etc", ""},
		{"netbsd-11/202511200000Z", "etc", "https://nycdn.netbsd.org/pub/NetBSD-daily"}, {"HEAD/..", "../base", "file:///etc"}, {"10.1/..\n", "base.tar.xz", "http://u:p@h/?q#f"},
	} {
		f.Add(s[0], s[1], s[2], []byte(sums))
	}
	f.Fuzz(func(t *testing.T, release, name, mirror string, text []byte) {
		oneLine := func(err error) {
			if strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Fatalf("%q", err)
			}
		}
		if w, err := locate(Options{Release: release, Mirror: mirror, Arch: DefaultArch, Cache: "/cache/sets"}); err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%q", err)
			}
			oneLine(err)
		} else {
			rel, err := filepath.Rel("/cache/sets", w.dir)
			if err != nil || !filepath.IsLocal(rel) || strings.Count(rel, "/") == 0 {
				t.Fatalf("%q is kept in %q", release, w.dir)
			}
			u, err := url.Parse(w.url)
			if err != nil || !slices.Contains([]string{"http", "https"}, u.Scheme) || u.RawQuery != "" || !strings.HasSuffix(u.Path, "/amd64/binary/sets/") {
				t.Fatalf("%q on %q is at %q", release, mirror, w.url)
			}
			if of, err := url.Parse(mirror); mirror != "" && (err != nil || u.Host != of.Host) {
				t.Fatalf("%q is asked and not %q", w.url, mirror)
			}
		}
		sums := files.ParseSums(text)
		if !nameForm().MatchString(name) {
			return
		}
		set, err := pick(sums, name)
		if err != nil {
			oneLine(err)
			return
		}
		if sums[set.File] != set.SHA512 || !strings.HasPrefix(set.File, name+".") || filepath.Base(set.File) != set.File || tree.CheckDigest(set.Digest) != nil {
			t.Fatalf("%q is %+v", name, set)
		}
	})
}

// FuzzUnpacked: a file of the cache, whoever wrote it, is the set as it was saved or
// none, and names contents by their digests or not at all.
func FuzzUnpacked(f *testing.F) {
	store, err := blob.Open(f.TempDir())
	must(f, err)
	s := &setter{Group: &Group{o: Options{Blobs: store}}, Set: Set{Name: "base", SHA512: strings.Repeat("0123456789abcdef", 8)}}
	t := tree.New()
	for name, n := range map[string]*tree.Node{
		"bin/sh": tree.NewFile(0o4555, tree.Bytes("#!sh")), "dev/console": {Kind: tree.CharDevice, Perm: 0o600, Major: 1},
		"etc/rc": tree.NewSymlink("../bin/sh"), "usr/empty": tree.NewDir(0o755),
	} {
		must(f, t.Put(name, n))
	}
	sh, err := t.Lookup("bin/sh")
	must(f, err)
	must(f, t.Put("bin/ksh", sh))
	var encoded bytes.Buffer
	must(f, t.Encode(&encoded))
	f.Add(encoded.Bytes(), true)
	f.Add(slices.Concat(s.head(encoded.Bytes()), encoded.Bytes()), false)
	f.Add(s.head([]byte{}), false)
	f.Add([]byte(treeVersion), false)
	f.Add(archivetest.Tar(file("x", "y")), true)
	f.Fuzz(func(t *testing.T, b []byte, body bool) {
		if body { // past the digest, which no change survives
			b = slices.Concat(s.head(b), b)
		}
		refer(b, func(digest string) {
			if tree.CheckDigest(digest) != nil {
				t.Fatalf("%q", digest)
			}
		})
		tr := s.decode(b)
		if tr == nil {
			return
		}
		var again bytes.Buffer
		must(t, tr.Encode(&again))
		if !bytes.Equal(slices.Concat(s.head(again.Bytes()), again.Bytes()), b) {
			t.Fatal("it is not what is saved of it")
		}
	})
}
