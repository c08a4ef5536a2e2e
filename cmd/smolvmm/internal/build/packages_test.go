package build

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/archive/archivetest"
	"github.com/smolvmm/smolvmm/builder/tree"
)

func TestPackages(t *testing.T) {
	s := newSite(t)
	pkg := archivetest.Gzip(archivetest.Tar(
		entry("+CONTENTS", "x", 0o644), entry("+BUILD_INFO", "LOCALBASE=/usr/pkg", 0o644), entry("bin/curl", "curl", 0o755), entry("share/+odd", "x", 0o644)))
	summary := "PKGNAME=curl-8.9.0\nFILE_NAME=curl-8.9.0.tgz\nFILE_SIZE=1\n\n" +
		"PKGNAME=curl-8.10.1nb2\nFILE_NAME=curl-8.10.1nb2.tgz\nFILE_SIZE=%d\nFILE_CKSUM=SHA256 %s\nDEPENDS=x>=1\n\nPKGNAME=py-curl-9.0\nFILE_NAME=py-curl-9.0.tgz\n\n" +
		"PKGNAME=odd-1.0\n\nPKGNAME=bad-1.0\n\n"
	based := func(base string) []byte {
		return archivetest.Gzip(archivetest.Tar(entry("+BUILD_INFO", "ABI=64\nLOCALBASE="+base+"\nOPSYS=NetBSD\n", 0o644), entry("bin/odd", "odd", 0o755)))
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(pkg))
	hits := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits++
		switch r.URL.Path {
		case "/pub/pkgsrc/packages/NetBSD/amd64/11.0/All/pkg_summary.gz":
			_, _ = w.Write(archivetest.Gzip(fmt.Appendf(nil, summary, len(pkg), sum)))
		case "/pub/pkgsrc/packages/NetBSD/amd64/11.0/All/curl-8.10.1nb2.tgz":
			_, _ = w.Write(pkg)
		case "/pub/pkgsrc/packages/NetBSD/amd64/11.0/All/odd-1.0.tgz":
			_, _ = w.Write(based("/opt/odd"))
		case "/pub/pkgsrc/packages/NetBSD/amd64/11.0/All/bad-1.0.tgz":
			_, _ = w.Write(based("/opt/../../x"))
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	s.o.Packages, s.o.Tags = srv.URL, []string{"x"}
	s.file("Dockerfile", "FROM base\nLABEL smolbsd.addpkgs=\"curl\"\n")
	s.build()
	_, root := s.image("x")
	for name, want := range map[string]bool{"usr/pkg/bin/curl": true, "usr/pkg/share/+odd": true, "usr/pkg/+CONTENTS": false, "+CONTENTS": false} {
		if _, err := root.Lookup(name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.build()
	if hits != 2 || strings.Contains(s.err.String(), "DONE") {
		t.Errorf("%d requests", hits)
	}
	s.file("Dockerfile", "FROM base\nLABEL smolbsd.addpkgs=\"curl-8 odd-1.0\"\n")
	s.build()
	_, root = s.image("x")
	for _, name := range []string{"usr/pkg/bin/curl", "opt/odd/bin/odd"} {
		if _, err := root.Lookup(name); err != nil {
			t.Error(err)
		}
	}
	s.file("Dockerfile", "FROM base\nLABEL smolbsd.addpkgs=bad\n")
	s.fails(`package bad: bad-1.0.tgz: +BUILD_INFO: LOCALBASE is "/opt/../../x"`)
	s.file("Dockerfile", "FROM base\nLABEL smolbsd.addpkgs=\"curl nosuch\"\n")
	s.fails("NetBSD 11.0 has no package nosuch")
	s.file("Dockerfile", "FROM base\nLABEL smolbsd.addpkgs=py-curl\n")
	s.fails("py-curl-9.0.tgz: the server says 404")
	s.file("Dockerfile", "FROM base\nLABEL smolbsd.addpkgs=../x\n")
	s.fails(`"../x" is no name of a package`)
	s.file("Dockerfile", "FROM base\nLABEL smolbsd.addpkgs=curl\n")
	s.o.NoCache = true
	sum = strings.Repeat("0", 64)
	s.fails("does not have the checksum that the mirror's list says")
	s.o.Packages = "ftp://x"
	s.fails("--packages:")
}

// TestFindPackages: a package by its name, with a version, with the beginning of one.
func TestFindPackages(t *testing.T) {
	var b strings.Builder
	for _, n := range []string{"curl-8.9.0", "curl-8.10.1nb2", "curl-8.1", "curl-7.2", "php84-8.4.1", "php84-curl-8.4.1", "curl-8-1.0"} {
		fmt.Fprintf(&b, "PKGNAME=%s\n\n", n)
	}
	for want, file := range map[string]string{
		"curl": "curl-8.10.1nb2.tgz", "curl-7": "curl-7.2.tgz", "curl-8.10.1": "curl-8.10.1nb2.tgz", "curl-8.1": "curl-8.1.tgz", "curl-8.9.0": "curl-8.9.0.tgz",
		"curl-8.": "curl-8.10.1nb2.tgz", "curl-8": "curl-8-1.0.tgz", "php84-curl": "php84-curl-8.4.1.tgz", "php84": "php84-8.4.1.tgz", "php84-8.4": "php84-8.4.1.tgz",
		"php8": "", "curl-": "", "curl-9": "", "8.4.1": "", "curl-8.10.1na": "",
	} {
		found, err := findPackages(strings.NewReader(string(archivetest.Gzip([]byte(b.String())))), []string{want})
		if err != nil || found[want].File != file {
			t.Errorf("%s: %+v, %v; want %q", want, found, err, file)
		}
	}
}

func TestVersions(t *testing.T) {
	ordered := []string{"1", "1.0", "1.2", "1.2nb1", "1.2nb2", "1.10", "1.10.1", "2"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := compareVersions(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s %s: %d", a, b, got)
			}
		}
	}
}

// FuzzPackages: whatever a mirror's list and a package say of themselves, what is
// fetched has the name of a file and its files are in the root.
func FuzzPackages(f *testing.F) {
	f.Add([]byte("PKGNAME=curl-8.9.0\nFILE_NAME=curl-8.9.0.tgz\nFILE_SIZE=12\nFILE_CKSUM=SHA256 00\n\nPKGNAME=curl-8.10nb1\n\n"), "curl")
	f.Add([]byte("FILE_NAME=../x\nPKGNAME=curl-1\n\nPKGNAME=curl-0-1\nFILE_SIZE=-1\n"), "curl-0")
	f.Add([]byte("LOCALBASE=/usr/pkg\nLOCALBASE=/opt/../x\nPKGNAME=-\n"), "-")
	f.Add([]byte("ABI=64\r\nLOCALBASE=/\r\n"), "x-")
	f.Fuzz(func(t *testing.T, text []byte, want string) {
		found, err := findPackages(strings.NewReader(string(archivetest.Gzip(text))), []string{want})
		if err == nil {
			for name, c := range found {
				if name != want || tree.CheckName(c.File) != nil {
					t.Fatalf("%q is %+v", name, c)
				}
			}
		}
		base, err := baseOf(tree.NewFile(0o644, tree.Bytes(text)))
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Fatalf("%q", err)
			}
			return
		}
		if root := tree.New(); base != "/" && root.Put(base, tree.NewDir(0o755)) == nil {
			if _, err := root.Lookup(base); err != nil {
				t.Fatalf("%q: %v", base, err)
			}
		} else if !path.IsAbs(base) {
			t.Fatalf("%q", base)
		}
	})
}
