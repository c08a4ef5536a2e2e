package build

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/archive/archivetest"
)

func TestPackages(t *testing.T) {
	s := newSite(t)
	pkg := archivetest.Gzip(archivetest.Tar(
		entry("+CONTENTS", "x", 0o644), entry("+BUILD_INFO", "LOCALBASE=/usr/pkg", 0o644), entry("bin/curl", "curl", 0o755), entry("share/+odd", "x", 0o644)))
	summary := "PKGNAME=curl-8.9.0\nFILE_NAME=curl-8.9.0.tgz\nFILE_SIZE=1\n\n" +
		"PKGNAME=curl-8.10.1nb2\nFILE_NAME=curl-8.10.1nb2.tgz\nFILE_SIZE=%d\nFILE_CKSUM=SHA256 %s\nDEPENDS=x>=1\n\nPKGNAME=py-curl-9.0\nFILE_NAME=py-curl-9.0.tgz\n"
	sum := fmt.Sprintf("%x", sha256.Sum256(pkg))
	hits := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits++
		switch r.URL.Path {
		case "/pub/pkgsrc/packages/NetBSD/amd64/11.0/All/pkg_summary.gz":
			_, _ = w.Write(archivetest.Gzip(fmt.Appendf(nil, summary, len(pkg), sum)))
		case "/pub/pkgsrc/packages/NetBSD/amd64/11.0/All/curl-8.10.1nb2.tgz":
			_, _ = w.Write(pkg)
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
